"""`calibnorm export`: every file computes what the trained network does, and says what it takes and gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from calibnorm.lab.classifier import folding, predict
from calibnorm.lab.classifier.opening import Deployed, opened
from lab.calling import main
from lab.classifier.conftest import Left


@pytest.fixture(scope="module")
def expected(left: Left) -> tuple[Tensor, Tensor]:
    """Pictures, and their probabilities."""
    torch.manual_seed(0)
    pictures = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        return pictures, Deployed(opened(left.run))(pictures)


def check(details: dict[str, str], left: Left) -> None:
    assert json.loads(details["classes"]) == ["cat", "dog", "owl"]
    assert json.loads(details["pixels"])["short"] == 18
    assert json.loads(details["recipe"])["norm"] == "iebn"


@pytest.mark.untraced
def test_onnx(left: Left, tmp_path: Path, expected: tuple[Tensor, Tensor]) -> None:
    import onnxruntime

    assert main(["export", str(left.run), "--out", str(tmp_path / "c.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx", providers=["CPUExecutionProvider"])
    check(session.get_modelmeta().custom_metadata_map, left)
    for count in (5, 1):
        (found,) = session.run(["probabilities"], {"pictures": expected[0][:count].numpy()})
        np.testing.assert_allclose(found, expected[1][:count].numpy(), atol=1e-5)


@pytest.mark.untraced
def test_a_folded_network_says_the_same(left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a calibrated layer and without a BatchNorm in it, and it says so."""
    import onnx
    import onnxruntime

    given = ["--fold", str(left.root / "folders" / "train"), "--tolerance", "0.5"]
    assert main(["export", str(left.run), *given, "--out", str(tmp_path / "f.onnx")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("10 calibrated layers: 10 folded, 0 left\n")
    assert "images that were not used to choose, the outputs change by " in said
    session = onnxruntime.InferenceSession(tmp_path / "f.onnx", providers=["CPUExecutionProvider"])
    details = session.get_modelmeta().custom_metadata_map
    check(details, left)
    assert details["folding"] in said
    kinds = {node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node}
    assert "Conv" in kinds
    assert not kinds & {"BatchNormalization", "Sigmoid"}
    classifier = opened(left.run)
    paths = sorted(left.test.rglob("*.*"))[:4]
    read = torch.stack([folding.whole(predict.seen(path, classifier.pixels)) for path in paths]).float() / 255
    with torch.no_grad():
        expected = Deployed(classifier)(read)
    (found,) = session.run(["probabilities"], {"pictures": read.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=0.05)


@pytest.mark.untraced
def test_a_program_of_torch_export(left: Left, tmp_path: Path, expected: tuple[Tensor, Tensor]) -> None:
    assert main(["export", str(left.run), "--out", str(tmp_path / "c.pt2")]) == 0
    details = {"calibnorm.json": ""}
    program = torch.export.load(tmp_path / "c.pt2", extra_files=details).module()
    check(json.loads(details["calibnorm.json"]), left)
    for count in (5, 1):
        torch.testing.assert_close(program(pictures=expected[0][:count]), expected[1][:count], atol=1e-5, rtol=0)


def test_safetensors(left: Left, tmp_path: Path) -> None:
    from safetensors import safe_open

    assert main(["export", str(left.run / "best.pt"), "--out", str(tmp_path / "c.safetensors")]) == 0
    state = opened(left.run / "best.pt").network.state_dict()
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        check(file.metadata(), left)
        assert {name: file.get_tensor(name) for name in file.keys()}.keys() == state.keys()  # noqa: SIM118
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in state.items())


def test_a_missing_package_and_a_full_disk_are_named(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(left.run), "--out", "/proc/c.safetensors"]) == 2
    assert "--out /proc/c.safetensors: cannot be written" in capsys.readouterr().err
    monkeypatch.setattr("calibnorm.lab.exporting.find_spec", lambda name: None)
    assert main(["export", str(left.run), "--out", "c.onnx"]) == 2
    assert capsys.readouterr().err == "calibnorm: --out c.onnx: needs onnx, onnxscript; pip install onnx onnxscript\n"
