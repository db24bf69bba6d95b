"""The seeds that committed results were made with, literally: a change here is a change of every published figure."""

from __future__ import annotations

import torch

from calibnorm.lab.data.seeding import generator, number
from calibnorm.lab.training.seeds import derive


def test_seeds_of_training() -> None:
    found = [derive(0, "weights"), derive(1, "weights"), derive(2, "step", 467)]
    assert found == [4194789700723333633, 6645201493885463367, 5205338678308311397]


def test_seeds_of_feeds() -> None:
    found = [number("main order", 0, 0), number("others crops", 2, 5), number("picture", 1, 0, 7)]
    assert found == [1245430193, 168464487, 617855104]
    assert torch.randperm(8, generator=generator("main order", 0, 0)).tolist() == [3, 0, 7, 1, 4, 6, 5, 2]
