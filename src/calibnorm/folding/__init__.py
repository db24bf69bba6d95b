"""Calibrated layers into plain BatchNorm, and BatchNorm into convolutions: a network for inference that costs less.

Read in this order: lines (what a layer's gate does on images, and the BatchNorm that comes nearest to it), stream and
prices (what a change costs, on images), plans (what is decided), planning (how), convolutions, and folding.
"""

from __future__ import annotations

from calibnorm.folding.folding import fold
from calibnorm.folding.planning import fold_plan

__all__ = ["fold", "fold_plan"]
