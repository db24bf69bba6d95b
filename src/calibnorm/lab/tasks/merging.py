"""Instances and stuff become one panoptic map (Kirillov et al., Panoptic Segmentation and Panoptic FPN, CVPR 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Map(NamedTuple):
    """A panoptic map.

    Args:
        segments: (H, W) in int64, the number of each pixel's segment from 0; -1 is none.
        classes: The class of every segment: things from 0, stuff after them.
    """

    segments: Tensor
    classes: list[int]


def merge(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    semantic: Tensor,
    *,
    things: int,
    stuff: int,
    least_score: float = 0.5,
    least_share: float = 0.5,
    least_stuff: int = 4096,
) -> Map:
    """Return the panoptic map of a picture.

    From the surest instance to the least sure one, each takes the pixels that none has; one that loses too many of its
    own to surer ones is left out. What no instance takes is the stuff's, each kind one segment, unless it is too small;
    where the semantic branch sees a thing that is no instance, there is no segment.

    Args:
        masks: (N, H, W) in bool.
        labels: (N,) from 1, as a detector has them.
        scores: (N,).
        semantic: (H, W), the kind of stuff of each pixel from 0; `stuff` for a thing.
        things: Classes of things.
        stuff: Kinds of stuff.
        least_score: Instances with less are left out.
        least_share: An instance needs this share of its pixels.
        least_stuff: A kind of stuff needs so many pixels.

    >>> masks = torch.tensor([[[True, True, False, False]], [[False, True, True, False]]])
    >>> merge(masks, torch.tensor([3, 1]), torch.tensor([0.6, 0.9]), torch.tensor([[1, 1, 1, 1]]), things=3, stuff=2,
    ...       least_stuff=1)
    Map(segments=tensor([[1, 0, 0, 2]]), classes=[0, 2, 4])
    """
    segments, classes = torch.full(semantic.shape, -1, device=semantic.device), list[int]()
    for number in scores.argsort(descending=True, stable=True).tolist():
        mask = masks[number]
        area, free = int(mask.sum()), mask & (segments < 0)
        if scores[number] < least_score or not area or int(free.sum()) < max(1, least_share * area):
            continue
        segments[free] = len(classes)
        classes.append(int(labels[number]) - 1)
    for kind in range(stuff):
        mask = (semantic == kind) & (segments < 0)
        if int(mask.sum()) >= max(1, least_stuff):
            segments[mask] = len(classes)
            classes.append(things + kind)
    return Map(segments, classes)
