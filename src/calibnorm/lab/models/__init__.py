"""The networks of both papers by name, with any normalization by text.

Importing this needs torch alone; the networks that torchvision or timm have are taken from them when they are built.
"""

from __future__ import annotations

from calibnorm.lab.models.building import build, check
from calibnorm.lab.models.networks import PATTERNS, expected_pixels, image_size, names
from calibnorm.lab.models.norms import Norm, parse_norm
from calibnorm.lab.models.transformation import transformation

__all__ = [
    "PATTERNS",
    "Norm",
    "build",
    "check",
    "expected_pixels",
    "image_size",
    "names",
    "parse_norm",
    "transformation",
]
