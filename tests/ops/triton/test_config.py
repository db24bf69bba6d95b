"""How work is cut, which needs neither triton nor a GPU."""

from __future__ import annotations

import math

import pytest

from calibnorm.ops.triton import config
from triton_cuts import CUT, SMALL


def test_config_cuts_these() -> None:
    """Every way to cut work is among the shapes."""
    plans = []
    for rows in (False, True):
        for shape in CUT.values():
            n, c, s = shape[0], shape[1], math.prod(shape[2:])
            cut = config.plan(rows, n, c, s, 4, SMALL)
            assert cut.splits * cut.chunk >= s > (cut.splits - 1) * cut.chunk, "a program without pixels"
            plans.append((rows, cut, s))
    for rows in (False, True):
        cuts = [(cut, s) for r, cut, s in plans if r is rows]
        assert any(cut.splits > 1 and cut.tiles > 1 and s % cut.chunk for cut, s in cuts)
        assert any(cut.splits == 1 and cut.tiles > 1 for cut, s in cuts)
        assert any(cut.P > 1 for cut, _ in cuts)


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("item_size", [2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 1, 1), (64, 512, 49), (1, 3, 512 * 512), (8, 64, 2**23)], ids=str)
def test_every_pixel_has_one_program(shape: tuple[int, int, int], item_size: int, rows: bool) -> None:
    n, c, s = shape
    cut = config.plan(rows, n, c, s, item_size)
    groups = n * -(-c // cut.P) if rows else -(-n * c // cut.P)
    assert cut.programs == groups * cut.splits
    assert (cut.splits - 1) * cut.chunk < s <= cut.splits * cut.chunk
    assert config.CONFIG.tile >= cut.P * cut.B
    assert c % cut.CW == s % cut.SW == 0
    assert cut.splits == 1 or cut.programs <= config.CONFIG.programs


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("item_size", [2, 4, 8])
@pytest.mark.parametrize(("n", "c", "s"), [(1, 1, 1), (9, 3, 1), (64, 512, 49), (64, 2048, 49), (3, 65, 784)], ids=str)
def test_whole_planes_have_one_program(n: int, c: int, s: int, item_size: int, rows: bool) -> None:
    found = config.whole(rows, n, c, s, item_size)
    if found is None:
        assert rows
        assert item_size == 8 or s == 784  # 4 channels of 1024 pixels would fit, but 8 are 32 bytes
        return
    cut, warps = found
    assert cut.programs == (n * -(-c // cut.P) if rows else -(-n * c // cut.P))
    tile = cut.P * cut.B
    assert s <= cut.B
    assert tile <= config.CONFIG.on_chip
    assert tile <= 32 * 32 * warps, "a thread's share grew"
    assert 4 <= warps <= 16


def test_large_planes_are_not_kept_whole() -> None:
    assert config.whole(False, 2, 3, 129 * 129, 2) is None
    assert config.whole(True, 2, 64, 56 * 56, 2) is None
