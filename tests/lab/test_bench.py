"""`calibnorm bench`: tiny cases measured for real, and what it refuses."""

from __future__ import annotations

import csv
import gc
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import calibnorm as cn
from calibnorm.lab import cli
from calibnorm.lab.bench import (
    authors,
    cases,
    clock,
    config,
    impls,
    layer,
    model,
    networks,
    plots,
    run,
    start,
    summary,
    table,
    targets,
)
from calibnorm.lab.bench.clock import Times
from calibnorm.lab.bench.table import Row
from calibnorm.lab.bench.values import expected, mismatch
from calibnorm.methods import METHODS
from calibnorm.nn import LAYERS

# The list of shared/PERFORMANCE.md, "How to measure".
COLUMNS = [
    *("op", "impl", "mode", "shape", "dtype", "layout", "p20_ms", "p50_ms", "p80_ms", "gb_per_s", "ratio_to_bn"),
    *("peak_mib", "device", "torch", "triton", "threads", "commit", "date"),
]
CPU = ["--device", "cpu"]


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the command believe that its allocator is pinned, so that it does not replace this process; be quick."""
    for name, value in start.ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(layer, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(run, "copy_bandwidth", partial(clock.copy_bandwidth, mib=1))
    gc.freeze()  # each measurement collects garbage first, a tenth of a second among pytest's and torch's objects
    yield
    gc.unfreeze()


def main(args: list[str]) -> int | str | None:
    """Return the exit status, whether main returns it or tyro raises it."""
    try:
        return cli.main(args)
    except SystemExit as stop:
        return stop.code


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
def test_model_times_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # timm's smallest: a step of resnet18 takes ten times as long.
    args = ["bench", "model", "--network", "test_resnet", "--batch-size", "2", "--image-size", "32", *CPU]
    args += ["--layouts", "channels_last", "--impls", "cn.RBN2d", "fused:cn.RBN2d"]
    assert main([*args, "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "model-test_resnet.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["impl"] for row in rows] == ["nn.BatchNorm2d", "cn.RBN2d", "fused:cn.RBN2d"]
    assert [row["shape"] for row in rows] == ["2x3x32x32"] * 3
    assert {row["mode"] for row in rows} == {"training step"}
    for row in rows:
        ratio = float(row["p50_ms"]) / float(rows[0]["p50_ms"])
        assert float(row["ratio_to_bn"]) == pytest.approx(ratio, rel=1e-3)
    assert "cn.fuse, test_resnet: " in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is pinned on Linux only")
def test_a_process_pins_its_allocator_and_needs_no_other_package_of_the_lab(tmp_path: Path) -> None:
    for name in ("sklearn", "tyro", "rich"):
        (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)")
    command = [sys.executable, "-m", "calibnorm.lab.bench", "layer", "--shapes", "2x4x2x2", "--dtypes", "float16"]
    command += ["--layouts", "NCHW", "--ops", "norm", "--modes", "forward", "--impls", "cn.BN2d", *CPU]
    clean = {name: value for name, value in os.environ.items() if name not in start.ALLOCATOR}
    clean["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [clean.get("PYTHONPATH")])])
    done = subprocess.run([*command, "--out", str(tmp_path)], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["impl"] for row in read(tmp_path / "layer.csv")] == ["nn.BatchNorm2d", "cn.BN2d", "copy"]
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("pinned")
def test_turns_have_changing_orders_that_are_the_same_in_every_run() -> None:
    def calls() -> list[str]:
        made: list[str] = []
        variants = {name: (lambda: None, partial(made.append, name)) for name in "ABCDEF"}
        times = clock.measure(variants, clock.CpuClock(), 30)
        assert [len(of.ms) for of in times.values()] == [30] * 6
        return made[-6 * 30 :]

    timed = calls()
    assert all(sorted(timed[i : i + 6]) == list("ABCDEF") for i in range(0, len(timed), 6))
    # A fixed order, or one that only starts elsewhere in each turn, gives every variant one neighbour nearly always.
    followed = set(pairwise(timed))
    assert all((before, after) in followed for before, after in permutations("ABCDEF", 2))
    assert calls() == timed


def test_pinning_runs_the_command_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    for name in start.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    start.pin_allocator()
    ((path, args, environment),) = calls
    assert (path, args) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert start.ALLOCATOR.items() <= environment.items()
    for name, value in start.ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    start.pin_allocator()
    assert len(calls) == 1


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["layer", "--preset", "huge"], "--preset huge"),
        (["layer", "--shapes", "4x4"], "--shapes 4x4"),
        (["layer", "--shapes", "1x4x1x1"], "--shapes 1x4x1x1"),
        (["layer", "--layouts", "NHWC"], "--layouts NHWC"),
        (["layer", "--dtypes", "int8"], "--dtypes int8"),
        (["layer", "--ops", "relu"], "--ops relu"),
        (["layer", "--modes", "backward"], "--modes backward"),
        (["layer", "--impls", "cn.XN2d"], "--impls cn.XN2d"),
        (["layer", "--load", "no_such_file.py"], "--load no_such_file.py"),
        (["layer", "--load", "no_such_module"], "--load no_such_module"),
        (["layer", "--repeats", "5"], "--repeats 5"),
        (["layer", "--threads", "0"], "--threads 0"),
        (["layer", "--device", "tpu"], "--device tpu"),
        (["layer", "--device", "cuda:99"], "--device cuda:99"),
        (["model", "--batch-size", "0"], "--batch-size 0"),
        (["model", "--image-size", "0"], "--image-size 0"),
        (["model", "--impls", "authors.RBN"], "--impls authors.RBN"),
        (["model", "--impls", "fused:authors.RBN"], "--impls fused:authors.RBN"),
        (["model", "--modes", "lazy"], "--modes lazy"),
        (["model", "--modes", "graph", *CPU], "--modes graph"),
        (["model", "--network", "test_efficientnet", "--impls", "fused:cn.RBN2d"], "--impls fused:cn.RBN2d"),
        (["model", "--network", "resnet1"], "--network resnet1"),
        (["model", "--network", "squeezenet1_1"], "--network squeezenet1_1"),
    ],
)
def test_wrong_input_is_named_before_timing(
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("timing started")

    monkeypatch.setattr(layer, "measure", measure)
    monkeypatch.setattr(model, "measure", measure)
    monkeypatch.setattr(run, "copy_bandwidth", measure)
    for command in (main, lambda rest: start.main(rest[1:])):
        assert command(["bench", *args, "--out", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"calibnorm: {named}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pinned")
def test_folders_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        assert main(["bench", "layer", "--out", str(out)]) == 2
        assert "--out" in capsys.readouterr().err
    with pytest.raises(config.UsageError, match="--layouts: name at least one"):
        config.ModelConfig(layouts=())


@pytest.mark.usefixtures("pinned")
def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "copy_bandwidth", interrupt)
    assert start.main(["layer", "--out", str(tmp_path)]) == 130
    assert "nothing was written" in capsys.readouterr().err


def test_both_parsers_agree() -> None:
    args = ["layer", "--shapes", "tiny", "2x4x5x5", "--repeats", "30", "--threads", "1", "--out", "here", *CPU]
    chosen = config.LayerConfig(shapes=("tiny", "2x4x5x5"), repeats=30, threads=1, out=Path("here"), device="cpu")
    assert start.parse(args) == chosen
    assert start.parse(["model"]) == config.ModelConfig()
    assert config.LayerConfig().out == config.ModelConfig().out == Path("benchmarks/results")


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

    monkeypatch.setitem(impls.IMPLS, "cn.RBN2d", replace(impls.EAGER["cn.RBN2d"], make=wrong))
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
    assert "cn.RBN2d, norm forward 2x4x5x5 float32 NCHW: output differs" in (tmp_path / "layer.md").read_text()
    monkeypatch.setitem(impls.IMPLS, impls.BASELINE, replace(impls.EAGER[impls.BASELINE], make=wrong))
    assert run.run(settings) == 1
    assert read(tmp_path / "layer.csv") == []


def test_a_model_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def networks(broken: str) -> dict[str, nn.Module]:
        found = {}
        for name in ("nn.BatchNorm2d", "cn.RBN2d"):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            if name == broken:
                with torch.no_grad():
                    network[1].bias[0] = math.nan if name == "nn.BatchNorm2d" else 3
            found[name] = network
        return found

    settings = config.ModelConfig(network="resnet18", batch_size=2, image_size=8, impls=("cn.RBN2d",), device="cpu")
    place = table.Place.here(torch.device("cpu"))
    for broken, timed in (("cn.RBN2d", ["nn.BatchNorm2d"]), ("nn.BatchNorm2d", [])):
        monkeypatch.setattr(model, "networks", lambda *_, broken=broken: networks(broken))
        rows, wrong = model.run_case(settings, place, "float32", "NCHW")
        assert [row.impl for row in rows] == timed
        assert wrong[0].startswith(f"{broken}, resnet18 float32 NCHW: the first loss is ")


def test_a_fused_network_is_held_against_the_unfused_one_too() -> None:
    losses = {"nn.BatchNorm2d": 1.0, "cn.RBN2d": 1.0009, "fused:cn.RBN2d": 0.9995, "fused:cn.IEBN2d": 1.0005}
    assert model.unlike("fused:cn.RBN2d", losses, 1e-3) == "the first loss is 0.999500 instead of 1.000900"
    assert model.unlike("fused:cn.RBN2d", losses, 2e-3) == ""
    assert [model.unlike(name, losses, 1e-3) for name in ("cn.RBN2d", "fused:cn.IEBN2d")] == ["", ""]
    assert "nan" in model.unlike("fused:cn.RBN2d", losses | {"fused:cn.RBN2d": math.nan}, 1.0)


def test_fused_networks_are_fused_and_keep_the_state_dict() -> None:
    settings = config.ModelConfig(network="test_resnet", impls=("fused:nn.BatchNorm2d", "fused:cn.IEBN2d"))
    found = model.networks(settings, [*settings.names(), "cn.IEBN2d"])
    plain = {type(module) for module in found["nn.BatchNorm2d"].modules()}
    for name in ("fused:nn.BatchNorm2d", "fused:cn.IEBN2d"):
        unfused = found[name.removeprefix("fused:")]
        assert {type(module) for module in found[name].modules()} - {type(module) for module in unfused.modules()}
        for (key, tensor), (other, expected_) in zip(
            found[name].state_dict().items(), unfused.state_dict().items(), strict=True
        ):
            assert key == other
            assert torch.equal(tensor, expected_)
    assert nn.BatchNorm2d in plain


def test_resnet164_is_that_of_the_papers() -> None:
    network = networks.resnet164()
    main_path = [m for name, m in network.named_modules() if "downsample" not in name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in main_path) == 164
    # The IEBN paper's Table 1, "#P(M)": 1.70 and 1.73 for 10 and 100 classes with BN; with IEBN 1.73 and 1.75.
    count = sum(p.numel() for p in network.parameters())
    hundred = 90 * (256 + 1)
    assert (f"{count / 1e6:.2f}", f"{(count + hundred) / 1e6:.2f}") == ("1.70", "1.73")
    shapes: set[tuple[int, int]] = set()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, y: shapes.add((y.shape[1], y.shape[2])))
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert shapes >= set(cases.RESNET164)
    converted = sum(p.numel() for p in cn.convert(network, "iebn").parameters())
    assert (f"{converted / 1e6:.2f}", f"{(converted + hundred) / 1e6:.2f}") == ("1.73", "1.75")


def test_resnet50_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = networks.resnet50().eval(), torchvision.models.resnet50().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_image_size_by_network() -> None:
    sizes = [config.ModelConfig(network=name).pixels for name in ("resnet164", "resnet50", "resnet18")]
    assert sizes == [32, 224, 224]
    assert config.ModelConfig(network="resnet164", image_size=64).to_dict()["image_size"] == 64
    assert config.ModelConfig(network="resnet164").to_dict()["image_size"] == 32


@pytest.mark.usefixtures("pinned")
def test_compiled_networks_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "compile_problem", lambda: "no compiler")
    settings = config.ModelConfig(network="test_resnet", modes=("compiled",), device="cpu")
    assert model.run_model(settings, table.Place.here(torch.device("cpu")), print) == ([], [])
    assert "skipped, compiled networks: no compiler" in capsys.readouterr().out


@pytest.mark.usefixtures("pinned")
def test_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, compile_ = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compile_(self, backend=counter, **kwargs))
    monkeypatch.setitem(networks.NETWORKS, "resnet164", lambda: networks.ResNet((1,), 4, 10))
    settings = config.ModelConfig("resnet164", 2, 8, impls=("fused:cn.RBN2d",), modes=("compiled",), device="cpu")
    rows, wrong = model.run_case(settings, table.Place.here(torch.device("cpu")), "float32", "NCHW", "compiled")
    torch.compiler.reset()
    assert wrong == []
    assert [(row.impl, row.mode) for row in rows] == [
        ("nn.BatchNorm2d", "training step, compiled"),
        ("fused:cn.RBN2d", "training step, compiled"),
    ]
    assert counter.frame_count == 2  # one graph each


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
        found = layer.measure_case(case, settings.names(case), settings, table.Place.here(torch.device("cpu")))
        assert [row.impl for row in found.rows] == ["nn.BatchNorm2d", "copy"]
    finally:
        impls.compile_problem.cache_clear()


def made(impl: str, mode: str, shape: str, ms: float, **of: str) -> Row:
    place = {"device": "x", "torch": "2", "triton": "", "threads": 2, "commit": "", "date": ""}
    what = {"op": "norm", "dtype": "float32", "layout": "NCHW", **of}
    times = {"p20_ms": ms, "p50_ms": ms, "p80_ms": ms, "gb_per_s": None, "ratio_to_bn": ms / 4, "peak_mib": None}
    return Row(impl=impl, mode=mode, shape=shape, **what, **times, **place)


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
    text = summary.ratio_table(rows)
    assert len({len(line) for line in text}) == 1
    assert "0.35" in text[2]
    assert large.floor is None
    copied = [*rows, *(made("copy", "forward", shape, ms) for shape, ms in (("8x4x14x14", 1.0), ("8x4x28x28", 4.0)))]
    (large, *_) = targets.judge(copied, "cpu")
    assert large.floor == pytest.approx(3 / 2 * math.sqrt(0.25 * 1.0))  # forward moves x three times, a copy twice
    assert "copy" not in summary.impls_of(copied)
    assert "0.75" in summary.ratio_table(copied)[2]
    assert "0.750" in summary.target_table(copied, "cpu")[2]
    assert [path.name for path in plots.draw(rows, "cpu", tmp_path, "layer")] == ["layer.png"]


def test_quantiles_and_unsteady_rows() -> None:
    assert Times([float(n) for n in range(11)]).quantiles == (2, 5, 8)
    assert Times([float(n) for n in range(11)]).quantiles[1] == statistics.median(range(11))
    steady = made("cn.RBN2d", "forward", "8x4x8x8", 1.0)
    assert table.unsteady([steady, replace(steady, p80_ms=1.6)]) == 1
