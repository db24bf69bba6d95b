"""What it costs to hold layers constant: how far the network's output moves, and how many of its answers change."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calibnorm.conversion import reverting, sources
from calibnorm.folding.lines import Line, root_ratio, to_plain
from calibnorm.inspect.evaluating import Images, Moments, batches
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm


class Stream:
    """Batches of images that are read again and again, of which every second image is held out.

    torch's random state is the same at the start of every reading, so that a loader that shuffles or augments with it
    yields the same images; one that yields others is refused.
    """

    def __init__(self, model: nn.Module, images: Images) -> None:
        if isinstance(images, Iterator):
            raise ValueError(
                "images is an iterator, which can be read once; pass a loader, a list of batches or a tensor"
            )
        self._model, self._images = model, images
        self._random = torch.get_rng_state()
        self._read: dict[int, list[tuple[Any, ...]]] = {}

    def half(self, which: int) -> Iterator[Tensor]:
        """Yield the images of even (0) or odd (1) number, in batches.

        Raises:
            TypeError: A batch is no tensor of images.
            ValueError: There are fewer than two images, or others than at the first reading.
        """
        torch.set_rng_state(self._random)
        read, place = list[tuple[Any, ...]](), 0
        for batch in batches(self._model, self._images):
            part = batch[(which - place) % 2 :: 2]
            place += len(batch)
            if len(part):
                read.append((tuple(part.shape), part.float().sum().item()))
                yield part
        if place < 4:
            raise ValueError(
                f"images holds {place} images, and it takes 4 or more: one half chooses, the other one judges"
            )
        if repr(self._read.setdefault(which, read)) != repr(read):
            raise ValueError(
                "images are others when they are read again; pass a loader that neither shuffles (shuffle=False) nor "
                "augments at random, or a list of batches"
            )

    def count(self, which: int) -> int:
        """Return how many images the last reading of a half had."""
        return sum(shape[0] for shape, _ in self._read[which])


class Price(NamedTuple):
    """What a change of the network costs on images."""

    logits: float
    """The root mean square of the change of the network's outputs, over their standard deviation over the images."""
    answers: float | None
    """The share of answers, of the largest output of each image, that change; None with one output an image."""


class Fold(NamedTuple):
    """A layer that is to become plain, and the line that it is to compute; None where its gate is constant."""

    entry: Found
    line: Line | None


def prices(model: nn.Module, images: Iterator[Tensor], variants: Sequence[Sequence[Fold]]) -> list[Price]:
    """Return what the network costs with each of several sets of layers folded, over what it is as it stands."""
    plain = {}
    for entry, line in {fold.entry.name: fold for folds in variants for fold in folds}.values():
        plain[entry.name] = plain_copy(entry.module, line)
    totals = [_Total() for _ in variants]
    outputs: list[Moments] = []
    answers = 0
    for batch in images:
        reference = _leaves(model(batch))
        outputs = outputs or [Moments() for _ in reference]
        for moments, leaf in zip(outputs, reference, strict=True):
            moments.add(leaf)
        answers += len(reference[0]) if reference[0].shape[1] > 1 else 0
        for folds, total in zip(variants, totals, strict=True):
            with swapped(model, {fold.entry.name: (fold.entry, plain[fold.entry.name]) for fold in folds}) as network:
                total.add(_leaves(network(batch)), reference)
    squares = [moments.squares.sum().item() for moments in outputs]
    return [total.price(squares, answers) for total in totals]


class _Total:
    """The sums behind a price."""

    def __init__(self) -> None:
        self.squares: list[float] = []
        self.changed = 0

    def add(self, leaves: list[Tensor], reference: list[Tensor]) -> None:
        apart = [(leaf - of).square().sum().item() for leaf, of in zip(leaves, reference, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or [0.0] * len(apart), apart, strict=True)]
        self.changed += int((leaves[0].argmax(1) != reference[0].argmax(1)).sum())

    def price(self, of: list[float], answers: int) -> Price:
        """Return the price; of several outputs, that of the one which moves most."""
        logits = max(root_ratio(*pair) for pair in zip(self.squares, of, strict=True))
        return Price(logits, self.changed / answers if answers else None)


def _leaves(output: Any) -> list[Tensor]:
    """Return the network's outputs, each (numbers, K), in float64: K outputs of every image, or of its every pixel."""
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found or any(leaf.ndim == 0 for leaf in found):
        raise TypeError(
            f"the network returns {type(output).__name__}, and cn.fold compares tensors of outputs, (N, ...)"
        )
    wide = [leaf.cpu().double() for leaf in found]
    wide = [leaf.reshape(len(leaf), -1) if leaf.ndim < 3 else leaf.movedim(1, -1).flatten(0, -2) for leaf in wide]
    if not all(math.isfinite(leaf.sum().item()) for leaf in wide):
        raise ValueError("the network's output is not finite on these images, so nothing can be compared")
    return wide


def plain_copy(layer: nn.Module, line: Line | None) -> nn.Module:
    """Return what a layer would become, in evaluation mode; the layer stays as it is."""
    group = getattr(layer.bn, "process_group", None)  # cannot be copied
    twin: CalibratedNorm = copy.deepcopy(layer, {id(group): group})  # type: ignore[assignment]
    return to_plain(twin, reverting.average_gates(twin), line).eval()


@contextmanager
def swapped(model: nn.Module, plain: dict[str, tuple[Found, nn.Module]]) -> Iterator[nn.Module]:
    """Put modules in the places of layers while the context is open; yield the network, which may be such a layer."""
    root = model
    try:
        for entry, new in plain.values():
            sources.replace(entry, new)
            root = new if entry.module is model else root
        yield root
    finally:
        for entry, _ in plain.values():
            sources.replace(entry, entry.module)
