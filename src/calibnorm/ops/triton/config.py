"""How work is cut into programs: by shape and item size alone, so that results do not depend on the card.

No number here has been tuned: no GPU was at hand when they were chosen. Each gives the arithmetic that it rests on.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The constants of the launches."""

    tile: int = 2048
    """Elements of a tile: 16 to each of a program's 128 threads, two 16-byte loads of bf16 or four of float32."""
    warps: int = 4
    row_bytes: int = 128
    """Channels of a tile where these are innermost: one cache line, which is 64 of a 2-byte type."""
    programs: int = 1024
    """Planes are cut until there are about this many programs: 8 to each of an H100's 132 multiprocessors."""
    on_chip: int = 16384
    """Largest tile of the kernel that keeps whole planes: 32 elements to each of 512 threads. A 112x112 plane fits."""
    least_row_bytes: int = 32
    """Channels of such a tile where these are innermost, at least: what DRAM hands out at once. 32x32 planes of a
    2-byte type fit."""
    merged: int = 128
    """Planes that a program of the merging kernels handles, one to a thread."""
    channels: int = 4
    """Channels of a program of the coefficient step: 32 bytes of float64, the least that DRAM hands out at once. More
    would leave multiprocessors idle in a network's first layers, which have 64 channels."""
    instances: int = 256
    """Instances of a tile of it: with ``channels``, 4 numbers of each of some 20 arrays to each of 256 threads."""
    coefficient_warps: int = 8
    alignment: int = 16
    """C and S are known to be multiples of a power of two, up to this one: 16 bytes of the smallest type and more."""


@dataclass(frozen=True)
class Plan:
    """The launch of a pass: P planes by B pixels a tile, ``tiles`` tiles a program, ``splits`` programs a plane."""

    programs: int
    P: int
    B: int
    tiles: int
    splits: int
    CW: int
    SW: int

    @property
    def chunk(self) -> int:
        """Pixels of a plane that one program reads; the last one may find fewer."""
        return self.tiles * self.B


CONFIG = Config()


@functools.lru_cache(maxsize=1024)
def plan(rows: bool, instances: int, channels: int, pixels: int, item_size: int, config: Config = CONFIG) -> Plan:
    """Return how a (N, C, S) tensor is cut; ``rows`` where channels are innermost.

    >>> plan(False, 32, 64, 49, 4)  # small planes: 32 of them a tile
    Plan(programs=64, P=32, B=64, tiles=1, splits=1, CW=16, SW=1)
    >>> plan(False, 2, 3, 512 * 512, 4)  # a few large ones: each is cut among 128 programs
    Plan(programs=768, P=1, B=2048, tiles=1, splits=128, CW=1, SW=16)
    """
    if rows:
        P = min(_power(channels), max(config.row_bytes // item_size, 1))
        B = min(_power(pixels), config.tile // P)
        units = instances * -(-channels // P)
    else:
        B = min(_power(pixels), config.tile)
        P = min(_power(instances * channels), config.tile // B)
        units = -(-instances * channels // P)
    in_plane = -(-pixels // B)
    tiles = -(-in_plane // max(config.programs // units, 1))
    splits = -(-in_plane // tiles)
    aligned = [math.gcd(extent, config.alignment) for extent in (channels, pixels)]
    return Plan(units * splits, P, B, tiles, splits, *aligned)


@functools.lru_cache(maxsize=1024)
def whole(
    rows: bool, instances: int, channels: int, pixels: int, item_size: int, config: Config = CONFIG
) -> tuple[Plan, int] | None:
    """Return how the tensor is cut into whole planes and the warps of a program, or None where they do not fit on chip.

    >>> whole(False, 32, 64, 112 * 112, 4)  # a plane a program
    (Plan(programs=2048, P=1, B=16384, tiles=1, splits=1, CW=16, SW=16), 16)
    >>> whole(True, 32, 64, 56 * 56, 4) is None  # 8 channels of 4096 pixels would not fit
    True
    """
    B = _power(pixels)
    if rows:
        least, most = (max(size // item_size, 1) for size in (config.least_row_bytes, config.row_bytes))
        P = min(_power(channels), most, max(config.on_chip // B, least))
        programs = instances * -(-channels // P)
    else:
        P = min(_power(instances * channels), max(config.tile // B, 1))
        programs = -(-instances * channels // P)
    tile = P * B
    if tile > config.on_chip:
        return None
    aligned = [math.gcd(extent, config.alignment) for extent in (channels, pixels)]
    return Plan(programs, P, B, 1, 1, *aligned), min(max(tile // 1024, config.warps), 16)


def _power(count: int) -> int:
    """Return the smallest power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()
