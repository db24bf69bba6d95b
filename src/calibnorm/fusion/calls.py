"""The fused call: a norm, perhaps an addition, and a ReLU at once, or one by one where that is not right."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.methods import BN
from calibnorm.nn import CalibratedNorm
from calibnorm.nn.apply import apply
from calibnorm.nn.hooks import has_hooks
from calibnorm.nn.plain_modules import is_identity, is_relu
from calibnorm.ops import dispatch
from calibnorm.ops.inputs import transformed

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SMALLEST = 64
"""Pixels of the smallest plane for which a plain BatchNorm is fused.

Forward and backward of a fused call over those of torch's calls, float32, two threads: 0.56 to 0.66 on 4x64 planes of
56x56, 0.87 to 0.92 on 4x128 of 14x14, 0.92 to 0.96 on 4x512 of 7x7, 1.30 to 1.41 on 4x512 of 4x4, where each plane
costs more than its pixels. A whole step of DenseNet-121 (4x3x112x112) gains nothing by the 7x7 ones (1.03 with, 1.02
without them). A calibrated layer gains at every size (0.87 to 0.90 at 4x4).
"""
_BN = BN()
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "relu_": torch.relu_,
    "add": operator.add,
    "iadd": operator.iadd,
}
"""What generated code calls by name."""


def norm_relu(
    norm: nn.Module, x: Tensor, relu: nn.Module | str, add: str = "", residual: Tensor | None = None
) -> Tensor:
    """Return ``relu(norm(x))``, or ``relu(add(norm(x), residual))``.

    Args:
        norm: What the network calls there now.
        x: Its input.
        relu: The module that the network calls there now, or "relu" or "relu_".
        add: "add", or "iadd" for the addition in place.
        residual: What is added.
    """
    y = _at_once(norm, x, residual) if isinstance(relu, str) or is_relu(relu) else None
    if y is None:
        y = norm(x)
        y = _FUNCTIONS[add](y, residual) if add else y
        y = _FUNCTIONS[relu](y) if isinstance(relu, str) else relu(y)
    return y


def _at_once(norm: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return the result of one call, or None where the calls are better or must be made one by one."""
    if has_hooks(norm) or (residual is not None and not _alike(residual, x)):
        return None
    if isinstance(norm, CalibratedNorm):
        return norm(x, residual, relu=True) if takes_relu(norm) else None
    return batchnorm_relu(norm, x, residual) if type(norm) in PLAIN else None


def takes_relu(layer: CalibratedNorm) -> bool:
    """Whether nothing stands between a calibrated layer's result and a ReLU behind it."""
    return layer.drop is None and layer.act is None


def _alike(residual: object, x: Tensor) -> bool:
    """Whether the sum is of x's shape and dtype; a broadcast or wider one is left to the network's own addition."""
    if type(residual) is not type(x) or not isinstance(residual, Tensor):
        return False
    return (residual.shape, residual.dtype, residual.device) == (x.shape, x.dtype, x.device)


def batchnorm_relu(bn: Any, x: Tensor, residual: Tensor | None = None) -> Tensor | None:
    """Return a plain BatchNorm's output, added to and rectified; None where torch's own way is to be taken.

    That is in eval mode, where there is no statistic to fuse with, for inputs that no fused kernel takes, and for
    everything that torch's BatchNorm refuses, so that its own message comes.
    """
    if not bn.training or bn.momentum is None or transformed(x) or not x.is_floating_point() or x.ndim < 2:
        return None
    if x.shape[1] != bn.num_features or x.numel() <= x.shape[1] or x.shape[2:].numel() < SMALLEST:
        return None
    bn._check_input_dim(x)
    tensors = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    if any(t is not None and (t.device != x.device or t.dtype not in (x.dtype, torch.float32)) for t in tensors):
        return None
    if dispatch.choose(x).fused is None:
        return None
    return apply(
        x,
        _BN,
        {"weight": bn.weight, "bias": bn.bias},
        running_mean=bn.running_mean,
        running_var=bn.running_var,
        use_batch=True,
        update=bn.track_running_stats and bn.running_mean is not None,
        momentum=bn.momentum,
        eps=bn.eps,
        noise=None,
        where=type(bn).__name__,
        residual=residual,
        relu=True,
        num_batches_tracked=getattr(bn, "num_batches_tracked", None),
    )


def own_relu(norm: Any) -> bool:
    """Whether a norm rectifies by a ReLU of its own, as timm's BatchNormAct2d does."""
    return is_relu(getattr(norm, "act", None)) and is_identity(getattr(norm, "drop", nn.Identity()))
