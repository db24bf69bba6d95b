"""The kernels built for aarch64 and run in an emulator, where a cross compiler and qemu are installed."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from calibnorm.ops.cpu import build
from tolerances import rounding

CC, EMULATOR, SYSTEM = "aarch64-linux-gnu-gcc", "qemu-aarch64", "/usr/aarch64-linux-gnu"
missing = [tool for tool in (CC, EMULATOR) if shutil.which(tool) is None]


@pytest.mark.nightly
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_moments_and_affine_on_aarch64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", CC)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    library = build.build(tmp_path)
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
