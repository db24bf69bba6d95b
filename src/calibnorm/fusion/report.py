"""What ``cn.fuse`` did, layer by layer."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Fusion(NamedTuple):
    """One normalization layer of a network."""

    name: str
    layer: str
    """Its class, afterwards."""
    pattern: str
    """``"norm+relu"`` or ``"norm+add+relu"``; empty where the layer was left."""
    why: str
    """Why it was left, or how it came to be fused."""


class FusionReport(list[Fusion]):
    """A row for every normalization layer, in the order of definition; printed as a table under a line of totals."""

    @property
    def fused(self) -> dict[str, str]:
        """The pattern of every layer that is fused, by name."""
        return {row.name: row.pattern for row in self if row.pattern}

    @property
    def left(self) -> dict[str, str]:
        """The reason of every layer that was left, by name."""
        return {row.name: row.why for row in self if not row.pattern}

    def __str__(self) -> str:
        counts = Counter(self.fused.values())
        kinds = ", ".join(f"{count} {pattern}" for pattern, count in sorted(counts.items(), reverse=True))
        fused = f"{len(self.fused)} fused" + f" ({kinds})" * bool(kinds)
        head = f"{len(self)} normalizations: {fused}, {len(self.left)} left"
        widths = [max((len(row[i]) for row in self), default=0) for i in range(2)]
        lines = [
            f"{row.name.ljust(widths[0])}  {row.layer.ljust(widths[1])}  "
            + (f"{row.pattern}{f' ({row.why})' * bool(row.why)}" if row.pattern else f"left, {row.why}")
            for row in self
        ]
        return "\n".join([head, *lines])

    __repr__ = __str__
