"""The rows of the tables: one case of one implementation, with the columns that the project's measurements share."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import device as Device
from torch import get_num_threads
from torch.cuda import get_device_name
from torch.version import __version__ as torch_version

from calibnorm.lab.bench.clock import Times
from calibnorm.lab.bench.impls import BASELINE
from calibnorm.report.environment import cpu_name, library_commit, package_version


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
    def here(cls, device: Device) -> Place:
        """Return this machine, this checkout and this day."""
        commit, plus, _ = (library_commit() or "").partition("+")
        return cls(
            get_device_name(device) if device.type == "cuda" else cpu_name(),
            torch_version,
            package_version("triton") or "",
            get_num_threads(),
            commit[:9] + ("+changes" if plus else ""),
            datetime.date.today().isoformat(),
        )


def rows_of(
    times: dict[str, Times], place: Place, what: tuple[str, str, str, str, str], gigabytes: dict[str, float]
) -> list[Row]:
    """Return the rows of a case.

    Args:
        times: Of every implementation, the baseline among them.
        place: Where they were taken.
        what: Operation, mode, shape, dtype and layout.
        gigabytes: By implementation, what the leanest one of its kind moves; none where that is not known.
    """
    op, mode, shape, dtype, layout = what
    _, baseline, _ = times[BASELINE].quantiles
    rows = []
    for name, of in times.items():
        p20, p50, p80 = of.quantiles
        gb_per_s = gigabytes[name] / (p50 / 1e3) if name in gigabytes else None
        row = (op, name, mode, shape, dtype, layout, p20, p50, p80, gb_per_s, p50 / baseline, of.peak_mib)
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
