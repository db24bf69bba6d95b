"""Small planes, and a config that cuts them in every way that the real one cuts large ones."""

from __future__ import annotations

from calibnorm.ops.triton import config

SMALL = config.Config(tile=64, row_bytes=16, programs=8, on_chip=128, least_row_bytes=8, instances=4)
"""Cuts small planes as the real one cuts large ones, which take the interpreter seconds."""

CUT = {
    "one plane": (1, 1, 26, 25),
    "cut, the last part is short": (1, 3, 21, 23),
    "more planes than programs": (5, 2, 10, 13),
    "several blocks of channels": (1, 18, 3, 5),
}
