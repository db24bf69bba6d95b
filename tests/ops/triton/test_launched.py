"""Launches as Triton sees them, on the way from a layer to a cubin for an H100, with a driver that pretends to be one.

Nothing runs: this is about how many launches there are, whether Triton takes their arguments, and that no input makes
another compilation that need not.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from calibnorm.methods import RBN
from calibnorm.ops.three_steps import Wanted
from calibnorm.ops.triton import fused, passes
from cases import randn
from layer_checks import call_of


class Pretended:
    """As much of a driver as a launch asks for before it starts."""

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Any]]:
    """Name, programs and compiled kernel of every launch."""
    runtime, jit = importlib.import_module("triton.runtime"), importlib.import_module("triton.runtime.jit")
    found: list[tuple[str, int, Any]] = []
    real = jit.JITFunction.run

    def run(self: Any, *args: Any, grid: tuple[int], warmup: bool, **options: Any) -> Any:
        compiled = real(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, grid[0], compiled))
        return compiled

    monkeypatch.setattr(jit.JITFunction, "run", run)
    monkeypatch.setattr(passes, "refuses", lambda x: None)
    monkeypatch.setattr(runtime.driver, "_active", Pretended())
    return found


def names(launched: list[tuple[str, int, Any]]) -> list[str]:
    found = [name for name, _, _ in launched]
    launched.clear()
    return found


@pytest.mark.parametrize("shape", [(4, 6, 8, 8), (1, 2, 64, 64), (5, 6)], ids=["whole", "cut", "one pixel"])
def test_launches_of_a_layer(launched: list[tuple[str, int, Any]], shape: tuple[int, ...]) -> None:
    x, wanted = randn(*shape), Wanted(True, True, (True,) * 5)
    first = ["moments"] if len(shape) == 2 else []  # one pixel a plane: the moments are not kept
    for end in ("", "residual relu"):
        call = call_of(RBN(), shape[1], False, end, shape, torch.float32)
        done = fused.forward(x, call)
        assert names(launched) == ["moments", "coefficients", "affine"]
        fused.backward(x, x, done.moments, call, wanted)
        mask = ["coefficients"] if "relu" in end else []
        assert names(launched) == [*first, *mask, "gradient_sums", "coefficients_vjp", "gradient_apply"]
        fused.forward(x, call._replace(statistics=done.statistics))
        assert names(launched) == ["normalize"]


def test_launches_of_the_running_statistics(launched: list[tuple[str, int, Any]]) -> None:
    mean, var = torch.zeros(300, dtype=torch.float64), torch.ones(300, dtype=torch.float64)
    for momentum in (0.1, 0.0, 0.25):
        assert passes.update_running((torch.zeros(300), torch.ones(300), torch.tensor(0)), mean, var, momentum, 1.1)
    assert len({id(compiled) for _, _, compiled in launched if compiled.src.signature["momentum"] == "i64"}) == 1
    assert names(launched) == ["update_running"] * 3


def test_batch_sizes_and_planes_of_a_kind_share_their_kernels(launched: list[tuple[str, int, Any]]) -> None:
    """No input makes a kernel of its own but by what it is cut into."""
    for n, size in ((33, 28), (48, 28), (64, 32), (50, 24)):
        shape = (n, 64, size, size)
        fused.forward(randn(*shape, dtype=torch.bfloat16), call_of(RBN(), 64, False, "", shape, torch.float32))
    for name in ("moments", "coefficients", "affine"):
        assert len({id(compiled) for found, _, compiled in launched if found == name}) == 1, name
