"""Filter Response Normalization (Singh and Krishnan, CVPR 2020, arXiv 1911.09737)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibnorm.methods.base import Batch, Instance, Method, Params


@dataclass(frozen=True)
class FRN(Method):
    """``y = gamma * x / sqrt(mean x^2 + eps) + beta`` (Eq. 1), with mean x^2 = v + m^2 of the plane.

    Without its Thresholded Linear Unit, ``max(y, tau)``, which is no affine map. The paper's eps is 1e-6.
    """

    name: ClassVar[str] = "frn"
    batch_statistics = False

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return 1 / nu and m / nu, nu the root of the plane's mean square."""
        return batch.standardize_by(x.M, torch.zeros_like(x.M), x.V + x.M.square())
