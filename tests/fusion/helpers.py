"""A network before and after fusing: what it computes, and what the report says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.fusion import calls
from cases import generator
from conversion.helpers import output
from tolerances import ORACLE, error

PAIR, TRIPLE = "norm + ReLU", "norm + add + ReLU"


def fuse(model: nn.Module) -> dict[str, str]:
    """Fuse, and return what the report says of every norm: ``"fused: ..."`` or ``"left: ..."``."""
    texts: list[str] = []
    assert cn.fuse(model, report=texts.append) is model
    head, *lines = texts[0].splitlines()
    rows = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        rows[name] = rest.partition(", ")[2]
    fused = sum(row.startswith("fused: ") for row in rows.values())
    assert head == f"{len(rows)} normalizations: {fused} fused, {len(rows) - fused} left"
    return rows


def counts(rows: dict[str, str]) -> tuple[int, int, int]:
    """How many norms are fused with a ReLU, with an addition and a ReLU, and left."""
    values = list(rows.values())
    pairs = values.count(f"fused: {PAIR}") + values.count(f"fused: {PAIR}, by itself")
    return pairs, values.count(f"fused: {TRIPLE}"), sum(v.startswith("left: ") for v in values)


def computed(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One training step's output and gradients, the statistics after it, and the output in eval mode.

    The model's tensors are put back.
    """
    state = copy.deepcopy(model.state_dict())
    modes = {m: m.training for m in model.modules()}
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(0)  # for dropout before the classifier
    y = output(model.train(), x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    found: dict[str, Tensor] = {"output": y.detach(), "gradient of the input": x.grad}
    found |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found |= {n: b.clone() for n, b in model.named_buffers()}
    with torch.no_grad():
        found["output in eval mode"] = output(model.eval(), x)
    model.load_state_dict(state)
    for module, mode in modes.items():
        module.training = mode
    return found


def assert_same(after: dict[str, Tensor], before: dict[str, Tensor], tolerance: float = ORACLE) -> None:
    """Equal names, and equal values up to float64 rounding."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        # A gradient that cancels to nothing, behind a norm without a gate, is compared as what it is: almost 0.
        assert error(after[name].double(), value) <= tolerance, name


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm a gamma and a beta, and every layer gates, of their own, some below 0; in float64."""
    draw = generator(seed)
    for tensor in model.parameters():
        if tensor.ndim == 1:
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=draw))
    return model.double()


def calls_of(monkeypatch: Any) -> list[tuple[str, bool]]:
    """Record every fused call that runs at once: the norm's class and whether it got a residual."""
    done: list[tuple[str, bool]] = []
    original = calls._at_once

    def spy(norm: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
        y = original(norm, x, residual)
        if y is not None:
            done.append((type(norm).__name__, residual is not None))
        return y

    monkeypatch.setattr(calls, "_at_once", spy)
    return done
