"""Reading trained networks: what their layers have learned, and what their gates do on data. Nothing here draws."""

from __future__ import annotations

from calibnorm.inspect.gates import (
    Gate,
    GateReport,
    GateWatch,
    Quantities,
    Quantity,
    gates,
    hold_scaling_gates,
    learned,
    watch_gates,
)
from calibnorm.inspect.noise import BatchNoise, LayerNoise, NoiseRow, NoiseTable, batch_noise
from calibnorm.inspect.variance import Share

__all__ = [
    "BatchNoise",
    "Gate",
    "GateReport",
    "GateWatch",
    "LayerNoise",
    "NoiseRow",
    "NoiseTable",
    "Quantities",
    "Quantity",
    "Share",
    "batch_noise",
    "gates",
    "hold_scaling_gates",
    "learned",
    "watch_gates",
]
