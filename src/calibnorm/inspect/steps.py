"""What a layer makes of its input in evaluation, step by step: centred, standardized, scaled by its gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibnorm.methods import Batch, Method
from calibnorm.methods.base import Instance, Params, reparameterize
from calibnorm.methods.bn import BN
from calibnorm.networks.finding import batchnorm_of, steady_noise
from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children
from calibnorm.ops import Step
from calibnorm.ops.reference import accumulation_dtype, affine, moments
from calibnorm.ops.three_steps import without_autocast


class Coefficients(NamedTuple):
    """A feature as ``scale * (x - m) + shift``, each (N, C); shift is the mean of its plane."""

    scale: Tensor
    shift: Tensor


class Steps(NamedTuple):
    """The steps of one call."""

    x: Tensor
    """What is normalized: the input, or what a statistic over channels has centred."""
    m: Tensor
    """The mean of its planes, (N, C)."""
    centred: Tensor | None
    """Where the centre is calibrated, the mean of the planes after that, (N, C)."""
    standardized: Coefficients
    """With the noise, where there is any."""
    gate: Tensor | None
    """(N, C), or None."""
    scales: bool
    """Whether the gate multiplies the feature; one at beta alone does not."""
    gated: Coefficients
    """What the gate multiplies: the standardized feature, or (SE, and IEBN at both) gamma times that plus beta."""

    @property
    def scaled(self) -> Coefficients:
        """What the gate makes of it; the same where none scales."""
        if not self.scales:
            return self.gated
        assert self.gate is not None
        return Coefficients(*(self.gate * part for part in self.gated))

    def feature(self, coefficients: Coefficients) -> Tensor:
        """Return a feature, of the input's shape."""
        return affine(self.x, self.m, *coefficients)


def is_understood(layer: nn.Module) -> bool:
    """Whether the steps of a layer are known: one of ours, or a BatchNorm that computes what torch's own does."""
    return isinstance(layer, CalibratedNorm) or children.accepts(layer)


class Met(NamedTuple):
    """What the functions of a layer's method are called with, when the layer meets an input in evaluation."""

    x: Tensor
    """What the three steps are for: the input, or what a statistic over channels has centred."""
    method: Method
    """Without what uses statistics over channels."""
    instance: Instance
    batch: Batch
    params: Params
    around: Params
    """The tensors that meet a statistic over channels."""


@torch.no_grad()
def meet(layer: Any, x: Tensor, name: str) -> Met:
    """Return what the method of a layer that is understood is called with for an input in evaluation.

    Raises:
        ValueError: The layer is in training mode.
    """
    ours = isinstance(layer, CalibratedNorm)
    method: Method = layer.method if ours else BN()
    child = batchnorm_of(layer)
    state = children.read(child, name)
    use_batch = state.use_batch and not (ours and layer.frozen and state.running_mean is not None)
    if use_batch and child.training and method.batch_statistics:
        raise ValueError(f"{name} is in training mode, and is read in evaluation; call eval() first")
    given = {"weight": state.weight, "bias": state.bias, **(layer.gates() if ours else {})}
    tensors = {key: tensor for key, tensor in given.items() if tensor is not None}
    noise = steady_noise(layer) if ours else (1.0, 0.0)
    with without_autocast(x):
        around = over_pixels(tensors, x) if method.spatial else {}
        x = method.before_steps(x.to(accumulation_dtype(x.dtype)), around)
        inner = method.without_spatial()
        within = {key: tensor for key, tensor in tensors.items() if key not in method.spatial}
        step = Step(inner, tuple(within), state.eps, noise)
        instance, params = step.instance(*moments(x), tuple(within.values()))
        if use_batch or state.running_mean is None or state.running_var is None or not method.batch_statistics:
            mean, var = step.reduce(instance)
        else:
            extra = layer._extra_statistics() if ours else ()
            running = zip((state.running_mean, state.running_var), *extra, strict=True)
            mean, var = (torch.cat(parts).to(instance.m.dtype) for parts in running)
    return Met(x, inner, instance, Batch(mean, var, state.eps, noise), params, around)


@torch.no_grad()
def steps_of(layer: Any, x: Tensor, name: str) -> Steps:
    """Return the steps of a layer that is understood, as it computes them in evaluation.

    Raises:
        ValueError: The layer is in training mode.
    """
    channels = x.shape[1]
    with without_autocast(x):
        x, method, instance, batch, params, around = meet(layer, x, name)
        a, b = method.standardize(instance, batch, params)
        gate = method.calibration(instance, a, b, params)
        standardized = Coefficients(a.expand_as(instance.m), b.expand_as(instance.m))
        scales, whole = gate is not None and method.gated != ("bias",), method.gated == ("weight", "bias")
        gated = _with_affine(standardized, params) if whole else standardized
    centred = instance.M[:, :channels] if "center_weight" in params and "center_weight" not in around else None
    return Steps(x, instance.m, centred, standardized, gate, scales, gated)


def _with_affine(standardized: Coefficients, params: Params) -> Coefficients:
    scale, shift = reparameterize(*standardized, params.get("weight"), params.get("bias"))
    return Coefficients(scale, shift)


def over_pixels(tensors: Params, x: Tensor) -> dict[str, Tensor]:
    """Return the tensors of one number a channel so that they meet a feature's pixels."""
    shape, dtype = (-1, *[1] * (x.ndim - 2)), accumulation_dtype(x.dtype)
    return {name: tensor.to(dtype).reshape(shape) for name, tensor in tensors.items() if tensor.ndim == 1}
