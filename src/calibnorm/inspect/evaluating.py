"""Running a network over data to look inside it: it computes as in evaluation, and is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.networks.finding import like

Images = Tensor | Iterable[Any]
"""One batch, or several: each a tensor of images, or a tuple or list that begins with one, as data loaders yield."""


def batches_of(images: Images) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """Yield the images of every batch, and what comes with them.

    Raises:
        TypeError: A batch is, or begins with, something else than a tensor.
        ValueError: There is no batch, or nothing in any of them.
    """
    shape: tuple[int, ...] | None = None
    pixels = 0
    for batch in [images] if isinstance(images, Tensor) else images:
        first, *rest = batch if isinstance(batch, tuple | list) and batch else [batch]
        if not isinstance(first, Tensor):
            raise TypeError(f"images must be batches of images, or (images, ...), not {type(batch).__name__}")
        yield first, tuple(rest)
        shape, pixels = tuple(first.shape), pixels + first.numel()
    if shape is None:
        raise ValueError("images holds no batch; an iterator can be read once, so pass a list or a new one")
    if not pixels:
        raise ValueError(f"images holds nothing to read: its last batch has the shape {shape}; pass images")


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
    try:
        model.eval()
        with torch.no_grad(), eagerly(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """Let a compiled network run as it is written: torch.compile's code does not call hooks that came after it."""
    # Asking for it imports a second's worth of modules.
    compiled = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@dataclass(frozen=True)
class Called:
    """One call of a layer.

    Args:
        layer: What was called.
        args: Its arguments.
        kwargs: Its arguments by name.
        output: What it returned.
    """

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor:
        """The first tensor that it was called with."""
        found: Tensor = next(value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))
        return found


def batches(model: nn.Module, images: Images) -> Iterator[Tensor]:
    """Yield the images of every batch, on the model's device; :func:`batches_of` says what is refused."""
    held = like(model)
    for first, _ in batches_of(images):
        yield first if held is None else first.to(held.device)


@contextmanager
def watching(watchers: Mapping[Any, Callable[[Called], object]]) -> Iterator[None]:
    """Call a function with every call of its layer while the context is open."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        watchers[layer](Called(layer, args, kwargs, output))

    # After the forward, which has checked its input.
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in watchers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
