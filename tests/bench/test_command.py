"""The command `calibnorm bench`: what it refuses, how it starts and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.helpers import CPU, read
from calibnorm.bench import command, config, layer
from lab.calling import main


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is pinned on Linux only")
def test_a_process_pins_its_allocator_and_needs_no_other_package_of_the_lab(tmp_path: Path) -> None:
    for name in ("sklearn", "tyro", "rich"):
        (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)")
    line = [sys.executable, "-m", "calibnorm.bench", "layer", "--shapes", "2x4x2x2", "--dtypes", "float16"]
    line += ["--layouts", "NCHW", "--ops", "norm", "--modes", "forward", "--impls", "cn.BN2d", *CPU]
    clean = {name: value for name, value in os.environ.items() if name not in command.ALLOCATOR}
    clean["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [clean.get("PYTHONPATH")])])
    done = subprocess.run([*line, "--out", str(tmp_path)], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["impl"] for row in read(tmp_path / "layer.csv")] == ["nn.BatchNorm2d", "cn.BN2d", "copy"]
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")


def test_pinning_runs_the_command_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    for name in command.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    command.pin_allocator()
    ((path, args, environment),) = calls
    assert (path, args) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert command.ALLOCATOR.items() <= environment.items()
    for name, value in command.ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    command.pin_allocator()
    assert len(calls) == 1


@pytest.mark.usefixtures("no_timing")
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
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (main, lambda rest: command.main(rest[1:])):
        assert call(["bench", *args, "--out", str(tmp_path)]) == 2
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
    with pytest.raises(config.UsageError, match=r"^layouts: name at least one"):
        config.ModelConfig(layouts=())


@pytest.mark.usefixtures("pinned")
def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer, "copy_bandwidth", interrupt)
    assert command.main(["layer", "--out", str(tmp_path)]) == 130
    assert "nothing was written" in capsys.readouterr().err


def test_words_become_settings() -> None:
    args = ["layer", "--shapes", "tiny", "2x4x5x5", "--repeats", "30", "--threads", "1", "--out", "here", *CPU]
    chosen = config.LayerConfig(shapes=("tiny", "2x4x5x5"), repeats=30, threads=1, out=Path("here"), device="cpu")
    assert command.parse(args) == chosen
    assert command.parse(["model"]) == config.ModelConfig()
    more = ["--image_size=64", "--threads", "none", "--impls", "cn.BN2d", "fused:cn.RBN2d"]
    impls = ("cn.BN2d", "fused:cn.RBN2d")
    assert command.parse(["model", *more]) == config.ModelConfig(image_size=64, impls=impls)
    assert config.LayerConfig().out == config.ModelConfig().out == Path("runs/bench")
