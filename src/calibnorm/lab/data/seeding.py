"""Random numbers that are a function of integers, so that no run depends on what ran before it."""

from __future__ import annotations

import hashlib

import torch

# Why training has a way of its own: calibnorm/lab/training/seeds.py.


def number(purpose: str, *integers: int) -> int:
    """Return 32 bits, which is what torch's CPU generator reads of a seed, that purpose and integers determine.

    They are hashed: neighbours, such as (seed 1, epoch 2) and (seed 2, epoch 1), share nothing.

    >>> number("order", 1, 2) == number("order", 1, 2), number("order", 1, 2) == number("order", 2, 1)
    (True, False)
    """
    text = ",".join([purpose, *(str(int(integer)) for integer in integers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(purpose: str, *integers: int) -> torch.Generator:
    """Return a generator that purpose and integers alone determine.

    On the CPU whatever the device of the images, so that a run on a GPU sees the order, crops and flips of a run on
    the CPU.

    Args:
        purpose: What the numbers are for; two purposes with the same integers draw differently.
        integers: For example seed and epoch.
    """
    return torch.Generator().manual_seed(number(purpose, *integers))
