"""Ghost Batch Normalization (Hoffer, Hubara and Soudry, NeurIPS 2017, arXiv 1705.08741)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibnorm.methods.base import Method


@dataclass(frozen=True)
class GhostBN(Method):
    """BN of every ghost batch by itself: a batch is cut into runs of ``size`` instances (Algorithm 1).

    With running statistics it is plain BN. The paper assumes that the size divides the batch; a remainder is a smaller
    ghost batch here.
    """

    name: ClassVar[str] = "ghost"
    plain_in_eval = True
    size: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise TypeError(f"size={self.size!r} must be an integer")
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1")

    @property
    def ghost_size(self) -> int:
        """Return the instances of a ghost batch."""
        return self.size
