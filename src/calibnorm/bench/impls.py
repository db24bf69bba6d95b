"""The implementations that are compared: how each is made, and how it does what follows a norm in a network."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.bench.authors import AuthorsIEBN, AuthorsRBN
from calibnorm.nn import layer_type

Call = Callable[[Tensor, Tensor | None], Tensor]
"""x and the residual, which is None where the operation has none."""
Make = Callable[[int, str], tuple[nn.Module, Call]]
"""From the number of channels and the operation, the module that owns the parameters, and its call."""

BASELINE = "nn.BatchNorm2d"
COMPILED = "compiled:"
COPY = "copy"
"""Not an implementation: x copied in the same turns, which is what memory gives at this size."""
TIMMS = "timm.BatchNormAct2d"


class Impl(NamedTuple):
    """An implementation: the name of its method in ``cn.methods()``, and what makes it."""

    method: str
    make: Make

    def compiled(self) -> Impl:
        """Return the same under torch.compile, for one shape: what a network of fixed input size gets."""

        def make(channels: int, op: str) -> tuple[nn.Module, Call]:
            layer, call = self.make(channels, op)
            return layer, torch.compile(call, dynamic=False, fullgraph=True)

        return Impl(self.method, make)


def followed(norm: Callable[[int], nn.Module], channels: int, op: str) -> tuple[nn.Module, Call]:
    """Return a norm and what networks write after it: the residual added and the ReLU in place, as torchvision does."""
    layer = norm(channels)
    if op == "norm":
        return layer, lambda x, residual: layer(x)
    if op == "norm+relu":
        return layer, lambda x, residual: torch.relu_(layer(x))
    return layer, lambda x, residual: torch.relu_(layer(x).add_(residual))


def fused(norm: Callable[..., nn.Module], channels: int, op: str) -> tuple[nn.Module, Call]:
    """Return a layer of this library that does the rest itself."""
    layer = norm(channels, act=None if op == "norm" else "relu")
    return layer, lambda x, residual: layer(x, residual)


def batchnorm_act(channels: int, op: str) -> tuple[nn.Module, Call]:
    """Return timm's BatchNorm with its own ReLU; where an addition comes between, timm's networks switch that off."""
    own = op == "norm+relu"
    norm = functools.partial(importlib.import_module("timm.layers").BatchNormAct2d, apply_act=own)
    return followed(norm, channels, "norm" if own else op)


def timm_problem(name: str, op: str) -> str | None:
    """Return why timm's layer is not measured in an operation, or None; of other names always None."""
    if name != TIMMS:
        return None
    if op == "norm":
        return "norm alone is nn.BatchNorm2d"
    return None if importlib.util.find_spec("timm") else "timm is not installed"


EAGER: dict[str, Impl] = {
    BASELINE: Impl("bn", functools.partial(followed, nn.BatchNorm2d)),
    "cn.BN2d": Impl("bn", functools.partial(fused, cn.BN2d)),
    "cn.IEBN2d": Impl("iebn", functools.partial(fused, cn.IEBN2d)),
    "cn.RBN2d": Impl("rbn", functools.partial(fused, cn.RBN2d)),
    "authors.IEBN": Impl("iebn", functools.partial(followed, AuthorsIEBN)),
    "authors.RBN": Impl("rbn", functools.partial(followed, AuthorsRBN)),
}
IMPLS = EAGER | {TIMMS: Impl("bn", batchnorm_act)} | {COMPILED + name: impl.compiled() for name, impl in EAGER.items()}
FAMILY = "family"
"""Stands for our layer of every method that is not measured anyway."""
OURS = {"iebn": ("cn.IEBN2d", "authors.IEBN"), "rbn": ("cn.RBN2d", "authors.RBN")}
"""By method: our layer and the authors' formulation."""


def seeded(method: str) -> Callable[..., nn.Module]:
    """Return what makes our layer of a method, such that two of them start alike where the start is random."""

    def make(channels: int, **options: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(channels)
            return layer_type(method)(channels, **options)

    return make


def eager(op: str) -> list[str]:
    """Return what is measured in an operation where nothing else is asked for: timm's layer too where it is there."""
    return [*EAGER, *([TIMMS] if timm_problem(TIMMS, op) is None else [])]


def family() -> dict[str, Impl]:
    """Return our layers of the other methods, registered ones too, by name."""
    known = {impl.method for impl in EAGER.values()}
    found = {m: Impl(m, functools.partial(fused, seeded(m))) for m in cn.methods() if m not in known}
    return {f"cn.{layer_type(method).__name__}": impl for method, impl in found.items()}


def impls() -> dict[str, Impl]:
    """Return everything that can be measured, by name."""
    others = family()
    return IMPLS | others | {COMPILED + name: impl.compiled() for name, impl in others.items()}


@functools.cache
def compile_problem() -> str | None:
    """Return in one line why torch.compile does not work here (often for want of a C++ compiler), or None."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1, dynamic=False)(torch.zeros(8))
    except Exception as error:  # whatever inductor meets: what is wrong here must not end a bench of eager layers
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"torch.compile does not run here: {lines[0]}"
    finally:
        torch.compiler.reset()
    return None


def set_values(layer: nn.Module, values: dict[str, Tensor]) -> None:
    """Give a layer of any implementation the same gamma, beta, running statistics and gates, by their last names."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if (value := values.get(name.rpartition(".")[2])) is not None:
                tensor.copy_(value.view_as(tensor))


def random_values(channels: int, device: torch.device) -> dict[str, Tensor]:
    """Return values of everything that a layer learns or keeps, such that every gate depends on the image."""
    generator = torch.Generator().manual_seed(channels)
    names = ("weight", "bias", "gate_weight", "gate_bias", "center_weight", "scale_weight", "scale_bias")
    values = {name: 0.5 * torch.randn(channels, generator=generator) for name in (*names, "running_mean")}
    values["weight"] += 1
    values["running_var"] = 0.5 + torch.rand(channels, generator=generator)
    return {name: value.to(device) for name, value in values.items()}
