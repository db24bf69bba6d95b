"""Filter Response Normalization (Singh and Krishnan, CVPR 2020, arXiv 1911.09737)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm.methods.base import Batch, Instance, Method, Params, inverse_std, reparameterize


@dataclass(frozen=True)
class FRN(Method):
    """``y = gamma * x / sqrt(mean x^2 + eps) + beta`` (Eq. 1), with mean x^2 = v + m^2 of the plane.

    Without its Thresholded Linear Unit, ``max(y, tau)``, which is no affine map. The paper's eps is 1e-6.
    """

    name: ClassVar[str] = "frn"

    def coefficients(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return gamma / nu and gamma * m / nu + beta, nu the root of the plane's mean square."""
        a = inverse_std(x.V + x.M.square(), batch.eps)
        b = x.M * a
        if batch.noise is not None:
            n_a, n_b = batch.noise
            a, b = a * n_a, b * n_a + n_b
        return reparameterize(a, b, p.get("weight"), p.get("bias"))

    def constant_gate(self, p: Params) -> Tensor | None:
        """Return None: no plain BatchNorm computes the same."""
        return None

    def mean_gate(self, p: Params, running_mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and the running mean itself."""
        return torch.ones_like(running_mean), running_mean
