"""The project's targets for layer times, and what was reached of them.

    PYTHONPATH=src python benchmarks/targets.py [benchmarks/results/layer.csv]

The limits are those of docs/performance.md; a floor is what moving the least bytes would take at the speed of copying.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from calibnorm.bench.cases import PLANES, planes
from calibnorm.bench.impls import BASELINE, OURS
from calibnorm.bench.summary import FLOOR, floors, ratios
from calibnorm.bench.timings import Timing
from calibnorm.report.document import Table
from calibnorm.report.markdown import table_lines

BOTH = ("forward", "forward+backward")


@dataclass(frozen=True)
class Target:
    """A limit on the geometric mean of ratios.

    Args:
        label: What is limited.
        device: "cpu" or "cuda".
        takes: Which rows count.
        limits: By mode.
        methods: Whose layers it is about.
        against_authors: Whether the ratio is to the authors' formulation instead of nn.BatchNorm2d.
    """

    label: str
    device: str
    takes: Callable[[Timing], bool]
    limits: dict[str, float]
    methods: tuple[str, ...] = ("iebn", "rbn")
    against_authors: bool = False


def norm(dtype: str, layout: str | None = None, plane: str | None = None, op: str = "norm") -> Callable[[Timing], bool]:
    """Return what takes the rows of an operation, a dtype, and perhaps a layout and a class of planes."""

    def takes(row: Timing) -> bool:
        return (
            (row.op, row.dtype) == (op, dtype) and layout in (None, row.layout) and plane in (None, planes(row.shape))
        )

    return takes


def fused(op: str) -> Callable[[Timing], bool]:
    """Return what takes an operation in any dtype and layout."""
    return lambda row: row.op == op


def training(forward: float, both: float) -> dict[str, float]:
    """Return the limits of the two modes of training."""
    return dict(zip(BOTH, (forward, both), strict=True))


STEP = "forward+backward"
TARGETS = (
    Target("float32 NCHW, planes 14x14 and larger", "cpu", norm("float32", "NCHW", PLANES[0]), training(0.28, 0.45)),
    Target("float32 NCHW, planes 7x7 and 8x8", "cpu", norm("float32", "NCHW", PLANES[1]), training(0.35, 0.50)),
    Target("float32 channels_last", "cpu", norm("float32", "channels_last"), training(0.50, 0.60)),
    Target("bfloat16", "cpu", norm("bfloat16"), training(0.80, 0.85)),
    Target("float32, of the authors' IEBN", "cpu", norm("float32"), training(0.22, 0.22), ("iebn",), True),
    Target("float32, of the authors' RBN", "cpu", norm("float32"), training(0.17, 0.17), ("rbn",), True),
    Target("bfloat16 NCHW", "cuda", norm("bfloat16", "NCHW"), {STEP: 0.50}),
    Target("bfloat16 channels_last", "cuda", norm("bfloat16", "channels_last"), {STEP: 0.75}),
    Target("float32 NCHW", "cuda", norm("float32", "NCHW"), {STEP: 0.70}),
    Target("float32 channels_last", "cuda", norm("float32", "channels_last"), {STEP: 0.95}),
    Target("float16 channels_last", "cuda", norm("float16", "channels_last"), {STEP: 1.05}),
    Target("norm+relu, of the eager pair", "cuda", fused("norm+relu"), {STEP: 0.62}),
    Target("norm+add+relu, of the eager three", "cuda", fused("norm+add+relu"), {STEP: 0.64}),
    Target("norm, any dtype", "cuda", fused("norm"), {"eval": 1.05}),
)


@dataclass(frozen=True)
class Outcome:
    """What was reached of a target by one layer in one mode."""

    target: Target
    impl: str
    mode: str
    limit: float
    reached: float
    cases: int
    floor: float | None
    """The ratio of a layer that moves the least bytes at the speed of copying; None where no copy was measured."""

    @property
    def passed(self) -> bool:
        """Whether the geometric mean is within the limit."""
        return self.reached <= self.limit


def judge(rows: Sequence[Timing], device_type: str) -> Iterator[Outcome]:
    """Yield what was reached of every target for the device that the rows say something about."""
    for target in TARGETS:
        if target.device != device_type:
            continue
        for method in target.methods:
            impl, authors = OURS[method]
            for mode, limit in target.limits.items():
                taken = [row for row in rows if row.mode == mode and target.takes(row)]
                baseline = authors if target.against_authors else BASELINE
                found, least = ratios(taken, impl, baseline), floors(taken, baseline)
                if found:
                    floor = geometric_mean(least) if least else None
                    yield Outcome(target, impl, mode, limit, geometric_mean(found), len(found), floor)


def target_table(timings: Sequence[Timing], device_type: str) -> Table:
    """Return every target that the timings say something about, and whether it was reached."""
    rows = [
        [
            outcome.target.label,
            outcome.mode,
            outcome.impl,
            f"{outcome.limit:.2f}",
            f"{outcome.reached:.3f}",
            "passed" if outcome.passed else "missed",
            f"{outcome.floor:.3f}" if outcome.floor else "-",
            str(outcome.cases),
        ]
        for outcome in judge(timings, device_type)
    ]
    return Table(["target", "mode", "layer", "at most", "reached", "", FLOOR, "cases"], rows, left=3)


def read(path: Path) -> list[Timing]:
    """Return the timings of a layer.csv."""
    readers: dict[str, Callable[[str], Any]] = {
        "float": float,
        "float | None": lambda text: float(text) if text else None,
        "int": int,
        "str": str,
    }
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [Timing(**{f.name: readers[str(f.type)](line[f.name]) for f in fields(Timing)}) for line in lines]


def main() -> None:
    """Print the targets and what a layer.csv reached of them."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "layer.csv"
    timings = read(path)
    device = "cuda" if "nvidia" in timings[0].device.lower() else "cpu"
    print(*table_lines(target_table(timings, device)), sep="\n")


if __name__ == "__main__":
    main()
