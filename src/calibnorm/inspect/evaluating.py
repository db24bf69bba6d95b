"""Running a network over data to look inside it: it computes as in evaluation, and is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibnorm.methods import Batch
from calibnorm.methods.base import Instance, Params
from calibnorm.networks.finding import like, steady_noise
from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children
from calibnorm.ops import Step
from calibnorm.ops.reference import moments

Images = Tensor | Iterable[Any]
"""One batch, or several: each a tensor of images, or a tuple or list that begins with one, as data loaders yield."""


def evaluate(model: nn.Module, images: Images) -> None:
    """Call the model on every batch, in evaluation mode and without gradients; every module's mode is put back.

    Raises:
        TypeError: A batch is, or begins with, something else than a tensor.
        ValueError: There is no batch.
    """
    with evaluating(model):
        for batch in batches(model, images):
            model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode and without gradients while the context is open."""
    modes = {module: module.training for module in model.modules()}
    # torch.compile's code does not call hooks that came after it. Asking for it imports a second's worth of modules.
    compiled = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in modes)
    try:
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batches(model: nn.Module, images: Images) -> Iterator[Tensor]:
    """Yield every batch, on the model's device; :func:`evaluate` says what is refused."""
    held = like(model)
    found = False
    for batch in [images] if isinstance(images, Tensor) else images:
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(first, Tensor):
            raise TypeError(f"images must be batches of images, or (images, ...), not {type(batch).__name__}")
        yield first if held is None else first.to(held.device)
        found = True
    if not found:
        raise ValueError("images holds no batch; an iterator can be read once, so pass a list or a new one")


@contextmanager
def watching(watchers: Mapping[Any, Callable[[Tensor], object]]) -> Iterator[None]:
    """Call a function with the input of every call of its layer while the context is open."""

    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        watchers[layer](args[0] if args else kwargs["input"])

    # After the forward, which has checked its input.
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in watchers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Met(NamedTuple):
    """What a method's functions are called with when a layer meets an input in evaluation."""

    instance: Instance
    batch: Batch
    params: Params


def meet(layer: CalibratedNorm, x: Tensor, name: str) -> Met:
    """Return what a layer's method is called with for an input in evaluation, with (N, C) numbers as the layer has.

    Raises:
        ValueError: The layer is in training mode.
    """
    state = children.read(layer.bn, name)
    use_batch = state.use_batch and not (layer.frozen and state.running_mean is not None)
    if use_batch and layer.bn.training and layer.method.batch_statistics:
        raise ValueError(f"{name} is in training mode, and gates are read in evaluation; call eval() first")
    given = {"weight": state.weight, "bias": state.bias, **layer.gates()}
    tensors = {key: tensor for key, tensor in given.items() if tensor is not None}
    noise = steady_noise(layer)
    step = Step(layer.method, tuple(tensors), state.eps, noise)
    instance, params = step.instance(*moments(x), tuple(tensors.values()))
    if use_batch or state.running_mean is None or state.running_var is None or not layer.method.batch_statistics:
        mean, var = step.reduce(instance)
    else:
        running = zip((state.running_mean, state.running_var), *layer._extra_statistics(), strict=True)
        mean, var = (torch.cat(parts).to(instance.m.dtype) for parts in running)
    return Met(instance, Batch(mean, var, state.eps, noise), params)


class Moments:
    """Mean and variance of every channel over instances that come batch by batch, in memory for one.

    The sums are merged as Chan, Golub and LeVeque (1979) do: with squares around the mean, of which a variance much
    smaller than the mean loses nothing. They are kept in float64, where the device has it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, values_NC: Tensor) -> None:
        """Take a batch in."""
        n, mean = len(values_NC), values_NC.mean(0)
        total = self.count + n
        apart = mean - self._mean
        squares = (values_NC - mean).square().sum(0)
        self._mean = self._mean + apart * (n / total)
        self._squares = self._squares + squares + apart.square() * (self.count * n / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return torch.as_tensor(self._mean)

    @property
    def squares(self) -> Tensor:
        """(C,), the sum of squares around the mean."""
        return torch.as_tensor(self._squares)

    @property
    def std(self) -> Tensor:
        """(C,), the square root of the unbiased variance; NaN for a single instance."""
        return self.squares.div(self.count - 1).sqrt()
