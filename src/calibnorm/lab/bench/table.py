"""The rows of the tables: one case of one implementation, with the columns that the project's measurements share."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from calibnorm.lab.bench.clock import Times, quantiles
from calibnorm.lab.bench.impls import BASELINE
from calibnorm.lab.environment import cpu_name, library_commit, package_version

HOST = "host "
"""What the mode of a row begins with whose times are the host's: how long a call keeps the CPU on a CUDA device."""


@dataclass(frozen=True)
class Row:
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


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Place:
    """Where a run takes place: the columns that are equal in all of its rows."""

    device: str
    torch: str
    triton: str
    threads: int
    commit: str
    date: str

    @classmethod
    def here(cls, device: torch.device) -> Place:
        """Return this machine, this checkout and this day."""
        return cls(
            torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            torch.__version__,
            package_version("triton") or "",
            torch.get_num_threads(),
            (library_commit() or "")[:9] + ("+changes" if (library_commit() or "").endswith("+changes") else ""),
            datetime.date.today().isoformat(),
        )


def rows_of(
    times: dict[str, Times], place: Place, what: tuple[str, str, str, str, str], gigabytes: float | None
) -> list[Row]:
    """Return the rows of a case.

    Args:
        times: Of every implementation, the baseline among them.
        place: Where they were taken.
        what: Operation, mode, shape, dtype and layout.
        gigabytes: What the leanest implementation moves, or None.
    """
    op, mode, shape, dtype, layout = what
    rows = []
    for measured, prefix in ((lambda t: t.ms, ""), (lambda t: t.host_ms, HOST)):
        if not measured(times[BASELINE]):
            continue
        _, baseline, _ = quantiles(measured(times[BASELINE]))
        for name, of in times.items():
            p20, p50, p80 = quantiles(measured(of))
            gb_per_s = None if gigabytes is None or prefix else gigabytes / (p50 / 1e3)
            peak = None if prefix else of.peak_mib
            row = (op, name, prefix + mode, shape, dtype, layout, p20, p50, p80, gb_per_s, p50 / baseline, peak)
            rows.append(Row(*row, **asdict(place)))
    return rows


FORMATS = {
    "p20_ms": ".4f",
    "p50_ms": ".4f",
    "p80_ms": ".4f",
    "gb_per_s": ".2f",
    "ratio_to_bn": ".4f",
    "peak_mib": ".1f",
}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows, one a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            values = asdict(row)
            writer.writerow(
                "" if value is None else format(value, FORMATS[name]) if name in FORMATS else value
                for name, value in values.items()
            )


def unsteady(rows: Sequence[Row]) -> int:
    """Return how many rows have p80 over 1.5 times p20."""
    return sum(row.p80_ms > 1.5 * row.p20_ms for row in rows)
