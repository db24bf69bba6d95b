"""What is made of the measured times: quantiles, ratios, targets."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import targets

from bench.helpers import made
from calibnorm.bench import summary, timings
from calibnorm.bench.clock import Times
from calibnorm.report import markdown
from calibnorm.report.markdown import table_lines


def test_targets_are_judged_by_geometric_means(tmp_path: Path) -> None:
    rows = []
    for shape, ours in (("8x4x14x14", 1.0), ("8x4x28x28", 2.0), ("8x4x8x8", 4.0)):
        rows += [made("nn.BatchNorm2d", "forward", shape, 4.0), made("cn.RBN2d", "forward", shape, ours)]
        rows += [made("authors.RBN", "forward", shape, 8.0), made("compiled:cn.RBN2d", "forward", shape, 3.0)]
    outcomes = {outcome.target.label: outcome for outcome in targets.judge(rows, "cpu")}
    large = outcomes["float32 NCHW, planes 14x14 and larger"]
    assert (large.limit, large.cases, large.passed) == (0.28, 2, False)
    assert large.reached == pytest.approx(math.sqrt(0.25 * 0.5))
    assert outcomes["float32 NCHW, planes 7x7 and 8x8"].reached == 1
    assert outcomes["float32, of the authors' RBN"].reached == pytest.approx((1 / 8 * 2 / 8 * 4 / 8) ** (1 / 3))
    assert [outcome.target.device for outcome in targets.judge(rows, "cuda")] == []
    text = table_lines(summary.ratio_table(rows))
    assert len({len(line) for line in text}) == 1
    assert "0.35" in text[2]
    assert large.floor is None
    copied = [*rows, *(made("copy", "forward", shape, ms) for shape, ms in (("8x4x14x14", 1.0), ("8x4x28x28", 4.0)))]
    (large, *_) = targets.judge(copied, "cpu")
    assert large.floor == pytest.approx(3 / 2 * math.sqrt(0.25 * 1.0))  # forward moves x three times, a copy twice
    assert "copy" not in summary.impls_of(copied)
    assert "0.75" in table_lines(summary.ratio_table(copied))[2]
    assert "0.750" in table_lines(targets.target_table(copied, "cpu"))[2]
    files = markdown.write(summary.layer_report(timings.Measured(rows, [], {})), tmp_path / "layer.md")
    assert [path.name for path in files] == ["layer.md", "layer.png"]
    timings.write_timings(tmp_path / "layer.csv", copied)
    assert targets.read(tmp_path / "layer.csv") == copied


def test_quantiles_and_unsteady_rows() -> None:
    assert Times([float(n) for n in range(11)]).quantiles == (2, 5, 8)
    assert Times([float(n) for n in range(11)]).quantiles[1] == statistics.median(range(11))
    steady = made("cn.RBN2d", "forward", "8x4x8x8", 1.0)
    assert timings.unsteady([steady, replace(steady, p80_ms=1.6)]) == 1
