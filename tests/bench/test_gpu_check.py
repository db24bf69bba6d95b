"""``benchmarks/gpu_check.py`` without a GPU: it says so, and what it times and writes runs on a CPU as well."""

from __future__ import annotations

import csv
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gpu_check as gpu
import pytest
import torch

import kernel_checks
from calibnorm.bench import impls, layer, networks
from calibnorm.bench.cases import Case
from calibnorm.bench.config import LayerConfig, ModelConfig
from calibnorm.bench.timings import Place
from calibnorm.ops.triton import passes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--out", tmp_path / "out"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("gpu_check: the kernels do not run here: ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quick_collector() -> Iterator[None]:
    """Each timing collects garbage first, a tenth of a second among pytest's and torch's objects: leave them out."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collector")
def test_what_it_times_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("norm", "forward+backward", (2, 4, 5, 5), "bfloat16", "channels_last")
    monkeypatch.setattr(gpu, "plan", lambda: iter([case]))
    monkeypatch.setattr(gpu, "HOST_CALLS", 20)
    monkeypatch.setattr(layer, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda device, mib: 10.0)
    steps = ModelConfig("resnet164", 1, 8, ("NCHW",), impls=(impls.BASELINE,), device="cpu")
    monkeypatch.setitem(networks.NETWORKS, "resnet164", lambda: networks.ResNet((1, 1, 1), 4, 10))
    monkeypatch.setattr(gpu, "networks", lambda device: [steps, replace(steps, network="resnet50")])

    def fail() -> None:
        raise RuntimeError("no memory\nmore")

    monkeypatch.setitem(networks.NETWORKS, "resnet50", fail)
    monkeypatch.setattr(gpu, "compile_problem", lambda: "no compiler")
    assert gpu.time_layers(CPU, tmp_path, time.perf_counter(), 300.0, []) == 1
    with (tmp_path / "gpu-layer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["impl"] for row in rows] == [*impls.EAGER, impls.COPY, impls.BASELINE]
    assert (rows[-1]["op"], rows[-1]["shape"]) == ("resnet164", "1x3x8x8")
    assert all(row["device"] for row in rows)
    with (tmp_path / "gpu-host.csv").open() as file:
        host = list(csv.DictReader(file))
    assert {row["mode"] for row in host} == {"host, forward", "host, forward+backward"}
    details = json.loads((tmp_path / "gpu-layer.json").read_text(encoding="utf-8"))
    assert details["cases"] == "1 of 1"
    assert details["wrong_values"] == ["resnet50 eager: RuntimeError: no memory"]
    assert gpu.time_layers(CPU, tmp_path, time.perf_counter() - 61, 60.0, ["a check"]) == 1
    assert json.loads((tmp_path / "gpu-layer.json").read_text(encoding="utf-8"))["cases"] == "0 of 1"
    assert "WRONG: a check" in (tmp_path / "gpu-layer.md").read_text(encoding="utf-8")


def test_the_plan_says_most_first() -> None:
    found = list(gpu.plan())
    assert len(found) == len(set(found))
    assert {case.layout for case in found[:72]} == {"NCHW", "channels_last"}
    assert {case.mode for case in found} == {"forward", "forward+backward", "eval"}


def test_training_steps_of_both_networks_without_any_other_package() -> None:
    settings = gpu.networks(CPU)
    assert [config.network for config in settings] == ["resnet50", "resnet164"]
    for config in settings:
        assert config.network in networks.NETWORKS
        assert {"cn.IEBN2d", "cn.RBN2d", "fused:nn.BatchNorm2d", "fused:cn.RBN2d"} <= set(config.names())


def test_checks_meet_every_setting() -> None:
    found = list(kernel_checks.cases(kernel_checks.SHAPES))
    for field in ("dtype", "rows", "given", "end", "method", "shape"):
        values = {getattr(case, field) for case in found}
        assert len(values) == {"dtype": 4, "rows": 2, "given": 2, "end": 4, "method": 5, "shape": 9}[field]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_failing_check_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> str | None:
        raise RuntimeError("no such kernel\nsecond line")

    checks = [("good", lambda: None), ("bad", lambda: "y is off"), ("worse", crash)]
    monkeypatch.setattr(kernel_checks, "all_checks", lambda device, interpreted: iter(checks))
    assert gpu.check_kernels(CPU, True) == ["bad: y is off", "worse: RuntimeError: no such kernel"]
    assert "1 of 3 checks passed" in capsys.readouterr().out
    monkeypatch.setattr(passes, "unavailable", lambda: None)
    monkeypatch.setattr(passes, "interpreted", lambda: True)
    assert gpu.run(Path("nowhere"), 1.0) == 1


@pytest.mark.parametrize(
    ("error", "lines"),
    [(torch.OutOfMemoryError("full"), 0), (RuntimeError("no cubin\nmore"), 1)],
    ids=["memory", "launch"],
)
def test_a_case_that_fails_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, lines: int
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(layer, "measure_case", fail)
    wrong: list[str] = []
    settings = LayerConfig(device="cpu")
    assert gpu.measure(next(gpu.plan()), [], settings, Place.here(CPU), wrong) == []
    assert wrong == ["norm forward+backward 64x64x112x112 bfloat16 channels_last: RuntimeError: no cubin"][:lines]
    assert ("not enough memory" in capsys.readouterr().out) == (lines == 0)
