"""What a normalization method is: small pure functions on (N, C) numbers.

A layer computes ``y = scale * (x - m) + shift`` where m and v are the mean and the biased variance of each
(instance, channel) plane. A method says which statistics enter the batch (:meth:`Method.instance_stats`) and how
the two coefficients follow (:meth:`Method.coefficients`). Pixels, buffers and gradients are the library's work.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from calibnorm._checks import Noise

Params = Mapping[str, Tensor]
"""Learnable tensors by name: ``weight`` and ``bias`` where the layer is affine, then the method's own."""


class Instance(NamedTuple):
    """Moments of every (instance, channel) plane, each (N, C)."""

    m: Tensor
    """Mean of the input's plane."""
    v: Tensor
    """Biased variance of the input's plane."""
    M: Tensor
    """Mean that enters the batch statistics."""
    V: Tensor
    """Within-plane variance that enters the batch statistics."""


class Batch(NamedTuple):
    """Statistics of every channel, (C,), of this batch or running, and how to standardize with them.

    Where a method has ghost batches they are (N, C), every instance with those of its ghost batch.
    """

    mean: Tensor
    var: Tensor
    eps: float
    noise: Noise | None

    def standardize(self, mean_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return a (C,) and b (N, C) such that the standardized feature is ``a * (x - m) + b``.

        b is the mean of the standardized plane. The constant noise attack (IEBN, Eq. 11 of arXiv 1908.04008v2) turns
        the standardized x^ into ``x^ * N_a + N_b``, so it belongs here and every method meets it the same way.
        """
        return self.standardize_by(mean_NC, self.mean, self.var)

    def standardize_by(self, mean_NC: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The same with statistics of the caller's choice, broadcastable to (N, C)."""
        a = inverse_std(var, self.eps)
        return self.attacked(a, (mean_NC - mean) * a)

    def attacked(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b of the standardized feature with its noise, if there is any."""
        if self.noise is None:
            return a, b
        n_a, n_b = self.noise
        return a * n_a, b * n_a + n_b


@dataclass(frozen=True)
class Parameter:
    """Shape of a learnable tensor and how it starts: a constant, normal around it, or uniform as nn.Linear starts.

    ``decays`` says whether ``cn.param_groups`` lets weight decay at it: a gate does not, the matrix of a layer does.
    """

    shape: tuple[int, ...]
    fill: float | None = None
    fan_in: int | None = None
    std: float = 0.0
    decays: bool = False

    def create(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return a new tensor with its initial values."""
        return self.reset(torch.empty(self.shape, device=device, dtype=dtype))

    @torch.no_grad()
    def reset(self, tensor: Tensor) -> Tensor:
        """Write the initial values into ``tensor``."""
        if self.fan_in is None:
            assert self.fill is not None
            return tensor.normal_(self.fill, self.std) if self.std else tensor.fill_(self.fill)
        bound = 1.0 / math.sqrt(self.fan_in)
        return tensor.uniform_(-bound, bound)


@dataclass(frozen=True)
class Method(ABC):
    """A normalization method with its options. Frozen: it can be hashed, compared, pickled and compiled.

    What an option means stands at the layers, such as :class:`calibnorm.IEBN2d`. Where a property below is the same
    for every option, a method may set it as an attribute of the class.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}
    """Names of the learnable tensors in the authors' checkpoints, and ours."""
    for_trained: ClassVar[Mapping[str, object]] = {}
    """Options that ``cn.convert(..., preserve=True)`` takes where they are not given, and why: docs/fine-tuning.md."""

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return the learnable tensors that the method adds to gamma and beta."""
        return {}

    def instance_stats(self, m: Tensor, v: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Return the (N, C) mean and variance that enter the batch statistics."""
        return m, v

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return a and b such that the standardized feature is ``a * (x - m) + b``: by default the batch's."""
        return batch.standardize(x.M)

    def calibration(self, x: Instance, a: Tensor, b: Tensor, p: Params) -> Tensor | None:
        """Return the gate of the standardized feature ``a * (x - m) + b``, (N, C), or None where there is none."""
        return None

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return scale and shift of ``y = scale * (x - m) + shift``, broadcastable to (N, C).

        Standardize, then the gate where ``gated`` puts it, then gamma and beta. A method of another form says its own.
        """
        a, b = self.standardize(x, batch, p)
        gate = self.calibration(x, a, b, p)
        bias = p.get("bias")
        if gate is not None and "weight" in self.gated:
            a, b = a * gate, b * gate
        if gate is not None and "bias" in self.gated and bias is not None:
            bias = bias * gate
        return reparameterize(a, b, p.get("weight"), bias)

    @property
    def spatial(self) -> tuple[str, ...]:
        """Return the tensors that meet a statistic over channels at a pixel, which no coefficient can express.

        :meth:`before_steps` and :meth:`after_steps` use them; the steps are those of :meth:`without_spatial`.
        """
        return ()

    def without_spatial(self) -> Method:
        """Return the method without what uses spatial statistics."""
        return self

    def before_steps(self, x: Tensor, p: Params) -> Tensor:
        """Return what the steps are to normalize; x is (N, C, *spatial), and the tensors of p broadcast to it."""
        return x

    def after_steps(self, y: Tensor, p: Params) -> Tensor:
        """Return the output from what the steps made of the input."""
        return y

    @property
    def normalizes(self) -> bool:
        """Whether a feature is standardized at all; SE alone scales its input and takes no BatchNorm's place."""
        return True

    @property
    def batch_statistics(self) -> bool:
        """Whether statistics of a batch, or running ones, enter; where not, there are none to standardize with."""
        return True

    @property
    def plain_in_eval(self) -> bool:
        """Whether with running statistics it is plain BatchNorm, which needs no moments of the input."""
        return False

    @property
    def reads_running(self) -> bool:
        """Whether training reads ``running_mean``, ``running_var`` and ``num_batches_tracked`` among the tensors.

        They are then as they were before this batch; where a layer keeps none they are not there.
        """
        return False

    @property
    def last_of_branch(self) -> bool:
        """Whether in a residual network it belongs after the last normalization of a branch alone."""
        return False

    @property
    def initial_weight(self) -> float:
        """What gamma starts at."""
        return 1.0

    @property
    def enters_statistics(self) -> tuple[str, ...]:
        """Learnable tensors that enter the statistics: frozen running statistics belong to their present values."""
        return ()

    def extra_statistics(self, num_features: int) -> dict[str, int]:
        """Return further numbers of an instance whose statistics over the batch enter, by name, with their count.

        ``instance_stats`` appends them to M (and their variance, 0, to V), so that they are reduced, synchronized and
        kept with the channels'; ``Batch`` brings them back in the same places. A layer keeps NAME_mean and NAME_var.
        """
        return {}

    @property
    def divisor(self) -> int:
        """What the number of channels must be a multiple of."""
        return 1

    def own_values(self, channels: int, pixels: int) -> int | None:
        """Return how many values an instance's own mean and variance are taken over; None where it has none."""
        return None

    @property
    def ghost_size(self) -> int | None:
        """Instances that share batch statistics; None is all of them."""
        return None

    @property
    def gated(self) -> tuple[str, ...]:
        """Which of ``weight`` and ``bias`` the gate multiplies."""
        return ()

    @property
    def without_beta(self) -> str | None:
        """Return the option, as messages show it, with which the gate leaves beta alone, where there is one."""
        return None

    def constant_gate(self, p: Params) -> Tensor | None:
        """Return the (C,) gate with which plain BatchNorm computes the same for every input, or None where none does.

        By default it is 1 where the method is plain BatchNorm in eval.
        """
        return torch.ones(1) if self.plain_in_eval else None

    def mean_gate(self, p: Params, running_mean: Tensor, noise: Noise = (1.0, 0.0)) -> tuple[Tensor, Tensor]:
        """Return the (C,) gate at an average input, and the running mean of the uncalibrated feature.

        ``p`` has gamma and beta too, where there are any; ``noise`` is that of the standardized feature.
        """
        return torch.ones_like(running_mean), running_mean

    def translated(self, p: Params, mean: Tensor, var: Tensor, eps: float) -> dict[str, Tensor | None]:
        """Return the gates of a checkpoint in other terms in the method's own, and None for those that it has not.

        Args:
            p: The checkpoint's tensors, by name.
            mean: Its running mean, (C,).
            var: Its running variance, (C,).
            eps: What the layer adds to the variance.
        """
        return {}

    def initial_gate(self, num_features: int) -> Tensor | None:
        """Return the gate of a new layer where it is a constant, else ``None``."""
        specs = self.parameters(num_features)
        if any(spec.fan_in is not None or spec.std for spec in specs.values()):
            return None  # a random start is no constant, and looking must not draw random numbers
        with torch.device("cpu"):  # a gate on the meta device would have no values
            return self.constant_gate({name: spec.create(dtype=torch.float64) for name, spec in specs.items()})

    def options(self) -> dict[str, object]:
        """Return the options that differ from their defaults: what a layer's constructor needs to rebuild it."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def __str__(self) -> str:
        """Return name and options as messages show them.

        >>> from calibnorm.methods.group import GN
        >>> print(GN(groups=4))
        gn(groups=4)
        """
        options = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{self.name}({options})" if options else self.name


def inverse_std(var: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(var + eps), NaN where the variance overflowed."""
    # 1/sqrt(inf) is 0 and would turn an overflow into a silent constant output; 0 * inf is NaN, which is honest.
    return torch.rsqrt(var + eps) + 0.0 * var


def reparameterize(a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Apply gamma and beta, where given, to the coefficients a and b."""
    if weight is not None:
        a, b = a * weight, b * weight
    return a, b if bias is None else b + bias


def safe_sqrt(v: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0 instead of infinite; NaN stays NaN."""
    zero = v == 0
    return torch.where(zero, torch.ones_like(v), v).sqrt().masked_fill(zero, 0.0)
