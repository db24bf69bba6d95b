"""Which backend runs: said, asked for by name, never exchanged in silence; and an install without a compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import calibnorm as cn
from calibnorm.ops import dispatch
from calibnorm.ops.cpu import build, library, passes

ROOT = Path(__file__).resolve().parents[2]
built = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))


def test_backends_are_listed_with_what_they_run_or_why_not() -> None:
    found = cn.backends()
    assert list(found) == ["cpu", "triton", "reference"]
    assert found["reference"].runs
    assert found["cpu"].detail


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    library.load.cache_clear()
    try:
        status = cn.backends()["cpu"]
        assert not status.runs
        assert "python -m calibnorm.ops.build" in str(status)
        x = torch.randn(2, 3, 4, 4)
        assert dispatch.choose(x).name == "reference"
        assert cn.RBN2d(3)(x).shape == x.shape
        with pytest.raises(RuntimeError, match="does not run here"), cn.use_backend("cpu"):
            pass
    finally:
        library.load.cache_clear()


@built
def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "fingerprint", lambda: "0" * 16)
    library.load.cache_clear()
    try:
        assert "other sources" in cn.backends()["cpu"].detail
    finally:
        library.load.cache_clear()


@pytest.mark.parametrize(("package", "sibling"), [("cpu", "triton"), ("triton", "cpu")])
def test_a_backend_imports_nothing_of_the_other(package: str, sibling: str) -> None:
    sources = [*(ROOT / "src/calibnorm/ops" / package).rglob("*.py")]
    assert len(sources) > 4
    assert not [path for path in sources if f"calibnorm.ops.{sibling}" in path.read_text()]


def test_dispatch_alone_imports_the_backends() -> None:
    sources = {*(ROOT / "src/calibnorm/ops").glob("*.py")} - {ROOT / "src/calibnorm/ops/build.py"}  # the command
    named = {path.name for path in sources if re.search(r"calibnorm\.ops\.(cpu|triton)", path.read_text())}
    assert named == {"dispatch.py"}


@built
def test_asked_for_by_name() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert dispatch.choose(x).name == "cpu"
    with cn.use_backend("reference"):
        assert dispatch.choose(x).name == "reference"
    with cn.use_backend("cpu"):
        assert dispatch.choose(x).name == "cpu"
        with pytest.raises(RuntimeError, match="'cpu' was asked for by name"):
            dispatch.choose(torch.empty(2, 3, 4, 4, device="meta"))
    with pytest.raises(ValueError, match="choose one of cpu, triton, reference"):
        cn.use_backend("gpu")  # at the call, not where a block begins


@pytest.mark.parametrize("name", ["nonsense", "reference"])
def test_the_environment_variable(name: str) -> None:
    code = "import torch, calibnorm.ops.dispatch as d; print(d.choose(torch.ones(2, 3)).name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CALIBNORM_BACKEND": name}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if name == "reference":
        assert done.stdout.strip() == "reference"
    else:
        assert "CALIBNORM_BACKEND" in done.stderr


def test_modes_that_watch_operations_see_them() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        assert dispatch.choose(torch.ones(2, 3)).name == "reference"


def test_building_without_a_compiler_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "calibnorm.ops.build"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no C compiler was found" in done.stderr


def test_an_install_without_a_compiler_succeeds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(tmp_path / "build")],
        cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "plain torch serves instead" in done.stderr
    assert (tmp_path / "build" / "lib" / "calibnorm" / "__init__.py").exists()
    assert not list((tmp_path / "build").rglob("*.so"))
