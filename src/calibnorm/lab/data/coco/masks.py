"""Masks as COCO's files have them: polygons and run-length codes, to and from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Code = dict[str, Any]
"""A run-length code: "size" (height, width) and "counts", column by column, beginning with zeros."""


def fault(segmentation: Any, height: int, width: int) -> str:
    """Return what is wrong with an annotation's segmentation, in words; nothing where it can be used.

    >>> fault([[0, 0, 4, 0, 4, 4]], 8, 8), fault([[0, 0, 4]], 8, 8)
    ('', 'a polygon needs three points or more, each of two numbers')
    """
    if isinstance(segmentation, list):
        if not segmentation:
            return "has no polygon"
        if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _numbers(p) for p in segmentation):
            return "a polygon needs three points or more, each of two numbers"
        return ""
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "is neither polygons nor a run-length code"
    if list(segmentation["size"]) != [height, width]:
        return f"is a code of {list(segmentation['size'])} pixels in a picture of {[height, width]}"
    counts = segmentation["counts"]
    if isinstance(counts, list) and (
        not _numbers(counts) or min(counts, default=0) < 0 or sum(counts) != height * width
    ):
        return f"is a run-length code that does not count {height * width} pixels"
    return "" if isinstance(counts, (list, str, bytes)) else "is no run-length code"


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and np.isfinite(value) for value in values)


def code_of(segmentation: Any, height: int, width: int) -> Code:
    """Return the compressed run-length code of polygons, or of a code of either kind."""
    from faster_coco_eval.core import mask

    if isinstance(segmentation, list):
        code: Code = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = mask.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    counts = code["counts"]
    return {"size": list(code["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}


def decoded(codes: Sequence[Code], height: int, width: int) -> Tensor:
    """Return the pixels (N, H, W) in bool of compressed run-length codes."""
    from faster_coco_eval.core import mask

    if not codes:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(mask.decode(list(codes)).transpose(2, 0, 1))).bool()


def encoded(masks: Tensor) -> list[Code]:
    """Return the compressed run-length codes of masks (N, H, W)."""
    from faster_coco_eval.core import mask

    if not len(masks):
        return []
    columns = np.asfortranarray(masks.to(device="cpu", dtype=torch.uint8).permute(1, 2, 0).numpy())
    found: list[Code] = mask.encode(columns)
    return [{"size": list(code["size"]), "counts": code["counts"]} for code in found]


def box_of(mask: Tensor) -> list[int]:
    """Return the box x, y, width, height around the pixels of a mask (H, W), which has some.

    >>> box_of(torch.tensor([[0, 0, 0], [0, 1, 1]]))
    [1, 1, 2, 1]
    """
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    y, x = int(rows[0]), int(columns[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
