"""C between the exchanges of shared statistics: equal to torch's operations there, with the same exchanges.

The other process is made up: numbers that join what this one sends. tests/distributed has two real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.methods.an import AN
from calibnorm.methods.base import Batch, Instance, Params
from calibnorm.methods.bcn import BCN
from calibnorm.methods.composed import Composed
from calibnorm.methods.se import SE
from calibnorm.methods.sn import SN
from calibnorm.ops import Call, synchronized
from calibnorm.ops.cpu import passes
from calibnorm.ops.cpu import synchronized as under_test
from calibnorm.ops.synchronized import Synchronized
from calibnorm.ops.three_steps import StepByStep, Wanted
from cases import randn
from layer_checks import both_ways, call_of
from tolerances import error, reduction

pytestmark = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))

STEP_BY_STEP = StepByStep(passes)
METHODS: list[Method] = [
    BN(),
    IEBN(position="both"),
    IEBN(operator="fc", reduction=2),
    RBN(),
    RBN(center_stat="std", scale_stat="std"),
    SE(reduction=2),
    SN(),
    BCN(groups=2),
    AN(mixtures=3),
    Composed(RBN(), SN()),
]


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a made-up second process adds to every exchange; the names of the exchanges."""
    calls: list[str] = []

    def all_gather(t: Tensor, group: Any) -> Tensor:
        calls.append("gather")
        other = 0.5 + randn(len(t), seed=50, dtype=t.dtype).abs()
        other[:2] = torch.tensor([35.0, 5.0])
        return torch.stack((t, other))

    def all_reduce(t: Tensor, group: Any) -> Tensor:
        calls.append("reduce")
        return t + randn(*t.shape, seed=51, dtype=t.dtype)

    monkeypatch.setattr(synchronized, "_all_gather", all_gather)
    monkeypatch.setattr(synchronized, "_all_reduce", all_reduce)
    return calls


def shared_call(method: Method, shape: tuple[int, ...], end: str, dtype: torch.dtype) -> Call:
    call = call_of(method, shape[1], False, end, shape, dtype)
    how = Synchronized(SimpleNamespace(size=lambda: 2), shape[1], shape[2:].numel())  # type: ignore[arg-type,attr-defined]
    return call._replace(step=call.step._replace(synchronized=how))


def programs_of(call: Call, x: Tensor) -> tuple[under_test.Forward | None, under_test.Backward | None]:
    kind = under_test._kind(call, x)
    return under_test.forward_programs(*kind), under_test.backward_programs(*kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("end", ["none", "relu", "relu and residual"])
@pytest.mark.parametrize("shape", [(3, 6, 4, 6), (7, 68)], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_c_between_the_exchanges_equals_torch(
    method: Method, shape: tuple[int, ...], end: str, dtype: torch.dtype, exchanged: list[str]
) -> None:
    shape = torch.Size(shape)
    x, dy = randn(*shape, seed=1, dtype=dtype, mean=1.0), randn(*shape, seed=2, dtype=dtype)
    results = []
    for how in (under_test.LAYERS, STEP_BY_STEP):
        call = shared_call(method, shape, end, dtype)
        assert None not in programs_of(call, x)
        results.append(list(both_ways(how, x, dy, call, True)))
        assert exchanged == ["gather", "reduce"]
        exchanged.clear()
    found = list(zip(*results, strict=True))
    assert len(found) == 4 + ("residual" in end) + len(call.tensors)
    assert all(a.dtype == b.dtype and error(a, b) <= max(reduction(dtype, 64), 1e-11) for a, b in found)


@dataclass(frozen=True)
class Running(Method):
    """Gamma by running sums over the channels, an operation that programs have not."""

    name: ClassVar[str] = "running"

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        a, b = super().coefficients(x, batch, p)
        return a * torch.cumsum(x.m, 1), b


@dataclass(frozen=True)
class Constant(Method):
    """Statistics that no input enters, so that nobody waits for their gradient."""

    name: ClassVar[str] = "constant"

    def instance_stats(self, m: Tensor, v: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(m), torch.ones_like(v)


@pytest.mark.parametrize(("method", "exchanges"), [(Running(), 2), (Constant(), 1)], ids=["running", "constant"])
def test_what_has_no_program_exchanges_the_same(method: Method, exchanges: int, exchanged: list[str]) -> None:
    shape = torch.Size((3, 6, 4, 6))
    x, dy = randn(*shape, seed=1, dtype=torch.float64), randn(*shape, seed=2, dtype=torch.float64)
    assert programs_of(shared_call(method, shape, "none", torch.float64), x)[1] is None
    results = []
    for how in (under_test.LAYERS, STEP_BY_STEP):
        results.append(list(both_ways(how, x, dy, shared_call(method, shape, "none", torch.float64), True)))
        assert exchanged == ["gather", "reduce"][:exchanges]
        exchanged.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("method", "exchanges"), [(IEBN(), []), (RBN(), ["reduce"])], ids=["iebn", "rbn"])
def test_without_a_gradient_of_x_the_method_decides(method: Method, exchanges: list[str], exchanged: list[str]) -> None:
    """RBN's w_m enters the statistics, so its gradient needs those of the other process; IEBN's tensors do not."""
    shape = torch.Size((3, 6, 4, 6))
    call = shared_call(method, shape, "none", torch.float64)
    x, dy = randn(*shape, seed=1, dtype=torch.float64), randn(*shape, seed=2, dtype=torch.float64)
    done = under_test.LAYERS.forward(x, call)
    exchanged.clear()
    wanted = Wanted(False, False, tuple(name != "bias" for name in call.step.names))
    call = call._replace(found=done.statistics)
    found = under_test.LAYERS.backward(dy, x, done.moments, call, wanted)
    assert exchanged == exchanges
    assert found.x is None
    every = under_test.LAYERS.backward(dy, x, done.moments, call, Wanted(True, False, (True,) * len(call.tensors)))
    for name, some, all_of in zip(call.step.names, found.tensors, every.tensors, strict=True):
        assert some is None if name == "bias" else error(some, all_of) <= 1e-12
