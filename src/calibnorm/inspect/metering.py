"""Calling a network with its probes in one batch after the other, and keeping what it computes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibnorm.inspect.company import Batches, Pool, rows
from calibnorm.inspect.evaluating import Called, watching
from calibnorm.inspect.holding import Held
from calibnorm.inspect.variance import RandomEffects, Share, share

Losses = Callable[[Any, Tensor], Tensor | None]
"""A function of a network's output and the labels that returns the loss of every image, (B,)."""

KEPT = 8192
"""Numbers of a tensor that are looked at, at most: of a larger one so many, chosen at random once for all."""


class Meter:
    """Measures what :func:`calibnorm.inspect.batch_noise` returns.

    Args:
        model: The network.
        layers: The layers to look at.
        pool: The images; the first ones are the probes.
        held: The network's own, for before each forward.
        loss: The losses of a batch; by default :func:`cross_entropies`.
        gradients: Whether to measure gradients where there is a loss.
        seed: Chooses which numbers of large tensors are looked at.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[nn.Module, str],
        pool: Pool,
        held: Held,
        loss: Losses | None,
        gradients: bool,
        seed: int,
    ) -> None:
        self.model, self.layers, self.pool, self.held = model, layers, pool, held
        self.loss = loss or cross_entropies
        self.gradients = gradients and pool.labels is not None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._seen: dict[tuple[nn.Module, str, int], dict[int, RandomEffects]] = {}
        self._chosen: dict[int, Tensor] = {}
        self._draw = torch.Generator().manual_seed(seed)

    def shares(self, of: nn.Module, kind: str) -> dict[int, Share]:
        """Return what was seen of a module, by batch size."""
        found = {size: seen for (module, what, size), seen in self._seen.items() if module is of and what == kind}
        return {size: share([*seen.values()]) for size, seen in found.items()}

    def measure_own(self, batches: list[Batches]) -> None:
        """Run the whole pool as one batch, and let every layer alone see one batch after the other of what it got."""
        calls = dict.fromkeys(self.layers, 0)
        ours = False  # calls of the layers that are ours, not the network's

        def see(call: Called, number: int, d_output: Tensor | None = None) -> None:
            nonlocal ours
            ours = True
            try:
                with Held(call.layer) as held:
                    for each in batches:
                        self._own(call, number, each, held, d_output)
            finally:
                ours = False

        def look(call: Called) -> None:
            if ours:
                return
            number = calls[call.layer]
            calls[call.layer] += 1
            see(call, number)
            if call.output.requires_grad:
                call.output.register_hook(lambda d_output: see(call, number, d_output))  # type: ignore[no-untyped-call]

        with watching(dict.fromkeys(self.layers, look)):
            images, losses = self._run(torch.arange(len(self.pool), device=self.pool.images.device))
            self.gradients = losses is not None and losses.requires_grad
            if losses is not None and self.gradients:
                torch.autograd.grad(losses.sum(), [images, *self.parameters], allow_unused=True)

    def measure_accumulated(self, batches: Batches) -> None:
        """Run every batch of every probe."""
        size = batches.size
        inputs: list[tuple[nn.Module, int, Tensor]] = []
        calls: dict[nn.Module, int] = {}

        def look(call: Called) -> None:
            number = calls[call.layer] = calls.get(call.layer, -1) + 1
            self._see(call.layer, "accumulated", size, number, self._of_probe(call.layer, call.output, size))
            if call.input.requires_grad:
                inputs.append((call.layer, number, call.input))

        with watching(dict.fromkeys(self.layers, look)):
            for draws in batches:
                for chosen in draws:
                    inputs.clear()
                    calls.clear()
                    _, losses = self._run(chosen)
                    if losses is not None:
                        self._see(self.model, "loss", size, 0, losses.detach()[:1])
                        if self.gradients:
                            self._pull_back(losses[0], inputs, size)
                for (_, kind, of), seen in self._seen.items():
                    if of == size and not kind.startswith("own"):
                        for effects in seen.values():
                            effects.next_image()

    def _own(self, call: Called, number: int, batches: Batches, held: Held, d_output: Tensor | None) -> None:
        """Call a layer with every batch, forward or, given the gradient that came to its output, forward and back."""
        layer, size, count, back = call.layer, batches.size, len(self.pool), d_output is not None
        kind = "own_gradient" if back else "own"
        for draws in batches:
            for chosen in draws:
                held.again()
                args = tuple(rows(arg, chosen, count) for arg in call.args)
                kwargs = {name: rows(arg, chosen, count) for name, arg in call.kwargs.items()}
                x = Called(layer, args, kwargs, call.output).input.requires_grad_(back)
                with torch.set_grad_enabled(back):
                    value = layer(*args, **kwargs)
                if d_output is not None:
                    d_batch = rows(d_output, chosen, count)
                    d_batch[len(d_batch) // size :] = 0.0  # the loss is the probe's
                    (value,) = torch.autograd.grad(value, [x], d_batch)
                self._see(layer, kind, size, number, self._of_probe(layer, value, size))
            self._seen[layer, kind, size][number].next_image()

    def _run(self, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """Call the network with a batch; return its images and the losses, where there are any."""
        self.held.again()
        with torch.set_grad_enabled(self.gradients):
            images = self.pool.images[chosen]
            if self.gradients and images.is_floating_point():
                images.requires_grad_()
            output = self.model(images.clone())  # a network may change its input in place, which a leaf forbids
            labels = self.pool.labels
            losses = None if labels is None else self.loss(output, labels[chosen])
        if losses is not None and losses.shape != chosen.shape:
            raise ValueError(f"loss= returned shape {tuple(losses.shape)}; expected ({len(chosen)},), one an image")
        return images, losses

    def _pull_back(self, loss: Tensor, inputs: list[tuple[nn.Module, int, Tensor]], size: int) -> None:
        """See the gradients of the probe's loss by its part of the layers' inputs, and by the parameters."""
        wanted = [*self.parameters, *(x for _, _, x in inputs)]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        count = len(self.parameters)
        for (layer, number, _), gradient in zip(inputs, found[count:], strict=True):
            self._see(layer, "accumulated_gradient", size, number, self._of_probe(layer, gradient, size))
        if count:
            self._see(self.model, "gradient", size, 0, torch.cat([self._some(d) for d in found[:count]]))

    def _see(self, of: nn.Module, kind: str, size: int, number: int, values_D: Tensor) -> None:
        self._seen.setdefault((of, kind, size), {}).setdefault(number, RandomEffects()).add(values_D)

    def _of_probe(self, layer: nn.Module, values: Tensor, size: int) -> Tensor:
        """Return some numbers of the batch's first image, (D,)."""
        if values.ndim < 2 or len(values) % size:
            raise ValueError(
                f"{self.layers[layer]} returns shape {tuple(values.shape)} for a batch of {size} images, which do not "
                "come first in it; leave it out with where="
            )
        return self._some(values.detach()[: len(values) // size])

    def _some(self, values: Tensor) -> Tensor:
        """Return a tensor's numbers, (D,), or of a large one some, scaled so that their squares stand for all."""
        count, flat = values.numel(), values.flatten()
        if count <= KEPT:
            return flat.clone()  # a rectifier may work in place on what a layer returned
        if count not in self._chosen:
            self._chosen[count] = torch.randperm(count, generator=self._draw)[:KEPT].to(values.device)
        return flat[self._chosen[count]] * math.sqrt(count / KEPT)


def cross_entropies(output: Any, labels: Tensor) -> Tensor | None:
    """Return every image's cross-entropy where output and labels are those of a classification, else None."""
    scores = isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point()
    whole = labels.ndim == 1 and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return F.cross_entropy(output.float(), labels.long(), reduction="none") if scores and whole else None
