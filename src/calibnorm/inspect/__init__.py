"""Looking into networks: what their layers have learned, what they do on data, and their batch noise. Nothing draws."""

from __future__ import annotations

from calibnorm.inspect.channels import ChannelStd, ChannelStds, channel_std
from calibnorm.inspect.features import Features, Stage, Stages, features
from calibnorm.inspect.gates import Gate, GateReport, GateWatch, gate_values, gates, hold_scaling_gates, watch_gates
from calibnorm.inspect.learned import Quantities, Quantity, learned
from calibnorm.inspect.noise import BatchNoise, LayerNoise, NoiseRow, NoiseTable, batch_noise
from calibnorm.inspect.variance import Share

__all__ = [
    "BatchNoise",
    "ChannelStd",
    "ChannelStds",
    "Features",
    "Gate",
    "GateReport",
    "GateWatch",
    "LayerNoise",
    "NoiseRow",
    "NoiseTable",
    "Quantities",
    "Quantity",
    "Share",
    "Stage",
    "Stages",
    "batch_noise",
    "channel_std",
    "features",
    "gate_values",
    "gates",
    "hold_scaling_gates",
    "learned",
    "watch_gates",
]
