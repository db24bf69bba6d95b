"""Offsets of tensors too large for a test: more than 2^31 elements, and more than 2^31 pixels in one plane."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

from calibnorm.ops.triton import config, passes  # noqa: E402
from calibnorm.ops.triton.kernels.pixels import extents, locate  # noqa: E402

DEVICE = "cpu" if passes.interpreted() else "cuda"


@triton.jit(do_not_specialize=["pid", "total", "c_units", "s_units", "tiles", "splits"])
def where(
    found, pid, total, c_units, s_units, tiles, splits,
    CW: tl.constexpr, SW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The first plane of a program, where its first and its last element lie, where its result goes, and its pixels."""
    C, S = extents(c_units, s_units, CW, SW)
    planes, _valid, at, within, to, count = locate(pid.to(tl.int64), total, C, S, tiles, splits, ROWS, P, B)
    tl.store(found, tl.min(planes, 0).to(tl.int64))
    tl.store(found + 1, at)
    tl.store(found + 2, at + tl.max(tl.max(within, 1), 0))
    tl.store(found + 3, tl.min(to, 0).to(tl.int64))
    tl.store(found + 4, count.to(tl.int64))


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("n", "c", "s"),
    [(2**12, 64, 112 * 112), (2**21, 3000, 1), (2, 3, 2**31 + 48), (300, 2**20, 49), (1, 16, 3 * 2**30 + 1)],
    ids=str,
)
def test_programs_know_where_they_are(n: int, c: int, s: int, rows: bool) -> None:
    assert n * c * s > 2**31
    cut = config.plan(rows, n, c, s, 2)
    extents = (n * c, c // cut.CW, s // cut.SW, cut.tiles, cut.splits)
    for pid in (0, cut.programs // 2, cut.programs - 1):
        found = torch.zeros(5, dtype=torch.int64, device=DEVICE)
        where[(1,)](found, pid, *extents, CW=cut.CW, SW=cut.SW, ROWS=rows, P=cut.P, B=cut.B)
        if rows:
            blocks = -(-c // cut.P)
            block, split, instance = pid % blocks, pid // blocks % cut.splits, pid // blocks // cut.splits
            start = split * cut.chunk
            plane, first = instance * c + block * cut.P, (instance * s + start) * c + block * cut.P
            last = first + (cut.B - 1) * c + cut.P - 1
        else:
            unit, split = divmod(pid, cut.splits)
            start, plane = split * cut.chunk, unit * cut.P
            first = plane * s + start
            last = first + (cut.P - 1) * s + cut.B - 1
        assert found.tolist() == [plane, first, last, split * n * c + plane, min(s - start, cut.chunk)]
