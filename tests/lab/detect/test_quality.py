"""The panoptic merge on hand-made overlaps, and panoptic quality on hand-made maps and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.detection import PanopticQuality

from calibnorm.lab.tasks.merging import Map, merge
from calibnorm.lab.tasks.panoptic_quality import counted, qualities

THINGS, STUFF = 2, 2


def merged(masks: list[list[int]], labels: list[int], scores: list[float], semantic: list[int], **others: float) -> Map:
    options = {"least_stuff": 1} | others
    found = merge(
        torch.tensor(masks).bool()[:, None],
        torch.tensor(labels),
        torch.tensor(scores),
        torch.tensor([semantic]),
        things=THINGS,
        stuff=STUFF,
        **options,  # type: ignore[arg-type]
    )
    return Map(found.segments[0], found.classes)


def test_the_surer_instance_takes_what_two_claim() -> None:
    found = merged([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], [1, 2], [0.7, 0.8], [2, 2, 2, 2, 2])
    assert found.segments.tolist() == [1, 1, 0, 0, 0]
    assert found.classes == [1, 0]


def test_an_instance_that_surer_ones_hide_is_left_out() -> None:
    masks = [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert merged(masks, [1, 1], [0.9, 0.8], [2] * 5).classes == [0], "a quarter is left"
    assert merged(masks, [1, 1], [0.9, 0.8], [2] * 5, least_share=0.25).classes == [0, 0]


def test_instances_that_nobody_is_sure_of_and_empty_ones_are_left_out() -> None:
    found = merged([[1, 1, 0], [0, 0, 0]], [1, 2], [0.4, 0.9], [0, 0, 2])
    assert found.segments.tolist() == [0, 0, -1], "the stuff takes it; what is a thing to it is nothing"
    assert found.classes == [THINGS]
    assert merged([[1, 1, 0]], [1], [0.4], [0, 0, 2], least_score=0.3).classes == [0]


def test_stuff_is_one_segment_a_kind_unless_it_is_small() -> None:
    found = merged([[0, 1, 0, 0, 0, 0]], [2], [0.9], [0, 0, 0, 1, 1, 2], least_stuff=2)
    assert found.segments.tolist() == [1, 0, 1, 2, 2, -1], "kind 0 is in two pieces"
    assert found.classes == [1, 2, 3]
    assert merged([[0, 1, 0, 0, 0, 0]], [2], [0.9], [0, 0, 0, 1, 1, 2], least_stuff=3).classes == [1]


def test_equal_scores_go_by_their_order() -> None:
    assert merged([[1, 1], [1, 1]], [2, 1], [0.5, 0.5], [2, 2]).classes == [1]


def test_no_instance_at_all() -> None:
    empty = merge(
        torch.zeros(0, 1, 2).bool(), torch.zeros(0), torch.zeros(0), torch.tensor([[0, 1]]), things=2, stuff=2,
        least_stuff=1,
    )  # fmt: skip
    assert empty.classes == [2, 3]


def sums(found: list[int], kinds: list[int], truth: list[int], classes: list[int], crowds: list[int]) -> Tensor:
    return counted(
        Map(torch.tensor([found]), kinds), torch.tensor([truth]), torch.tensor(classes), torch.tensor(crowds), 4
    )


def test_a_match_needs_more_than_half_of_the_union() -> None:
    assert sums([0, 0, 0, -1], [0], [0, 0, 1, 1], [0, 3], [0, 0])[0].tolist() == [2 / 3, 1, 0, 0]
    assert sums([0, 0, -1, -1], [0], [0, 1, 1, 1], [0, 3], [0, 0])[0].tolist() == [0, 0, 1, 1], "a half is no match"
    assert sums([0, 0, 0, 0], [1], [0, 0, 0, 0], [0], [0])[:2].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]], "classes count"


def test_pixels_without_a_true_segment_count_for_nobody() -> None:
    found = sums([0, 0, 0, 0], [0], [0, 1, 1, 1], [0, -1], [0, 0])
    assert found[0].tolist() == [1, 1, 0, 0]
    assert sums([0, 0, 0, 0], [1], [0, 1, 1, 1], [0, -1], [0, 0])[1].tolist() == [0, 0, 0, 0], "most of it lies there"
    assert sums([0, 0, 0, 0], [1], [0, 0, 1, 1], [0, -1], [0, 0])[1].tolist() == [0, 0, 1, 0], "a half is not most"


def test_a_crowd_is_neither_matched_nor_missed_and_forgives_its_own_class() -> None:
    assert sums([0, 0, 0, -1], [0], [0, 0, 0, 0], [0], [1])[0].tolist() == [0, 0, 0, 0]
    assert sums([0, 0, 0, -1], [1], [0, 0, 0, 0], [0], [1])[1].tolist() == [0, 0, 1, 0], "another class is wrong there"
    # Its pixels count in a union, unlike those without a segment.
    assert sums([0, 0, 0, 0], [0], [0, 0, 0, 1], [0, 0], [0, 1])[0].tolist() == [0.75, 1, 0, 0]


def test_classes_that_are_nowhere_are_left_out_of_the_mean() -> None:
    table = torch.tensor([[1.5, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0.8, 1, 1, 0]])
    pq, sq, rq = qualities(table, range(4))
    assert pq == pytest.approx(100 * (0.75 + 0 + 0.8 / 1.5) / 3)
    assert sq == pytest.approx(100 * (0.75 + 0 + 0.8) / 3)
    assert rq == pytest.approx(100 * (1 + 0 + 1 / 1.5) / 3)
    assert all(math.isnan(value) for value in qualities(table, [2]))


def test_without_crowds_it_is_torchmetrics() -> None:
    draw, whole = torch.Generator().manual_seed(0), torch.zeros(4, 4, dtype=torch.float64)
    metric = PanopticQuality(things={0, 1}, stuffs={2, 3}, allow_unknown_preds_category=True, return_sq_and_rq=True)
    of_stuff = {2: 2, 3: 3}
    for _ in range(40):
        # Blocks, some of which the found map has from the truth and some not; stuff is one segment a kind.
        truth, found = (
            torch.randint(0, 6, (4, 4), generator=draw).repeat_interleave(3, 0).repeat_interleave(3, 1) for _ in "ab"
        )
        keep = (torch.rand(4, 4, generator=draw) < 0.8).repeat_interleave(3, 0).repeat_interleave(3, 1)
        found = torch.where(keep, truth, found)
        classes = torch.tensor([0, 0, 1, 1, 2, 3])
        there, numbers = truth.unique(return_inverse=True)
        ours, own = found.unique(return_inverse=True)
        whole += counted(
            Map(own, classes[ours].tolist()), numbers, classes[there], torch.zeros(len(there), dtype=torch.int64), 4
        )
        stacked = [
            torch.stack([classes[each], torch.where(classes[each] < 2, each, 0)], -1)[None] for each in (found, truth)
        ]
        metric.update(*stacked)
    assert of_stuff
    assert qualities(whole, range(4)) == pytest.approx((100 * metric.compute()).tolist(), rel=1e-6)
    assert 20 < qualities(whole, range(4))[0] < 95
