"""Values are checked before anything is timed: a fast wrong layer is no result."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.bench.authors import AuthorsIEBN, AuthorsRBN
from calibnorm.bench.impls import Call, followed, seeded, set_values

REFERENCES: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "iebn": AuthorsIEBN, "rbn": AuthorsRBN}


def bound(dtype: torch.dtype) -> float:
    """Return the largest difference that passes, relative to the largest expected value.

    The reference runs in float32. A layer in ``dtype`` rounds its input's copies and its output; the authors'
    formulation rounds after each of its five operations, and twice that on the way back. 1e-4 is float32's share: sums
    over up to millions of values.
    """
    return 16 * torch.finfo(dtype).eps + 1e-4


# Where a pre-activation is within rounding of 0, a ReLU may pass its gradient on one side and not on the other. Such
# pixels are rare; a wrong formula is wrong at more of them.
FLIPS = 1e-2


def expected(
    method: str, op: str, mode: str, values: dict[str, Tensor], x: Tensor, residual: Tensor | None, dy: Tensor
) -> list[Tensor]:
    """Return what the paper's formulation gives in float32, of the same (rounded) input."""
    reference = REFERENCES.get(method)
    layer, call = followed(reference or seeded(method), x.shape[1], op)
    layer = layer.to(x.device)
    set_values(layer, values)
    layer.train(mode != "eval")
    wide = [None if t is None else t.detach().float() for t in (x, residual)]
    assert wide[0] is not None
    # Where nobody published a formulation, the passes in plain torch: what the kernels promise to equal.
    with nullcontext() if reference else cn.use_backend("reference"):
        return outcome(call, mode, wide[0], wide[1], dy.float())


def outcome(call: Call, mode: str, x: Tensor, residual: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Return the output, and where there is a backward pass the gradients of x and of the residual."""
    if mode != "forward+backward":
        with torch.no_grad():
            return [call(x, residual)]
    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = call(leaves[0], leaves[1] if residual is not None else None)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def mismatch(actual: list[Tensor], reference: list[Tensor], dtype: torch.dtype, relu: bool) -> str | None:
    """Return what is wrong with the values, or None."""
    names = ("output", "gradient of x", "gradient of the residual")
    for name, a, e in zip(names, actual, reference, strict=False):
        if a.shape != e.shape or a.dtype != dtype:
            return f"{name} is {tuple(a.shape)} {a.dtype}"
        difference = (a.float() - e).abs()
        limit = bound(dtype) * e.abs().max()
        wrong = 1 - (difference <= limit).double().mean().item()  # so that NaN is wrong
        # Of an output no ReLU makes a jump.
        if wrong > (FLIPS if relu and name != "output" else 0):
            return f"{name} differs by up to {difference.max().item():.2g} where {limit.item():.2g} is allowed"
    return None
