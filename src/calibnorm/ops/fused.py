"""The coefficient step of BN, IEBN and RBN in C, checked against the generic one of :mod:`calibnorm.ops.coefficients`.

Every number is float64, sums over the batch included.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops.coefficients import Gradients, Statistics, Step
from calibnorm.ops.library import Library, load

_CENTERS = {None: 0, "mean": 1, "std": 2}
_GATES = {None: 0, "mean": 1, "std": 2, "input": 3}
_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "center_weight": "center_weight",
    "gate_weight": "gate_weight",
    "gate_bias": "gate_bias",
    "scale_weight": "gate_weight",
    "scale_bias": "gate_bias",
}
"""What C calls the learnable tensors."""


class _Job(ctypes.Structure):
    """``cn_coefficient_job`` of ``csrc/kernels.h``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("N", "C", "S")),
        *((name, ctypes.c_int32) for name in ("center", "gate", "gated", "fixed")),
        *((name, ctypes.c_double) for name in ("eps", "noise_a", "noise_b")),
        *((name, ctypes.c_void_p) for name in ("m", "v", "mean", "var")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "center_weight", "gate_weight", "gate_bias")),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "sum_dy", "sum_dy_centred", "slope", "offset")),
        *(
            (name, ctypes.c_void_p)
            for name in ("d_weight", "d_bias", "d_center_weight", "d_gate_weight", "d_gate_bias")
        ),
    ]


class _Kind(NamedTuple):
    """A method in C's terms."""

    center: int
    gate: int
    gated: int


@functools.lru_cache(maxsize=256)
def _kind(method: Method) -> _Kind | None:
    """Return what C calls the method, or None where it does not know it."""
    gated = ("weight" in method.gated) + 2 * ("bias" in method.gated)
    if type(method) is BN:
        return _Kind(0, 0, 0)
    if type(method) is IEBN and method.operator == "linear" and method.activation == "sigmoid":
        return _Kind(0, _GATES["input"], gated)
    if type(method) is RBN and method.restrict == "sigmoid" and not (method.spatial_center or method.spatial_scale):
        center = _CENTERS[method.center_stat if method.centering else None]
        return _Kind(center, _GATES[method.scale_stat if method.scaling else None], gated)
    return None


class Fused:
    """The step of the methods that C knows."""

    def takes(self, step: Step) -> bool:
        """Whether C knows the method."""
        return _kind(step.method) is not None

    def forward(
        self, step: Step, m: Tensor, v: Tensor, statistics: Statistics | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Statistics]:
        """Return scale, shift and the statistics used."""
        job, keep = _job(step, m, v, tensors)
        if statistics is None:
            mean, var = m.new_empty(m.shape[1]), m.new_empty(m.shape[1])
        else:
            mean, var = _plain(statistics[0], m), _plain(statistics[1], m)
            job.fixed = 1
        job.mean, job.var = mean.data_ptr(), var.data_ptr()
        scale, shift = torch.empty_like(m), torch.empty_like(m)
        job.scale, job.shift = scale.data_ptr(), shift.data_ptr()
        _library().coefficients(ctypes.byref(job))
        del keep
        return scale, shift, (mean, var)

    def vjp(
        self,
        step: Step,
        m: Tensor,
        v: Tensor,
        statistics: Statistics | None,
        tensors: tuple[Tensor, ...],
        sums: tuple[Tensor, Tensor],
        pixels: int,
        wanted: tuple[bool, ...],
    ) -> Gradients:
        """Return the gradients from S1 and S2; ``wanted`` is about x and then the tensors."""
        job, keep = _job(step, m, v, tensors)
        job.S = pixels
        if statistics is not None:
            mean, var = _plain(statistics[0], m), _plain(statistics[1], m)
            keep += [mean, var]
            job.mean, job.var, job.fixed = mean.data_ptr(), var.data_ptr(), 1
        sum_dy, sum_dy_centred = sums
        scale, slope, offset = torch.empty_like(m), torch.empty_like(m), torch.empty_like(m)
        job.sum_dy, job.sum_dy_centred = sum_dy.data_ptr(), sum_dy_centred.data_ptr()
        job.scale, job.slope, job.offset = scale.data_ptr(), slope.data_ptr(), offset.data_ptr()
        gradients: list[Tensor | None] = []
        for name, want in zip(step.names, wanted[1:], strict=True):
            gradient = m.new_empty(m.shape[1]) if want else None
            gradients.append(gradient)
            if gradient is not None:
                setattr(job, "d_" + _ROLES[name], gradient.data_ptr())
        _library().coefficients_vjp(ctypes.byref(job))
        del keep
        typed = [None if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True)]
        return Gradients(scale, slope, offset, typed)


def _job(step: Step, m: Tensor, v: Tensor, tensors: tuple[Tensor, ...]) -> tuple[_Job, list[Tensor]]:
    """Return the arguments that both directions share, and the tensors that they point into."""
    kind = _kind(step.method)
    assert kind is not None
    noise_a, noise_b = step.noise or (1.0, 0.0)
    assert m.dtype == v.dtype == torch.float64
    assert m.is_contiguous()
    assert v.is_contiguous()
    job = _Job(*m.shape, 1, *kind, 0, step.eps, noise_a, noise_b, m.data_ptr(), v.data_ptr())
    keep = [_plain(tensor, m) for tensor in tensors]
    for name, tensor in zip(step.names, keep, strict=True):
        setattr(job, _ROLES[name], tensor.data_ptr())
    return job, keep


def _plain(t: Tensor, like: Tensor) -> Tensor:
    """Return t, (C,), contiguous and in float64."""
    return t.to(like.dtype).contiguous()


def _library() -> Library:
    library = load()
    assert isinstance(library, Library), library
    return library


FUSED = Fused()
