"""The exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network, moved towards it: average + (1 - decay) * (weight - average), float buffers likewise.

    Counters are copied: their average means nothing. As torch's AveragedModel, which copies its own counter to the
    device at every update, and so lets every step of a GPU wait for the one before.

    Args:
        network: Averaged from its first update on; its tensors must stay where they are.
        decay: Weight of what was before, from 0 to 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self.updates = 0
        self._share = 1 - decay
        ours, theirs = ([*each.parameters(), *each.buffers()] for each in (self.module, network))
        pairs = list(zip(ours, theirs, strict=True))
        self._moved = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        self._copied = _columns([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is now; the first time the average becomes it. Waits for nothing."""
        if self.updates:
            torch._foreach_lerp_(*self._moved, self._share)
        elif self._moved[0]:
            torch._foreach_copy_(*self._moved)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        self.updates += 1


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
