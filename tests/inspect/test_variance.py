"""One-way random effects, simulated: unbiased estimates, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from calibnorm.inspect.variance import RandomEffects, Share, _t, share


def simulated(reps, images, draws, size, within, between=1.0, heavy=0.0, seed=0):
    """Yield effects of Gaussian vectors; with ``heavy`` images differ in their variance within, whose mean is kept."""
    draw = torch.Generator().manual_seed(seed)
    shape = (reps, images, draws, size)
    spread = torch.exp(heavy * torch.randn(reps, images, 1, 1, generator=draw, dtype=torch.float64) - heavy**2)
    noise = spread * within**0.5 * torch.randn(shape, generator=draw, dtype=torch.float64)
    effects = between**0.5 * torch.randn(reps, images, 1, size, generator=draw, dtype=torch.float64)
    for y in 3.0 + effects + noise:
        found = RandomEffects()
        for image in y:
            for values in image:
                found.add(values)
            found.next_image()
        yield found


@pytest.mark.parametrize("within", [0.01, 0.5, 4.0])
def test_both_variances_are_unbiased(within):
    found = [effects.components() for effects in simulated(150, 8, 3, 20, within)]
    for values, truth in zip(zip(*found, strict=True), (20 * within, 20.0), strict=True):
        values = torch.tensor(values)
        error = values.mean() - truth
        assert abs(error) < 4 * values.std() / len(values) ** 0.5
        assert values.std() / len(values) ** 0.5 < 0.05 * (1 + within) * 20, "too wide to find a bias"


@pytest.mark.parametrize(("size", "within", "heavy"), [(1, 0.3, 0.0), (20, 0.02, 0.0), (20, 0.5, 0.3)])
def test_intervals_cover_in_95_of_100_cases(size, within, heavy):
    truth, reps = within / (1 + within), 300
    shares = [share([effects]) for effects in simulated(reps, 8, 3, size, within, heavy=heavy)]
    held = sum(s.low <= truth <= s.high for s in shares)
    assert 0.91 * reps <= held < reps
    assert all(s.low < s < s.high for s in shares if 0 < s < 1)


def test_several_vectors_are_as_one():
    whole, left, right = RandomEffects(), RandomEffects(), RandomEffects()
    values = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for image in values:
        for y in image:
            for effects, part in ((whole, y), (left, y[:2]), (right, y[2:])):
                effects.add(part)
        for effects in (whole, left, right):
            effects.next_image()
    one, two = share([whole]), share([left, right])
    assert [two, two.low, two.high] == pytest.approx([one, one.low, one.high])
    within = values.var(1).sum(1).mean()
    between = values.mean(1).var(0).sum() - within / 4
    assert whole.components() == pytest.approx((within.item(), between.item()), rel=1e-6)
    assert one == pytest.approx((within / (within + between)).item(), rel=1e-6)


def test_what_does_not_change_has_a_share_of_exactly_nothing():
    for values in ([1e8, 1e8 + 8], [0.1, 0.1]):  # also where images do not differ
        effects = RandomEffects()
        for value in values:
            for _ in range(3):
                effects.add(torch.full((7,), value))
            effects.next_image()
        assert (found := share([effects])) == found.low == found.high == 0.0


def test_no_variance_between_images_is_found_to_be_possible():
    shares = [share([effects]) for effects in simulated(40, 8, 3, 5, 1.0, between=0.0)]
    assert {s > 1.0 for s in shares} == {True, False}
    assert all(0.0 <= s.low <= s.high <= 1.0 for s in shares)
    assert sum(s.high > 0.99 for s in shares) >= 34


def test_a_share_is_a_number():
    value = Share(0.25, 0.2, 0.31)
    for same in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (same, same.low, same.high, type(same)) == (0.25, 0.2, 0.31, Share)
    assert json.dumps({"own": value}) == '{"own": 0.25}'
    assert (f"{value}", f"{value:.1f}", repr(value), type(value.value)) == (str(value), "0.2", str(value), float)


def test_student_s_t():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 7: 2.3646, 15: 2.1314, 31: 2.0395, 1000: 1.9623}
    assert {freedom: _t(freedom) for freedom in table} == pytest.approx(table, rel=5e-4)
