"""Random numbers that are a function of integers, so that no run depends on what ran before it."""

from __future__ import annotations

import hashlib

import torch


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator that purpose and numbers alone determine.

    The integers are hashed: neighbours, such as (seed 1, epoch 2) and (seed 2, epoch 1), share nothing. On the CPU
    whatever the device of the images, so that a run on a GPU sees the order, crops and flips of a run on the CPU.

    Args:
        purpose: What the numbers are for; two purposes with the same integers draw differently.
        numbers: For example seed and epoch.
    """
    text = ",".join([purpose, *(str(int(number)) for number in numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()  # torch's CPU generator reads 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
