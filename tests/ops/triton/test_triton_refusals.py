"""What the backend says where it cannot run: in the interpreter, beside a GPU, or with neither."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import calibnorm as cn
from calibnorm.ops import dispatch
from calibnorm.ops.triton import passes
from cases import randn


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    def forget() -> None:
        for answer in (passes.unavailable, passes.interpreted, passes._too_weak):
            answer.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a version of triton and a CUDA device of a capability are there, or none."""

    def pretend(version: str | None, capability: tuple[int, int] | None, interpreter: bool = False) -> None:
        real = importlib.util.find_spec
        monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreter)))
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: version and True if name == "triton" else real(name)
        )
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Card")

    return pretend


@pytest.mark.parametrize(
    ("version", "capability", "why"),
    [
        (None, (9, 0), "triton is not installed"),
        ("3.6.0", None, "torch finds no CUDA device"),
        ("3.5.1", (9, 0), "it needs triton 3.6 or newer, not 3.5.1"),
    ],
)
def test_why_it_does_not_run_here(has: Any, version: str | None, capability: Any, why: str) -> None:
    has(version, capability)
    assert str(cn.backends()["triton"]) == f"does not run: {why}"
    with pytest.raises(RuntimeError, match=f"backend 'triton' does not run here: {why}"), cn.use_backend("triton"):
        pass


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "4.0.0+git1234"])
def test_versions_that_are_new_enough(has: Any, version: str) -> None:
    has(version, (9, 0))
    assert str(cn.backends()["triton"]) == f"runs: triton {version}, Card"


def test_amd(has: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    has("3.6.0", (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in cn.backends()["triton"].detail


def test_old_cards(has: Any) -> None:
    has("3.6.0", (7, 5))
    assert passes._too_weak(torch.device("cuda", 0)) == ("it needs compute capability 8.0 or higher, and Card has 7.5")
    has("3.6.0", (8, 0))
    assert passes._too_weak(torch.device("cuda", 1)) is None


def test_cpu_tensors_only_in_the_interpreter(has: Any) -> None:
    x = randn(2, 3, 4, 4)
    has("3.6.0", (9, 0))
    assert passes.refuses(x) == (
        "it takes strided CUDA tensors of float32, float64, bfloat16 and float16, not torch.float32 on cpu"
    )
    assert dispatch.choose(x).name != "triton"
    with cn.use_backend("triton"), pytest.raises(RuntimeError, match=r"not torch\.float32 on cpu"):
        cn.RBN2d(3)(x)
    passes.interpreted.cache_clear()
    passes.unavailable.cache_clear()
    has("3.6.0", None, interpreter=True)
    assert passes.refuses(x) is None
    assert "in its interpreter" in cn.backends()["triton"].detail


def test_the_interpreter_needs_numpy(has: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    has("3.6.0", None, interpreter=True)
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else known(name))
    assert "needs numpy" in cn.backends()["triton"].detail
    assert not cn.backends()["triton"].runs


@pytest.mark.parametrize("change", ["dtype", "layout", "negated"])
def test_inputs_that_it_does_not_take(has: Any, change: str) -> None:
    has("3.6.0", None, interpreter=True)
    x = randn(2, 3, 4, 4)
    other = {"dtype": x.to(torch.float8_e4m3fn), "layout": x.to_sparse(), "negated": torch._neg_view(x)}[change]
    words = {"dtype": "float8_e4m3fn", "layout": "strided", "negated": "negated"}[change]
    assert words in str(passes.refuses(other))
