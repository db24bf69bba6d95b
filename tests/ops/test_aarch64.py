"""A wheel for aarch64, cross-built, whose kernels run in an emulator: where a cross compiler and qemu are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from calibnorm.ops.cpu import build
from tolerances import rounding

ROOT = Path(__file__).parents[2]
CC, OBJDUMP = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
EMULATOR, SYSTEM = "qemu-aarch64", "/usr/aarch64-linux-gnu"
missing = [tool for tool in (CC, OBJDUMP, EMULATOR) if shutil.which(tool) is None]


@pytest.mark.nightly
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_moments_and_affine_of_a_wheel_for_aarch64(tmp_path: Path) -> None:
    wheel = built(tmp_path)
    assert wheel.name.endswith("-py3-none-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as packed:
        library = packed.extract(f"calibnorm/csrc/{build.LIBRARY}", tmp_path)
    said = subprocess.run([OBJDUMP, "-T", library], capture_output=True, text=True, check=True).stdout
    assert "elf64-littleaarch64" in said
    assert max(map(int, re.findall(r"GLIBC_2\.(\d+)", said))) <= 17  # manylinux2014
    program = tmp_path / "program"
    source = Path(__file__).with_name("foreign.c")
    subprocess.run([CC, "-O1", str(source), "-o", str(program), "-ldl", "-lm"], check=True)
    done = subprocess.run([EMULATOR, "-L", SYSTEM, program, library], capture_output=True, text=True, check=True)
    lines = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    for dtype, (moment, y) in zip((torch.float32, torch.float64, torch.float16), lines, strict=True):
        # Tiles are summed in float32 (float64 for float64), and so are outputs, before they are rounded to their dtype.
        # Moments are of numbers below 4, their error is absolute; that of the outputs is relative.
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        assert 0 < moment <= 4 * rounding(wide)
        assert y <= torch.finfo(dtype).eps + rounding(wide)


def built(folder: Path) -> Path:
    """Return a wheel that setup.py makes with the cross compiler where it is told that it runs on aarch64."""
    told = (
        "import platform, runpy; platform.machine = lambda: 'aarch64'; runpy.run_path('setup.py', run_name='__main__')"
    )
    words = ["build", "--build-base", folder / "build", "egg_info", "--egg-base", folder]
    words += ["bdist_wheel", "--dist-dir", folder / "dist", "--bdist-dir", folder / "bdist"]
    environment = os.environ | {"CC": CC, "_PYTHON_HOST_PLATFORM": "linux-aarch64"}
    done = subprocess.run(
        [sys.executable, "-c", told, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").iterdir())
