"""Switchable Normalization (Luo et al., ICLR 2019, arXiv 1806.10779)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params
from calibnorm.methods.group import group_moments


@dataclass(frozen=True)
class SN(Method):
    """``y = gamma * (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) + beta``, k in IN, LN, BN (Eq. 3 to 5).

    w and w' are the softmax of three learnable numbers a layer each, which start at 1. BN's statistics are those of
    the batch, in eval the running ones: the paper averages them over batches after training; torch's moving average,
    whose variance is unbiased, takes that place here.
    """

    name: ClassVar[str] = "sn"

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return the control parameters lambda of the means and of the variances, in the order IN, LN, BN."""
        return {"mean_weight": Parameter((3,), fill=1.0), "var_weight": Parameter((3,), fill=1.0)}

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return 1 / sd and (m - mean) / sd with the mixed mean and variance."""
        w, u = torch.softmax(p["mean_weight"], 0), torch.softmax(p["var_weight"], 0)
        mean_ln, var_ln = (t[:, 0] for t in group_moments(x.M, x.V, 1))
        mean = w[0] * x.M + w[1] * mean_ln + w[2] * batch.mean
        var = u[0] * x.V + u[1] * var_ln + u[2] * batch.var
        return batch.standardize_by(x.M, mean, var)
