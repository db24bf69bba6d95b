"""What an install builds: the wheel's tag says what is in it, also where the compiler fails."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "calibnorm/csrc/_calibnorm_cpu.so"
# Writes what follows -o: a build in milliseconds, since the tag depends on whether there is a library alone.
COMPILER = f"""#!{sys.executable}
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(b"a library")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of what a build reads, so that nothing is written into this checkout."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    return source


def wheel(source: Path, **environment: str) -> tuple[Path, str]:
    """Return the wheel that is built there, and what was said."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist"],
        cwd=source, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (source / "dist").iterdir()
    return made, done.stderr


def metadata(made: Path) -> str:
    with zipfile.ZipFile(made) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        return archive.read(name).decode()


def test_a_wheel_with_kernels_then_one_whose_compiler_fails(source: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    made, _ = wheel(source, CC=str(compiler))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert made.name.endswith(f"-py3-none-{platform}.whl")
    assert f"Tag: py3-none-{platform}\n" in metadata(made)
    assert "Root-Is-Purelib: false\n" in metadata(made)
    with zipfile.ZipFile(made) as archive:
        assert archive.read(LIBRARY) == b"a library"
    made.unlink()

    # In the same folder, where setuptools finds its earlier output; `false` is there and fails.
    made, said = wheel(source, CC="false")
    assert "plain torch serves instead: false " in said
    assert made.name.endswith("-py3-none-any.whl")
    assert "Tag: py3-none-any\n" in metadata(made)
    assert "Root-Is-Purelib: true\n" in metadata(made)
    installed = tmp_path / "installed"
    with zipfile.ZipFile(made) as archive:
        assert not [name for name in archive.namelist() if ".data/" in name or name.endswith(".so")]
        archive.extractall(installed)
    code = (
        "import torch, calibnorm as cn; print(cn.__file__); print(cn.backends()['cpu'])\n"
        "from calibnorm.ops.dispatch import choose; x = torch.ones(2, 3, 4, 4); print(choose(x).name)\n"
        "print(tuple(cn.RBN2d(3)(x).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        # The installed copy is not the source whose coverage is measured.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")} | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    file, status, *rest = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert status.startswith("does not run: the library is not built: install with a C compiler at hand")
    assert rest == ["reference", "(2, 3, 4, 4)"]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names of setup.py, with nothing built."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_tags_name_one_architecture_on_macos(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    of_one_architecture = setup["PlatformWheel"].of_one_architecture
    assert of_one_architecture("macosx_11_0_universal2") == "macosx_11_0_arm64"
    for name in ("macosx_11_0_arm64", "linux_x86_64", "any"):
        assert of_one_architecture(name) == name


def test_each_system_has_its_flags(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for system, flags in (("linux", ["-shared"]), ("darwin", ["-bundle"])):
        monkeypatch.setattr(sys, "platform", system)
        assert setup["KERNELS"]["link_flags"]() == flags


def test_one_wheel_a_platform_is_built() -> None:
    """The wheels serve every Python: a second identifier of a platform would build the same file again."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    identifiers = configuration["build"].split()
    platforms = [identifier.partition("-")[2] for identifier in identifiers]
    assert sorted(platforms) == ["macosx_arm64", "manylinux_aarch64", "manylinux_x86_64"]
    assert all("*" not in identifier for identifier in identifiers)
