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

__all__ = [
    "Gate",
    "GateReport",
    "GateWatch",
    "Quantities",
    "Quantity",
    "gates",
    "hold_scaling_gates",
    "learned",
    "watch_gates",
]
