"""`calibnorm bench layer`: tiny cases measured for real, and what they are compared with."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calibnorm as cn
from bench.helpers import COLUMNS, CPU, read
from calibnorm.bench import authors, cases, clock, config, impls, layer, run, timings
from calibnorm.bench.summary import peer_table
from calibnorm.bench.values import expected, mismatch
from calibnorm.methods import METHODS
from calibnorm.nn import LAYERS
from lab.calling import main


@pytest.mark.usefixtures("pinned")
def test_layer_writes_the_table_its_ratios_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "layer", "--shapes", "2x4x5x5", "--dtypes", "float32", "--layouts", "NCHW", *CPU]
    threads = torch.get_num_threads()
    assert main([*args, "--ops", "norm", "norm+add+relu", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    rows = read(tmp_path / "layer.csv")
    assert list(rows[0]) == COLUMNS
    per_op = (len(impls.eager("norm")) + 1, len(impls.eager("norm+add+relu")) + 1)  # and a copy
    assert len(rows) == len(cases.MODES) * sum(per_op)
    baseline = {(r["op"], r["mode"]): float(r["p50_ms"]) for r in rows if r["impl"] == "nn.BatchNorm2d"}
    for row in rows:
        p20, p50, p80 = (float(row[name]) for name in ("p20_ms", "p50_ms", "p80_ms"))
        assert 0 < p20 <= p50 <= p80
        # The times are rounded to 1e-4 ms.
        assert float(row["ratio_to_bn"]) == pytest.approx(p50 / baseline[row["op"], row["mode"]], rel=0.1)
        assert row["threads"] == "1"
        assert row["torch"] == torch.__version__
    for name in ("layer.png", "layer-norm-add-relu.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    details = json.loads((tmp_path / "layer.json").read_text(encoding="utf-8"))
    assert details["config"]["shapes"] == ["2x4x5x5"]
    assert details["kernels"]["baseline"] == [f"native: float32 NCHW {mode}" for mode in sorted(cases.MODES)]
    assert details["wrong_values"] == []
    assert "cn.RBN2d" in (tmp_path / "layer.md").read_text(encoding="utf-8")
    assert "written: " in capsys.readouterr().out


@pytest.fixture
def _nothing_stays_registered() -> Iterator[None]:
    before = [set(registry) for registry in (METHODS, LAYERS)]
    yield
    for name in set(METHODS) - before[0]:
        del METHODS[name]
    for key in set(LAYERS) - before[1]:
        del LAYERS[key]


@pytest.mark.usefixtures("pinned", "_nothing_stays_registered")
def test_layers_of_every_method_and_of_registered_ones(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import calibnorm as cn\n"
        "@cn.register_method('of_the_test')\n"
        "def of_the_test(x, batch, p):\n"
        "    return batch.standardize(x.m)\n"
    )
    args = ["bench", "layer", "--load", str(mine), "--impls", "family", "--shapes", "2x4x3x3", "--ops", "norm"]
    args += ["--dtypes", "float32", "--layouts", "NCHW", "--modes", "forward+backward", *CPU]
    assert main([*args, "--out", str(tmp_path)]) == 0
    measured = {row["impl"] for row in read(tmp_path / "layer.csv")}
    assert {"nn.BatchNorm2d", "cn.GN2d", "cn.AN2d", "cn.GhostBN2d", "cn.OfTheTest2d"} <= measured
    assert len(measured) == 2 + len(cn.methods()) - 3  # the baseline and a copy; but BN, IEBN and RBN
    assert json.loads((tmp_path / "layer.json").read_text(encoding="utf-8"))["wrong_values"] == []


@pytest.mark.usefixtures("pinned")
def test_turns_have_changing_orders_that_are_the_same_in_every_run() -> None:
    def calls() -> list[str]:
        made: list[str] = []
        variants = {name: (lambda: None, partial(made.append, name)) for name in "ABCDEF"}
        times = clock.measure(variants, clock.Clock(), 30)
        assert [len(of.ms) for of in times.values()] == [30] * 6
        return made[-6 * 30 :]

    timed = calls()
    assert all(sorted(timed[i : i + 6]) == list("ABCDEF") for i in range(0, len(timed), 6))
    # A fixed order, or one that only starts elsewhere in each turn, gives every variant one neighbour nearly always.
    followed = set(pairwise(timed))
    assert all((before, after) in followed for before, after in permutations("ABCDEF", 2))
    assert calls() == timed


def test_a_peak_of_memory_is_what_lives_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> Tensor:
        first = torch.zeros(2**18)  # 1 MiB
        second = first + 1
        del first
        return torch.cat([second, second[:0]])

    assert clock.Clock(peaks=True).peak(run) == pytest.approx(2, abs=0.01)
    assert clock.Clock().peak(run) is None
    assert capfd.readouterr().err == "", "the profiler's own messages are dropped"


@pytest.mark.parametrize(("theirs", "ours"), [(authors.AuthorsIEBN, cn.IEBN2d), (authors.AuthorsRBN, cn.RBN2d)])
@pytest.mark.parametrize("training", [True, False])
def test_authors_formulations_equal_ours(theirs: type[nn.Module], ours: type[nn.Module], training: bool) -> None:
    values = impls.random_values(3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for make in (theirs, ours):
        module = make(3).double().train(training)
        impls.set_values(module, values)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        tensors = {"y": y.detach(), "x": leaf.grad}
        tensors |= {name.rpartition(".")[2]: p.grad.flatten() for name, p in module.named_parameters()}
        tensors |= {n.rpartition(".")[2]: b for n, b in module.named_buffers() if "running" in n}
        found.append(tensors)
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == {authors.AuthorsIEBN: 8, authors.AuthorsRBN: 9}[theirs]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.usefixtures("pinned")
def test_wrong_values_are_told_and_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(channels: int, op: str) -> tuple[nn.Module, impls.Call]:
        module, call = impls.EAGER["cn.RBN2d"].make(channels, op)
        return module, lambda x, residual: call(x, residual) * 1.01

    monkeypatch.setitem(impls.IMPLS, "cn.RBN2d", impls.EAGER["cn.RBN2d"]._replace(make=wrong))
    settings = config.LayerConfig(
        shapes=("2x4x5x5",),
        layouts=("NCHW",),
        dtypes=("float32",),
        ops=("norm",),
        modes=("forward",),
        impls=("cn.IEBN2d", "cn.RBN2d"),
        device="cpu",
        out=tmp_path,
    )
    assert run.run(settings) == 1
    assert [row["impl"] for row in read(tmp_path / "layer.csv")] == ["nn.BatchNorm2d", "cn.IEBN2d", "copy"]
    assert "cn.RBN2d, norm forward 2x4x5x5 float32 NCHW: output differs" in (tmp_path / "layer.md").read_text(
        encoding="utf-8"
    )
    monkeypatch.setitem(impls.IMPLS, impls.BASELINE, impls.EAGER[impls.BASELINE]._replace(make=wrong))
    assert run.run(settings) == 1
    assert read(tmp_path / "layer.csv") == []


def test_timms_layer_where_there_is_a_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    ops = {"norm+relu": True, "norm+add+relu": True, "norm": False}
    assert {op: impls.TIMMS in impls.eager(op) for op in ops} == ops
    settings = config.LayerConfig(impls=(impls.TIMMS,), shapes=("2x4x5x5",), device="cpu")
    measured = {case.op: settings.names(case) for case in settings.plan()}
    assert measured == {"norm": ["nn.BatchNorm2d"], "norm+relu": ["nn.BatchNorm2d", impls.TIMMS]}
    assert settings.skipped() == [f"skipped, {impls.TIMMS}: norm alone is nn.BatchNorm2d"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert impls.eager("norm+relu") == list(impls.EAGER)
    assert settings.skipped()[1] == f"skipped, {impls.TIMMS}: timm is not installed"


@pytest.mark.usefixtures("pinned")
def test_layers_beside_their_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair has the same values, or one of both would not be timed."""
    pytest.importorskip("timm")
    args = ["bench", "layer", "--impls", "peers", "--shapes", "2x32x5x5", "--dtypes", "float32", "bfloat16"]
    args += ["--layouts", "NCHW", "--ops", "norm", "--modes", "forward+backward", "eval", *CPU, "--out", str(tmp_path)]
    assert main(args) == 0
    rows = read(tmp_path / "layer.csv")
    measured = {dtype: {row["impl"] for row in rows if row["dtype"] == dtype} for dtype in ("float32", "bfloat16")}
    peers = {peer for peer, _ in impls.PEERS.values()}
    assert measured["float32"] == {impls.BASELINE, impls.COPY, *impls.PEERS, *peers}
    assert measured["float32"] - measured["bfloat16"] == {"timm.SEModule", "timm.FilterResponseNormAct2d"}
    details = json.loads((tmp_path / "layer.json").read_text(encoding="utf-8"))
    assert details["wrong_values"] == []
    assert [line for line in details["skipped"] if "SEModule" in line] == [
        "skipped, timm.SEModule: it takes no bfloat16 beside tensors of float32"
    ]
    table = peer_table([timings.Timing(**of(row)) for row in rows])
    assert table is not None
    assert [row[:2] for row in table.rows if row[2:4] == ["eval", "float32"]] == [
        [ours, peer] for ours, (peer, _) in impls.PEERS.items()
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert impls.timm_problem("timm.SEModule", "norm") == "timm is not installed"


def of(row: dict[str, str]) -> dict[str, Any]:
    """A row of the CSV with its numbers."""
    numbers = {"p20_ms", "p50_ms", "p80_ms", "gb_per_s", "ratio_to_bn", "peak_mib"}
    return {name: (float(text) if text else None) if name in numbers else text for name, text in row.items()}


def test_mismatch_names_what_is_wrong() -> None:
    x, dy = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    right = expected("rbn", "norm+relu", "forward+backward", impls.random_values(4, x.device), x, None, dy)
    assert mismatch(right, right, torch.float32, relu=True) is None
    cases_: list[tuple[list[Tensor], str]] = [
        ([right[0] * math.nan, right[1]], "output"),
        ([right[0], right[1] + 0.1], "gradient of x"),
        ([right[0].double(), right[1]], "torch.float64"),
        ([right[0][:1], right[1]], "output is (1, 4, 5, 5)"),
    ]
    for actual, named in cases_:
        assert named in str(mismatch(actual, right, torch.float32, relu=True))
    flipped = right[1].clone()
    flipped[0, 0, 0, 0] += 1
    assert mismatch([right[0], flipped], right, torch.float32, relu=True) is None  # one pixel in 200: a ReLU's flip
    assert mismatch([right[0], flipped], right, torch.float32, relu=False) is not None


def test_full_preset_is_what_was_asked_for() -> None:
    settings = config.LayerConfig(preset="full", device="cpu")
    plan = settings.plan()
    shapes = {cases.shape_name(case.shape) for case in plan}
    assert {"8x64x112x112", "32x2048x7x7", "32x64x112x112", "128x16x32x32", "128x256x8x8", "128x512x1x1"} <= shapes
    assert {case.dtype for case in plan} == {"float32", "bfloat16"}
    assert {case.layout for case in plan} == {"NCHW", "channels_last"}
    assert {case.mode for case in plan} == {"forward", "forward+backward", "eval"}
    assert {case.op for case in plan} == {"norm", "norm+relu", "norm+add+relu"}
    assert len(plan) == len(set(plan)) == len(shapes) * 2 * 2 * 3 * 3
    compiled = {cases.shape_name(case.shape) for case in plan if "compiled:cn.RBN2d" in settings.names(case)}
    assert compiled == set(cases.COMPILED)
    for case in plan:
        assert set(settings.names(case)) >= {"nn.BatchNorm2d", "cn.IEBN2d", "cn.RBN2d", "authors.IEBN", "authors.RBN"}


def test_compiled_implementations_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    impls.compile_problem.cache_clear()
    settings = config.LayerConfig(impls=("compiled:cn.RBN2d",), shapes=("2x4x5x5",), ops=("norm",), device="cpu")
    try:
        assert settings.skipped() == [
            "skipped, compiled implementations: torch.compile does not run here: no C++ compiler"
        ]
        case = settings.plan()[0]
        found = layer.measure_case(case, settings.names(case), settings, timings.Place.here(torch.device("cpu")))
        assert [row.impl for row in found.timings] == ["nn.BatchNorm2d", "copy"]
    finally:
        impls.compile_problem.cache_clear()
