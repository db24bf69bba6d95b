"""Random numbers inside a step: of the step and the process, so that no two processes drop the same places."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from calibnorm.lab import tasks
from calibnorm.lab.training.loop import Loop
from calibnorm.lab.training.watchers import Watcher
from lab.training.tiny import STEPS, TINY


def drawn(rank: int) -> list[Tensor]:
    """Return what the first steps of a process draw."""
    found: list[Tensor] = []

    def step(*args: object) -> tuple[Tensor, Tensor]:
        found.append(torch.rand(8))
        return torch.zeros(()), torch.zeros(4, dtype=torch.float64)

    fabric: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1, global_rank=rank, is_global_zero=rank == 0)
    batches: Any = SimpleNamespace(train=[(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))] * STEPS)
    learner: Any = SimpleNamespace(network=torch.nn.Identity(), set_rate=lambda rate: None, step=step)
    run = Loop(tasks.of(TINY), fabric, batches, learner, lambda content, number: None, Watcher(), int, 10.0)
    with torch.random.fork_rng(devices=[]):
        run._train(STEPS)
    return found


def test_each_process_drops_places_of_its_own_and_the_first_as_before() -> None:
    first, second, third = (drawn(rank) for rank in range(3))
    for number, mask in enumerate(first):
        seed = int.from_bytes(hashlib.sha256(f"0/step/{number}".encode()).digest()[:8], "little") >> 1
        assert torch.equal(mask, torch.rand(8, generator=torch.Generator().manual_seed(seed)))
    masks = torch.stack([*first, *second, *third])
    assert len(masks.unique(dim=0)) == 3 * STEPS
    assert all(torch.equal(a, b) for a, b in zip(second, drawn(1), strict=True))
