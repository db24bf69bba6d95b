"""Means and intervals against scipy, and against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from scipy import stats

from calibnorm.lab.experiments.statistics import Interval, Sample

SAMPLES = [
    [93.1, 92.4],
    [45.4, 10.0, 74.2],
    [77.09, 77.2, 76.95, 77.01],
    list(np.random.default_rng(0).normal(90, 2, 30)),
]


def sample_of(values: Iterable[float]) -> Sample:
    return Sample(dict(enumerate(values)))


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_interval_is_scipys(values: list[float], confidence: float) -> None:
    low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    sample = sample_of(values)
    found = sample.interval(confidence)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert sample.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert sample.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_by_hand() -> None:
    # Tables give t = 12.706 for one degree of freedom and 4.303 for two.
    two, three = sample_of([1.0, 3.0]).interval(), sample_of([1.0, 2.0, 6.0]).interval()
    assert two is not None
    assert three is not None
    assert (two.low, two.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    half = 4.303 * math.sqrt(7) / math.sqrt(3)
    assert (three.low, three.high) == pytest.approx((3 - half, 3 + half), abs=2e-3)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert sample_of([5.0]).interval() is None
    assert sample_of([]).interval() is None
    assert math.isnan(sample_of([5.0]).std)
    assert sample_of([5.0]).mean == 5
    assert math.isnan(sample_of([]).mean)


def test_paired_differences_are_those_of_the_paired_t_test() -> None:
    ours = {0: 93.0, 1: 92.0, 2: 95.5, 3: 91.0}
    base = {3: 91.0, 2: 95.0, 1: 90.5, 0: 92.5, 7: 10.0}
    found = Sample(ours).minus(Sample(base))
    test = stats.ttest_rel(list(ours.values()), [base[seed] for seed in ours])
    low, high = test.confidence_interval(0.95)
    assert found.values == {0: 0.5, 1: 1.5, 2: 0.5, 3: 0.0}
    assert found.mean == pytest.approx(0.625)
    assert (found.count(lambda d: d > 0), found.count(lambda d: d < 0)) == (3, 0)
    interval = found.interval()
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    # What the pairing is for: the unpaired interval of these seeds is far wider.
    assert high - low < 0.5 * np.ptp(stats.ttest_ind(list(ours.values()), [92.5, 90.5, 95, 91]).confidence_interval())


def test_pairs_that_do_not_meet() -> None:
    one = Sample({0: 1.0, 5: 2.0}).minus(Sample({0: 3.0}))
    assert (one.mean, one.interval()) == (-2.0, None)
    assert (one.count(lambda d: d > 0), one.count(lambda d: d < 0)) == (0, 1)
    none = Sample({0: 1.0}).minus(Sample({1: 1.0}))
    assert math.isnan(none.mean)
    assert none.interval() is None


def test_interval_holds_its_ends() -> None:
    assert Interval(1.0, 2.0).holds(1.0)
    assert not Interval(1.0, 2.0).holds(2.5)


def test_coverage() -> None:
    """Of 2000 intervals from five normal values each, 95 % hold the truth, within four standard errors."""
    draws = np.random.default_rng(1).normal(3.0, 2.0, (2000, 5))
    held = sum(found.holds(3.0) for row in draws if (found := sample_of(row).interval()) is not None)
    assert abs(held / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
