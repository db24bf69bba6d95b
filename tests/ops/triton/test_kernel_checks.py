"""The checks of ``benchmarks/gpu_check.py`` pass here, and see what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from torch import Tensor

import kernel_checks
from calibnorm.ops.triton import fused, passes
from kernel_checks import Case, check

DEVICE = torch.device("cpu" if passes.interpreted() else "cuda")
CASE = Case("rbn", (3, 5, 4, 6), torch.float32, False, False, "relu")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="with a GPU it would time for minutes")
def test_rehearsal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_checks, "TINY", ((3, 5, 4, 6),))
    assert gpu_check.run(tmp_path, 1.0) == 0
    assert "20 of 20 checks passed" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_every_shape() -> None:
    for case in [
        CASE,
        CASE._replace(shape=(5, 6)),
        CASE._replace(shape=(2, 3, 9, 11), rows=True, dtype=torch.bfloat16),
    ]:
        assert check(case, DEVICE) is None


@pytest.mark.parametrize("wrong", ["y", "dx", "weight", "scale_bias"])
def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = kernel_checks.everything

    def off(how: Any, *args: Any) -> dict[str, Tensor]:
        factor = 1.001 if how is fused else 1.0
        return {name: t * factor if name == wrong else t for name, t in right(how, *args).items()}

    monkeypatch.setattr(kernel_checks, "everything", off)
    assert str(check(CASE, DEVICE)).startswith(f"{wrong} is off by")


def test_a_changing_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = fused.forward, iter(range(9))

    def off(x: Tensor, call: Any) -> Any:
        done = forward(x, call)
        return done._replace(y=done.y + 1e-7 * next(calls))

    monkeypatch.setattr(fused, "forward", off)
    assert check(CASE, DEVICE) == "two runs differ"


def test_huge_tensors_are_checked_at_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "HUGE", (1, 3, 20, 30))
    assert kernel_checks.check_huge(DEVICE) is None
    right = passes.moments
    monkeypatch.setattr(passes, "moments", lambda x: (right(x)[0] + 1e-3, right(x)[1]))
    assert "m is off by" in str(kernel_checks.check_huge(DEVICE))
