"""What was timed: an implementation in a case, with the columns that the project's measurements share."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import device as Device
from torch import get_num_threads
from torch.cuda import get_device_name
from torch.version import __version__ as torch_version

from calibnorm.bench.clock import Times
from calibnorm.bench.impls import BASELINE
from calibnorm.report.environment import cpu_name, git_commit, package_version
from calibnorm.report.files import write_csv
from calibnorm.report.streams import nobody_listens


@dataclass(frozen=True)
class Place:
    """Where a run takes place: the columns that are equal in all of its timings."""

    device: str
    torch: str
    triton: str
    threads: int
    commit: str
    date: str

    @classmethod
    def here(cls, device: Device) -> Place:
        """Return this machine, this checkout and this day."""
        commit, plus, _ = (git_commit() or "").partition("+")
        return cls(
            get_device_name(device) if device.type == "cuda" else cpu_name(),
            torch_version,
            package_version("triton") or "",
            get_num_threads(),
            commit[:9] + ("+changes" if plus else ""),
            datetime.date.today().isoformat(),
        )

    def __str__(self) -> str:
        return f"{self.device}, {self.threads} threads, torch {self.torch}"


@dataclass(frozen=True)
class Timing:
    """A line of the CSV; the fields are its columns."""

    op: str
    impl: str
    mode: str
    shape: str
    dtype: str
    layout: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    gb_per_s: float | None
    ratio_to_bn: float
    peak_mib: float | None
    device: str
    torch: str
    triton: str
    threads: int
    commit: str
    date: str

    @property
    def case(self) -> tuple[str, ...]:
        """What all implementations of a case share."""
        return self.op, self.mode, self.shape, self.dtype, self.layout


def say(line: str) -> None:
    """Print a line at once, also into a pipe; where its reader has left, nobody hears it, and measuring goes on."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        nobody_listens()


class Measured(NamedTuple):
    """What a bench gave: timings, what was wrong with values that were then not timed, and what else is kept."""

    timings: list[Timing]
    wrong: list[str]
    details: dict[str, Any]

    def add(self, found: Measured) -> None:
        """Take in what a case gave, and say what was wrong."""
        self.timings.extend(found.timings)
        self.wrong.extend(found.wrong)
        for line in found.wrong:
            say(f"WRONG VALUES: {line}")


def timings_of(
    times: dict[str, Times], place: Place, case: tuple[str, str, str, str, str], gigabytes: dict[str, float]
) -> list[Timing]:
    """Return the timings of a case.

    Args:
        times: Of every implementation, the baseline among them.
        place: Where they were taken.
        case: Operation, mode, shape, dtype and layout.
        gigabytes: By implementation, what the leanest one of its kind moves; none where that is not known.
    """
    op, *what = case
    _, baseline, _ = times[BASELINE].quantiles
    found = []
    for name, of in times.items():
        p20, p50, p80 = of.quantiles
        gb_per_s = gigabytes[name] / (p50 / 1e3) if name in gigabytes else None
        line = (op, name, *what, p20, p50, p80, gb_per_s, p50 / baseline, of.peak_mib)
        found.append(Timing(*line, **asdict(place)))  # type: ignore[arg-type]
    return found


FORMATS = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "ratio_to_bn"), ".4f") | {"gb_per_s": ".2f", "peak_mib": ".1f"}


def write_timings(path: Path, timings: Sequence[Timing]) -> None:
    """Write the timings, one a line."""
    lines = [asdict(timing) for timing in timings]
    for line in lines:
        line |= {name: format(line[name], text) for name, text in FORMATS.items() if line[name] is not None}
    write_csv(path, lines, [field.name for field in fields(Timing)])


def unsteady(timings: Sequence[Timing]) -> int:
    """Return how many timings have p80 over 1.5 times p20."""
    return sum(timing.p80_ms > 1.5 * timing.p20_ms for timing in timings)
