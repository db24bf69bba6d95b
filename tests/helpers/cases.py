"""What many tests need: the layers under test, inputs, random parameters, and a comparison of values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calibnorm as cn
from drawn import generator, randn
from tolerances import error

LAYERS_2D = [cn.BN2d, cn.IEBN2d, cn.RBN2d]
LAYERS_ALL = [cn.BN1d, cn.IEBN1d, cn.RBN1d, *LAYERS_2D, cn.BN3d, cn.IEBN3d, cn.RBN3d]
SHAPES = {1: (6, 4, 5), 2: (4, 4, 3, 5), 3: (3, 4, 2, 3, 2)}
"""A small odd input for each number of spatial dimensions; C = 4."""

each_layer = pytest.mark.parametrize("layer_type", LAYERS_2D, ids=lambda t: t.__name__)
each_dims = pytest.mark.parametrize("layer_type", LAYERS_ALL, ids=lambda t: t.__name__)
each_layout = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def image(dtype: torch.dtype = torch.float32, seed: int = 0, layout: Any = torch.contiguous_format) -> Tensor:
    """A small batch (4, 4, 3, 5) whose channels and instances differ in mean and spread."""
    x = randn(4, 4, 3, 5, seed=seed, dtype=torch.float64)
    x = x * torch.linspace(0.5, 2.0, 4, dtype=torch.float64).view(1, 4, 1, 1)
    x = x + torch.linspace(-1.5, 1.5, 16, dtype=torch.float64).view(4, 4, 1, 1)
    return x.to(dtype).contiguous(memory_format=layout)


@torch.no_grad()
def randomize(layer: nn.Module, seed: int = 1) -> Any:
    """Move every parameter and running statistic away from its initial value; return the layer."""
    draw = generator(seed)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if name.endswith("_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw, dtype=torch.float64))
        elif tensor.is_floating_point():
            tensor.copy_(0.2 + 0.7 * torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    return layer


def parameters(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's tensors by the names that the oracles use: the child's without their prefix."""
    return {name.removeprefix("bn."): p for name, p in layer.named_parameters()}


def gradients(y: Tensor, inputs: Mapping[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    """Gradients of y by name; zeros where an input does not matter."""
    found = torch.autograd.grad(y, list(inputs.values()), dy, allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, found, strict=True))


def errors(
    actual: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    expected: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    x: Tensor,
    tensors: Mapping[str, Tensor],
) -> dict[str, float]:
    """Errors of the value and of every gradient of ``actual``, both called with leaves of their own."""
    results = []
    for function in (actual, expected):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in {"input": x, **tensors}.items()}
        y = function(leaves["input"], {k: v for k, v in leaves.items() if k != "input"})
        dy = randn(*y.shape, seed=99, dtype=y.dtype)
        results.append({"value": y, **gradients(y, leaves, dy)})
    return {name: error(results[0][name], results[1][name]) for name in results[1]}


EVERY_METHOD: list[tuple[str, dict[str, Any]]] = [
    ("bn", {}),
    ("iebn", {}),
    ("iebn", {"position": "both"}),
    ("iebn", {"gate_input": "standardized"}),
    ("iebn", {"operator": "fc", "reduction": 2}),
    ("iebn", {"operator": "identity", "activation": "tanh"}),
    ("rbn", {}),
    ("rbn", {"center_stat": "std", "scale_stat": "std"}),
    ("rbn", {"center_stat": "spatial_mean", "scale_stat": "spatial_std"}),
    ("se", {"reduction": 2}),
    ("in", {}),
    ("gn", {"groups": 2}),
    ("ln", {}),
    ("sn", {}),
    ("bcn", {"groups": 2}),
    ("ilm", {"groups": 2, "key_size": 2}),
    ("frn", {}),
    ("an", {"mixtures": 3}),
    ("ghost", {"size": 2}),
    ("brn", {"start": 0, "r_batches": 1, "d_batches": 1}),
    ("iebn", {"over": {"method": "brn", "start": 0, "r_batches": 1, "d_batches": 1}}),
    ("rbn", {"over": "sn"}),
    ("rbn", {"over": {"method": "ghost", "size": 2}}),
]
"""Every method, and every option that changes which statistics enter or which code runs; for four channels.

The limits of Batch Renorm are open from the second batch on, so that it differs from BN.
"""


def _name(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


each_method = pytest.mark.parametrize(("method", "options"), EVERY_METHOD, ids=_name)


def layer_of(method: str, options: Mapping[str, Any], dims: int = 2, **arguments: Any) -> Any:
    """A random layer of a method of :data:`EVERY_METHOD`."""
    return randomize(cn.norm_layer(method, dims=dims, **options)(4, **arguments))
