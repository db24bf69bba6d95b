"""Seeds of random generators from what they are for."""

from __future__ import annotations

import hashlib

# Training's: initial weights and, before each step, the global generator. The feeds' orders, crops and flips come from
# calibnorm.lab.data.seeding. Both hash what a seed is for, and share no function: digest (SHA-256 here, BLAKE2 there),
# width (63 bits here, since a GPU's generator reads 64; 32 there, all that the CPU's reads), order and separator of the
# text are different, and any change to one of them would change every figure of docs/results. A test holds both.


def derive(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed that depends on everything given and on nothing else.

    Streams of different purposes, or of neighbouring seeds, have nothing in common, which sums of seed and step do
    not promise.

    >>> derive(0, "step", 7) == derive(0, "step", 7), derive(0, "step", 7) == derive(7, "step", 0)
    (True, False)
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout in a process, from 0: each has images of its own, and masks of its own.

    >>> step_seed(0, 7, 0) == derive(0, "step", 7) != step_seed(0, 7, 1)
    True
    """
    return derive(seed, "step", step, *(("rank", rank) if rank else ()))
