"""Instance Enhancement Batch Normalization (Liang et al., AAAI 2020; numbers are those of arXiv 1908.04008v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods.activations import GATES
from calibnorm.methods.base import Instance, Method, Parameter, Params
from calibnorm.methods.bottleneck import bottleneck, bottleneck_parameters, check_reduction

OPERATORS = ("linear", "identity", "fc")
GATE_WEIGHTS = {"mean": "gate_weight", "standardized": "standardized_gate_weight"}
POSITIONS = {"gamma": ("weight",), "beta": ("bias",), "both": ("weight", "bias")}
DEFAULT_INIT = (0.0, -1.0)


@dataclass(frozen=True)
class IEBN(Method):
    """``y = x^ * (gamma * d) + beta`` with ``d = sigmoid(g_hat * m + b_hat)`` (Algorithm 1, Eq. 3, 8 and 9).

    m is the mean of the input's plane, before standardization; with ``gate_input="standardized"``, which is not in the
    paper, it is the mean of the standardized plane, RBN's K_s. The fc operator is ``W2 relu(W1 m + b1) + b2`` over all
    channels. The paper gives no number of hidden units and says "similar to the configuration as SE module", whose
    paper uses C / 16; biases and initial values are those of ``nn.Linear``.
    """

    name: ClassVar[str] = "iebn"
    aliases: ClassVar[dict[str, str]] = {"weight_readjust": "gate_weight", "bias_readjust": "gate_bias"}
    without_beta = "position='gamma'"  # the paper's
    for_trained: ClassVar[dict[str, object]] = {"gate_input": "standardized"}

    operator: str = "linear"
    position: str = "gamma"
    activation: str = "sigmoid"
    init: tuple[float, float] = DEFAULT_INIT
    reduction: int = 16
    gate_input: str = "mean"

    def __post_init__(self) -> None:
        _checks.choice("operator", self.operator, OPERATORS)
        _checks.choice("position", self.position, POSITIONS)
        _checks.choice("activation", self.activation, GATES)
        _checks.choice("gate_input", self.gate_input, GATE_WEIGHTS)
        object.__setattr__(self, "init", _checks.reals("init", self.init, 2))
        if self.operator != "linear" and self.init != DEFAULT_INIT:
            raise ValueError(f"init={self.init} sets g_hat and b_hat, which operator={self.operator!r} does not have")
        check_reduction(self.reduction)
        if self.operator != "fc" and self.reduction != 16:
            raise ValueError(f"reduction={self.reduction} belongs to operator='fc', not {self.operator!r}")

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return g_hat and b_hat, or the two layers of the fc operator."""
        if self.operator == "linear":
            g_hat, b_hat = self.init
            return {
                self._gate_weight: Parameter((num_features,), fill=g_hat),
                "gate_bias": Parameter((num_features,), fill=b_hat),
            }
        if self.operator == "identity":
            return {}
        return bottleneck_parameters(num_features, self.reduction)

    @property
    def _gate_weight(self) -> str:
        """Return g_hat's name, which differs with what it multiplies: a checkpoint of one is not the other's."""
        return GATE_WEIGHTS[self.gate_input]

    def translated(self, p: Params, mean: Tensor, var: Tensor, eps: float) -> dict[str, Tensor | None]:
        """Return the gates of a checkpoint with the other ``gate_input`` in this one's terms, or nothing.

        With running statistics both are the same function: ``g (m - mean) / sd + b = (g / sd) m + (b - g mean / sd)``.
        """
        (other,) = set(GATE_WEIGHTS.values()) - {self._gate_weight}
        if self.operator != "linear" or not all(n in p and p[n].numel() == len(mean) for n in (other, "gate_bias")):
            return {}
        sd, weight, bias = torch.sqrt(var + eps), p[other].flatten(), p["gate_bias"].flatten()
        if self.gate_input == "standardized":
            return {other: None, self._gate_weight: weight * sd, "gate_bias": bias + weight * mean}
        return {other: None, self._gate_weight: weight / sd, "gate_bias": bias - weight * mean / sd}

    def gate(self, m: Tensor, p: Params) -> Tensor:
        """Return d, (N, C), from the gate's input m, (N, C)."""
        if self.operator == "linear":
            z = p[self._gate_weight] * m + p["gate_bias"]
        elif self.operator == "identity":
            z = m
        else:
            z = bottleneck(m, p)
        return GATES[self.activation](z)

    def calibration(self, x: Instance, a: Tensor, b: Tensor, p: Params) -> Tensor:
        """Return d, from the means of the input's planes or of the standardized ones."""
        return self.gate(x.m if self.gate_input == "mean" else b, p)

    @property
    def gated(self) -> tuple[str, ...]:
        """Which of ``weight`` and ``bias`` the gate multiplies."""
        return POSITIONS[self.position]

    def constant_gate(self, p: Params) -> Tensor | None:
        """Return activation(b_hat) where every g_hat is 0."""
        if self.operator != "linear" or bool(p[self._gate_weight].detach().any()):
            return None
        return GATES[self.activation](p["gate_bias"].detach())

    def mean_gate(self, p: Params, running_mean: Tensor, noise: Noise = (1.0, 0.0)) -> tuple[Tensor, Tensor]:
        """Return the gate at m = running mean, which noise does not reach, or at the standardized mean, N_b."""
        average = running_mean if self.gate_input == "mean" else torch.full_like(running_mean, noise[1])
        return self.gate(average[None], p)[0], running_mean
