"""Panoptic quality (Kirillov et al., CVPR 2019), with crowds, as COCO's own evaluation counts it.

torchmetrics has the same without crowds: the tests hold that both agree where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from calibnorm.lab.tasks.merging import Map


def counted(found: Map, truth: Tensor, classes: Tensor, crowds: Tensor, count: int) -> Tensor:
    """Return what a picture adds to every class: sum of IoUs, true positives, false positives, false negatives.

    A found segment and a true one of its class match where their IoU is more than 0.5; pixels without a true segment
    count for neither. A crowd matches nothing and is not missed. A segment that matches nothing is not counted where
    more than half of it lies on pixels without a segment, or on a crowd of its class.

    Args:
        found: The map.
        truth: (H, W), the number of each pixel's true segment from 0.
        classes: The class of every true segment; -1 for that of pixels without one.
        crowds: Whether each is a crowd.
        count: Classes.

    Returns:
        (count, 4) in float64.
    """
    sums = torch.zeros(count, 4, dtype=torch.float64)
    ours, theirs = len(found.classes), len(classes)
    pairs = (found.segments.cpu() + 1) * theirs + truth.cpu()
    common = torch.bincount(pairs.flatten(), minlength=(ours + 1) * theirs).view(ours + 1, theirs)
    of_truth, common = common.sum(0), common[1:]
    areas, kinds, is_crowd = common.sum(1), classes.tolist(), crowds.tolist()
    void = common[:, classes.cpu() < 0].sum(1)
    matched: set[int] = set()
    for number, kind in enumerate(found.classes):
        area, hit = int(areas[number]), False
        for other, true_kind in enumerate(kinds):
            if true_kind != kind or is_crowd[other]:
                continue
            shared = int(common[number, other])
            union = area + int(of_truth[other]) - shared - int(void[number])
            if shared and 2 * shared > union:
                sums[kind, 0] += shared / union
                sums[kind, 1] += 1
                matched.add(other)
                hit = True
        ignored = int(void[number])
        ignored += sum(int(common[number, k]) for k, own in enumerate(kinds) if own == kind and is_crowd[k])
        if area and not hit and 2 * ignored <= area:
            sums[kind, 2] += 1
    for other, kind in enumerate(kinds):
        if kind >= 0 and not is_crowd[other] and other not in matched:
            sums[kind, 3] += 1
    return sums


def qualities(sums: Tensor, classes: Iterable[int]) -> tuple[float, float, float]:
    """Return PQ, SQ and RQ in percent, means over those of some classes that were there or were found; NaN for none.

    >>> qualities(torch.tensor([[1.5, 2, 2, 2], [0, 0, 0, 0]]), (0, 1))
    (37.5, 75.0, 50.0)
    """
    found = []
    for of in classes:
        iou, true, false_found, missed = sums[of].tolist()
        if total := true + 0.5 * false_found + 0.5 * missed:
            found.append((iou / total, iou / true if true else 0.0, true / total))
    if not found:
        return (math.nan,) * 3
    pq, sq, rq = (100 * math.fsum(values) / len(found) for values in zip(*found, strict=True))
    return pq, sq, rq
