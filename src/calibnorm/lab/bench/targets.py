"""The project's targets for layer times: what shared/PERFORMANCE.md says, as data, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from calibnorm.lab.bench.cases import PASSES, PLANES, planes
from calibnorm.lab.bench.impls import BASELINE, COPY, OURS
from calibnorm.lab.bench.table import Row

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
    takes: Callable[[Row], bool]
    limits: dict[str, float]
    methods: tuple[str, ...] = ("iebn", "rbn")
    against_authors: bool = False


def norm(dtype: str, layout: str | None = None, plane: str | None = None, op: str = "norm") -> Callable[[Row], bool]:
    """Return what takes the rows of an operation, a dtype, and perhaps a layout and a class of planes."""

    def takes(row: Row) -> bool:
        return (
            (row.op, row.dtype) == (op, dtype) and layout in (None, row.layout) and plane in (None, planes(row.shape))
        )

    return takes


def fused(op: str) -> Callable[[Row], bool]:
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


def case_of(row: Row) -> tuple[str, ...]:
    """Return what all implementations of a case share."""
    return row.op, row.mode, row.shape, row.dtype, row.layout


def ratios(rows: Sequence[Row], impl: str, baseline: str) -> list[float]:
    """Return the ratios of medians over the cases that both were measured in."""
    of = {case_of(row): row.p50_ms for row in rows if row.impl == baseline}
    return [row.p50_ms / of[case_of(row)] for row in rows if row.impl == impl and case_of(row) in of]


def floors(rows: Sequence[Row], baseline: str = BASELINE) -> list[float]:
    """Return, for every case with a copy, what the least traffic takes at its speed, over the baseline's time.

    A copy reads and writes x once. Where the floor is above a target, memory alone forbids it, for the baseline moves
    hardly more; where a layer is far above the floor, it computes or waits.
    """
    of = {case_of(row): row.p50_ms for row in rows if row.impl == baseline}
    copies = [row for row in rows if row.impl == COPY and case_of(row) in of]
    return [PASSES[row.op, row.mode] / 2 * row.p50_ms / of[case_of(row)] for row in copies]


def judge(rows: Sequence[Row], device_type: str) -> Iterator[Outcome]:
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
