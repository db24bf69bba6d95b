"""`calibnorm bench inference`: a tiny network measured for real, and what is not timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.helpers import CPU, read
from calibnorm.bench import command, config, inference, timings
from lab.calling import main

TINY = ["bench", "inference", "--network", "test_resnet", "--image-size", "16", *CPU]


@pytest.mark.usefixtures("pinned")
def test_every_way_to_run_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*TINY, "--batch-sizes", "1", "2", "--impls", "cn.IEBN2d", "folded:cn.IEBN2d", "--modes", "eager"]
    assert main([*args, "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "inference-test_resnet.csv")
    assert [(row["impl"], row["shape"]) for row in rows] == [
        (name, f"{size}x3x16x16") for size in (1, 2) for name in ("nn.BatchNorm2d", "cn.IEBN2d", "folded:cn.IEBN2d")
    ]
    said = capsys.readouterr().out
    assert "cn.fold, folded:cn.IEBN2d: 15 normalizations: 14 folded into the convolution before" in said
    assert "images/s" in (tmp_path / "inference-test_resnet.md").read_text(encoding="utf-8")


def small(*_: object) -> nn.Module:
    """A network with which exporting and compiling take a second."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.untraced
@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("mode", ["onnxruntime", "compiled"])
def test_exported_and_compiled_networks(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    else:
        compile_ = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compile_(self, backend="eager", **kwargs))
        monkeypatch.setattr(inference, "compile_problem", lambda: None)
    monkeypatch.setattr(inference, "build", small)
    settings = config.InferenceConfig(
        "resnet18", (2,), 8, impls=("cn.RBN2d", "folded:nn.BatchNorm2d"), modes=(mode,), device="cpu"
    )
    rows, wrong, _ = inference.run_inference(settings, timings.Place.here(torch.device("cpu")))
    torch.compiler.reset()
    assert wrong == []
    assert [(row.impl, row.mode) for row in rows] == [
        (name, f"inference, {mode}") for name in ("nn.BatchNorm2d", "cn.RBN2d", "folded:nn.BatchNorm2d")
    ]


@pytest.mark.usefixtures("pinned")
def test_a_network_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = timings.Place.here(torch.device("cpu"))
    settings = config.InferenceConfig("resnet18", (2,), 8, impls=("cn.RBN2d",), device="cpu")
    for broken, timed in (("cn.RBN2d", ["nn.BatchNorm2d"]), ("nn.BatchNorm2d", [])):
        found = {}
        for name in ("nn.BatchNorm2d", "cn.RBN2d"):
            torch.manual_seed(0)
            found[name] = small().eval()
            with torch.no_grad():
                found[name][4].bias.add_(torch.nan if name == broken else 0)  # type: ignore[index]
        monkeypatch.setattr(inference, "networks", lambda *_, found=found: found)
        rows, wrong, _ = inference.run_case(settings, place, 2, "NCHW", "eager")
        assert [row.impl for row in rows] == timed
        assert "the output differs by nan of the largest; not timed" in wrong[0]


def test_what_cannot_run_here_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    monkeypatch.setattr(inference, "compile_problem", lambda: "no compiler")
    settings = config.InferenceConfig("test_resnet", modes=("compiled", "onnxruntime"), device="cpu")
    assert inference.run_inference(settings, timings.Place.here(torch.device("cpu"))) == ([], [], {})
    said = capsys.readouterr().out
    assert "skipped, compiled: no compiler" in said
    assert "skipped, onnxruntime: needs onnx, onnxscript, onnxruntime, which is not installed" in said
    monkeypatch.undo()
    assert inference.problem("eager", torch.device("cuda")) is None


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-sizes", "0"], "--batch-sizes 0: must be at least 1"),
        (["--batch-sizes", "x"], "--batch-sizes x: must be one or more whole numbers"),
        (["--modes", "tensorrt"], "--modes tensorrt: is not known; choose from eager, compiled, onnxruntime"),
        (["--impls", "folded:x"], "--impls folded:x: is not known; choose from nn.BatchNorm2d"),
        (["--network", "resnet"], "--network resnet: no model of torchvision or timm has this name"),
    ],
)
def test_wrong_words(args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "inference", *CPU, "--out", str(tmp_path), *args]) == 2
    assert capsys.readouterr().err.startswith(f"calibnorm: {said}")


def test_settings_are_those_of_the_words() -> None:
    assert command.parse(["inference"]) == config.InferenceConfig()
    assert command.parse(["inference", "--batch-sizes", "2", "4"]) == config.InferenceConfig(batch_sizes=(2, 4))
    assert config.InferenceConfig(network="resnet164").to_dict()["image_size"] == 32
