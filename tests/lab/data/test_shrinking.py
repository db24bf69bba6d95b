"""Smaller images by averaging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibnorm.lab import data
from calibnorm.lab.data.shrinking import average, shrink
from calibnorm.lab.errors import UsageError


def test_average_rounds_half_to_even_and_keeps_bytes() -> None:
    squares = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1], [255, 255, 0, 3], [255, 255, 3, 0]], dtype=torch.uint8)
    small = average(squares.expand(2, 3, 4, 4), 2)
    assert small.dtype == torch.uint8
    assert small[1, 2].tolist() == [[0, 2], [255, 2]]  # 0.5 -> 0, 1.5 -> 2, 255, 1.5 -> 2


def test_a_shrunk_set_has_its_own_statistics_and_the_old_labels() -> None:
    digits = data.load("digits", Path())
    small = shrink(digits, 4)
    assert (small.size, small.train.images.shape[1:]) == (4, (1, 4, 4))
    pixels = small.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(small.mean[0]).double(), pixels.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(small.std[0]).double(), pixels.std(correction=0), rtol=1e-6, atol=0)
    assert torch.equal(small.train.labels, digits.train.labels)
    expected = torch.nn.functional.avg_pool2d(digits.test.images.double(), 2).round()
    assert torch.equal(small.test.images.double(), expected)
    assert shrink(digits, 8) is digits


@pytest.mark.parametrize("size", [3, 0, 16])
def test_a_size_that_does_not_divide_is_named(size: int) -> None:
    with pytest.raises(UsageError, match=f"--image-size {size}: digits has 8 pixels a side; choose from 1, 2, 4, 8"):
        shrink(data.load("digits", Path()), size)
