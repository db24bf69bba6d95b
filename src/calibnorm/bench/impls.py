"""The implementations that are compared: how each is made, and how it does what follows a norm in a network."""

from __future__ import annotations

import functools
import importlib.util
import math
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


class BatchNormSE(nn.Module):
    """BatchNorm, and timm's SE module with the weights of ours: what SE-ResNets are built of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        ours: Any = seeded("se")(channels)
        self.bn = nn.BatchNorm2d(channels)
        self.se = importlib.import_module("timm.layers").SEModule(channels, rd_channels=ours.fc1_weight.shape[0])
        with torch.no_grad():
            for convolution, name in ((self.se.fc1, "fc1"), (self.se.fc2, "fc2")):
                for tensor in ("weight", "bias"):
                    given = getattr(ours, f"{name}_{tensor}")
                    getattr(convolution, tensor).copy_(given.view_as(getattr(convolution, tensor)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled output of BatchNorm."""
        y: Tensor = self.se(self.bn(x))
        return y


def filter_response(channels: int) -> nn.Module:
    """Return timm's FRN without its activation, with the paper's eps, which is ours."""
    norm = importlib.import_module("timm.layers").FilterResponseNormAct2d
    layer: nn.Module = norm(channels, apply_act=False, eps=1e-6)
    return layer


def timm_problem(name: str, op: str, dtype: str = "float32") -> str | None:
    """Return why a layer of timm's is not measured in an operation, or None; of other names always None."""
    if not name.startswith("timm."):
        return None
    if name == TIMMS and op == "norm":
        return "norm alone is nn.BatchNorm2d"
    if name != TIMMS and dtype != "float32":
        return f"it takes no {dtype} beside tensors of float32"
    return None if importlib.util.find_spec("timm") else "timm is not installed"


EAGER: dict[str, Impl] = {
    BASELINE: Impl("bn", functools.partial(followed, nn.BatchNorm2d)),
    "cn.BN2d": Impl("bn", functools.partial(fused, cn.BN2d)),
    "cn.IEBN2d": Impl("iebn", functools.partial(fused, cn.IEBN2d)),
    "cn.RBN2d": Impl("rbn", functools.partial(fused, cn.RBN2d)),
    "authors.IEBN": Impl("iebn", functools.partial(followed, AuthorsIEBN)),
    "authors.RBN": Impl("rbn", functools.partial(followed, AuthorsRBN)),
}
PEERS: dict[str, tuple[str, Impl]] = {
    "cn.GN2d": ("nn.GroupNorm", Impl("gn", functools.partial(followed, lambda c: nn.GroupNorm(math.gcd(32, c), c)))),
    "cn.LN2d": ("nn.GroupNorm(1)", Impl("ln", functools.partial(followed, lambda c: nn.GroupNorm(1, c)))),
    "cn.IN2d": (
        "nn.InstanceNorm2d",
        Impl("in", functools.partial(followed, functools.partial(nn.InstanceNorm2d, affine=True))),
    ),
    "cn.SE2d": ("timm.SEModule", Impl("se", functools.partial(followed, BatchNormSE))),
    "cn.FRN2d": ("timm.FilterResponseNormAct2d", Impl("frn", functools.partial(followed, filter_response))),
}
"""By our layer, what torch or timm has in its place; SE's comes after nn.BatchNorm2d. The others have no peer there."""
WITH_PEERS = "peers"
"""Stands for the layers that have a natural peer in torch or timm, and for those."""
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
    compiled = {COMPILED + name: impl.compiled() for name, impl in others.items()}
    return IMPLS | others | dict(PEERS.values()) | compiled


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
            if name.startswith("se."):  # timm's SE module has its values
                continue
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
