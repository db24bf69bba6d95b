"""Polygons and run-length codes, against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as theirs

from calibnorm.lab.data.coco import masks

SIZE = 20, 30


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""pycocotools was built for an older NumPy."""


def polygons() -> list[list[float]]:
    return [[2.5, 3.0, 25.2, 4.1, 20.0, 17.7], [5.0, 1.0, 9.0, 1.0, 9.0, 12.0, 5.0, 12.0]]


def test_polygons_are_filled_as_pycocotools_fills_them() -> None:
    code = theirs.merge(theirs.frPyObjects(polygons(), *SIZE))
    ours = masks.decoded([masks.code_of(polygons(), *SIZE)], *SIZE)
    assert np.array_equal(ours[0].numpy(), theirs.decode(code).astype(bool))
    assert 0 < ours.sum() < ours.numel()


def test_codes_of_both_kinds_are_the_same_mask() -> None:
    mask = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.7
    (compressed,) = masks.encoded(mask)
    flat = mask[0].T.flatten().int().tolist()
    counts, last, run = list[int](), 0, 0
    for value in flat:
        if value != last:
            counts.append(run)
            last, run = value, 0
        run += 1
    plain = {"size": list(SIZE), "counts": [*counts, run]}
    as_text = {**compressed, "counts": compressed["counts"].decode()}
    for segmentation in (compressed, plain, as_text):
        assert not masks.fault(segmentation, *SIZE)
        assert torch.equal(masks.decoded([masks.code_of(segmentation, *SIZE)], *SIZE), mask)
    assert theirs.area(compressed) == mask.sum()


def test_no_mask_is_no_mask() -> None:
    assert masks.decoded([], *SIZE).shape == (0, *SIZE)
    assert masks.encoded(torch.zeros(0, *SIZE)) == []


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([], "has no polygon"),
        ([[1, 2, 3, 4]], "a polygon needs three points or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "each of two numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "each of two numbers"),
        (None, "is neither polygons nor a run-length code"),
        ({"size": [20, 30]}, "is neither polygons nor a run-length code"),
        ({"size": [30, 20], "counts": "x"}, "is a code of [30, 20] pixels in a picture of [20, 30]"),
        ({"size": [20, 30], "counts": [100, 499]}, "does not count 600 pixels"),
        ({"size": [20, 30], "counts": [700, -100]}, "does not count 600 pixels"),
        ({"size": [20, 30], "counts": 3}, "is no run-length code"),
    ],
)
def test_what_is_no_mask_is_said(segmentation: Any, said: str) -> None:
    assert said in masks.fault(segmentation, *SIZE)
