"""Reading and making the rows of `calibnorm bench`."""

from __future__ import annotations

import csv
from pathlib import Path

from calibnorm.bench.timings import Timing

COLUMNS = [
    *("op", "impl", "mode", "shape", "dtype", "layout", "p20_ms", "p50_ms", "p80_ms", "gb_per_s", "ratio_to_bn"),
    *("peak_mib", "device", "torch", "triton", "threads", "commit", "date"),
]
CPU = ["--device", "cpu"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made(impl: str, mode: str, shape: str, ms: float, **of: str) -> Timing:
    place = {"device": "x", "torch": "2", "triton": "", "threads": 2, "commit": "", "date": ""}
    what = {"op": "norm", "dtype": "float32", "layout": "NCHW", **of}
    times = {"p20_ms": ms, "p50_ms": ms, "p80_ms": ms, "gb_per_s": None, "ratio_to_bn": ms / 4, "peak_mib": None}
    return Timing(impl=impl, mode=mode, shape=shape, **what, **times, **place)
