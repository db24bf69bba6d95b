"""Two processes that share statistics equal one process on the whole batch."""

from __future__ import annotations

import pytest
import torch

from distributed.pair import PATIENCE
from tolerances import ORACLE, rounding

METHODS = {
    "bn": {},
    "iebn": {},
    "rbn": {},
    "se": {"reduction": 2},
    "sn": {},
    "bcn": {"groups": 2},
    "an": {"mixtures": 3},
    "brn": {"start": 0, "r_batches": 10, "d_batches": 8},
}
VARIANTS = [
    *METHODS.items(),
    ("rbn", {"center_stat": "std", "scale_stat": "std"}),
    ("rbn", {"center_stat": "spatial_mean", "scale_stat": "spatial_std"}),
    ("rbn", {"over": "sn"}),
    ("iebn", {"operator": "fc", "position": "both"}),
    ("bn", {"noise": (0.5, 0.2)}),
]
PAPERS = ["bn", "iebn", "rbn"]
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
each_method = pytest.mark.parametrize("name", METHODS)
each_of_papers = pytest.mark.parametrize("name", PAPERS)


@each_variant
def test_even_uneven_and_empty_ranks(pair, name, options):
    pair("against_one_process", name, options, {}, (2, 3, 4, 0))


@each_of_papers
@pytest.mark.parametrize(
    "arguments", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=lambda a: next(iter(a))
)
def test_momentum_none_no_affine_no_tracking(pair, name, arguments):
    pair("against_one_process", name, {}, arguments, (1, 4))


@each_of_papers
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_float32_with_a_fused_residual_and_relu(pair, name, layout):
    bounds = 1e-5, 1e-4
    pair("against_one_process", name, {}, {}, (1, 4), (4, 4, 3, 5), torch.float32, layout, 0.0, bounds, True)


@each_of_papers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_with_float32_parameters(pair, name, dtype):
    # Both sides round once to the same dtype; statistics and sums are wide.
    bounds = rounding(dtype, 2), 1e-5
    pair("against_one_process", name, {}, {}, (1, 4), (4, 4, 3, 5), dtype, "channels_last", 0.0, bounds)


@each_of_papers
def test_one_value_a_channel_on_every_rank(pair, name):
    pair("against_one_process", name, {}, {}, (1,), (2, 4, 1, 1))


@each_of_papers
def test_large_means_lose_nothing(pair, name):
    # The same float32 pixels on both sides: what differs is the merge of the processes, which wide buffers show. The
    # ranks' gradients of RBN's w_m are of the mean's size and cancel, so that bound is the mean's.
    wide = {"dtype": torch.float64}
    bounds = 1e-5, 1e6 * ORACLE
    pair("against_one_process", name, {}, wide, (1,), (4, 4, 3, 5), torch.float32, "contiguous", 1e6, bounds)


@pytest.mark.parametrize(("name", "options"), [("bn", {}), ("iebn", {}), ("rbn", {}), ("an", {"mixtures": 3})], ids=str)
def test_image_sizes_differ(pair, name, options):
    pair("image_sizes_differ", name, options)


@each_method
def test_one_collective_each_way(pair, name):
    pair("one_collective_each_way", name, METHODS[name])


@pytest.mark.parametrize("how", ["eval", "no statistics", "frozen", "gn"])
def test_nothing_is_exchanged_without_need(pair, how):
    pair("silent", how)


def test_every_rank_empty(pair):
    pair("all_empty")


def test_one_value_over_all_processes_is_refused_on_all(pair):
    for message in pair("refused", "rbn", {}, ((1, 4, 1, 1), (0, 4, 1, 1))):
        assert "one value per channel over all 2 processes" in message
    for message in pair("refused", "an", {"mixtures": 3}, ((1, 4, 3, 5), (0, 4, 3, 5))):
        assert "one instance, which has no variance of attention, over all 2 processes" in message


def test_ghost_batches_are_refused_by_name(pair):
    for message in pair("refused", "ghost", {"size": 2}, ((2, 4, 3, 5),) * 2):
        assert "GhostBN2d: ghost batches are small on purpose" in message


def test_process_group_of_the_child(pair):
    pair("own_group")


def test_double_backward(pair):
    pair("twice_differentiable")


def test_compiled(pair):
    pair("compiled", "rbn", {})


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in METHODS if name != "rbn"])
def test_every_method_compiled(pair, name):
    pair("compiled", name, METHODS[name])


def test_a_rank_that_never_comes_ends_in_the_groups_timeout(pair):
    assert 0.5 < pair("waits_no_longer_than_the_timeout")[0] < PATIENCE / 4


def test_a_rank_that_ends_is_noticed_at_once(pair):
    """The last test here: the next check starts two new processes, which takes seconds."""
    with pytest.raises(AssertionError) as failure:
        pair("other_rank_ends")
    # Rank 0 got its error and ended well; the one message is about rank 1, gone with 3.
    assert str(failure.value) == "rank 1:\nthe process ended with 3"
