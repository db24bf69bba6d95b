"""What a forward read from buffers that it moves, for its repetition in a backward pass.

Activation checkpointing runs a forward again in the backward pass, by when the running statistics have moved, several
times perhaps. A method that reads them would compute another function then, and its gradient. So a forward that may be
repeated remembers what it read, and its repetition finds that by its input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from calibnorm.ops.inputs import exporting, transformed

_KEPT = 64
"""Forwards that a layer remembers: as many as may wait for their backward, where gradients are accumulated."""


class _Read(NamedTuple):
    """One forward."""

    sample: Tensor
    """Some numbers of its input, (C,)."""
    buffers: list[Tensor]
    """What it read."""


_reads: MutableMapping[Tensor, deque[_Read]] = WeakIdKeyDictionary()
"""By the running mean: nothing that a layer holds, a checkpoint or a copy of it."""


def copies(buffers: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Return copies of buffers as they are, or, where this repeats a forward of x, as that one read them.

    The copies are for the backward, before which the buffers move.
    """
    compiled = torch.compiler.is_compiling() and not exporting()
    if not compiled and (transformed(x) or x.is_meta or not (_repeats() or _may_be_repeated())):
        return {name: buffer.clone() for name, buffer in buffers.items()}
    if not buffers or 0 in x.shape:
        return buffers
    middle = x.detach()
    while middle.ndim > 2:
        middle = middle.select(-1, middle.shape[-1] // 2)
    read = _read if compiled else _remembered
    return dict(zip(buffers, read(middle.double().mean(0), list(buffers.values())), strict=True))


def _remembered(sample: Tensor, buffers: list[Tensor]) -> list[Tensor]:
    """Return copies of buffers, of which the first is the key, as the forward with this sample read them."""
    kept: deque[_Read] = _reads.setdefault(buffers[0], deque(maxlen=_KEPT))
    if _repeats() and kept:
        # A repetition on a GPU may differ in its last bits, so the nearest counts.
        distances = torch.stack([(read.sample.to(sample) - sample).abs().sum() for read in kept])
        return [t.clone() for t in kept[int(distances.argmin())].buffers]
    if not _repeats():
        kept.append(_Read(sample.clone(), [t.clone() for t in buffers]))
    return [t.clone() for t in buffers]


_TAGS = [torch.Tag.cudagraph_unsafe]
_read = torch.library.custom_op("calibnorm::read", _remembered, mutates_args=(), tags=_TAGS)
"""The same in a compiled graph, which cannot know whether it runs in a backward pass."""


@_read.register_fake
def _(sample: Tensor, buffers: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(t) for t in buffers]


def _repeats() -> bool:
    """Whether this forward is within a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _may_be_repeated() -> bool:
    """Whether this forward is in a checkpointed segment: no graph is recorded, or hooks keep the saved tensors."""
    return not torch.is_grad_enabled() or saves_to_hooks()


def saves_to_hooks() -> bool:
    """Whether hooks get the tensors that a forward saves: a repetition without reentry ends there, by an exception."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
