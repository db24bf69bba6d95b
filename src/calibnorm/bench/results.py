"""The files of a bench: what it writes beside its report, and how that is read again."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from calibnorm.bench.config import Config, InferenceConfig, LayerConfig, ModelConfig
from calibnorm.bench.timings import FORMATS, Measured, Timing
from calibnorm.errors import Setting, UsageError, as_option
from calibnorm.report.files import read_json

CONFIGS: dict[str, type[Config]] = {
    "calibnorm bench layer": LayerConfig,
    "calibnorm bench model": ModelConfig,
    "calibnorm bench inference": InferenceConfig,
}
"""By the command that the details name."""


def found(place: Path) -> list[Path]:
    """Return the details of the benches that a folder holds, or that a file is; none where it is something else."""
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place.with_suffix(".json")]
    return [path for path in paths if (read_json(path) or {}).get("command") in CONFIGS]


def read(path: Path) -> Measured:
    """Return what a bench has measured, of the file with its details and the CSV beside it.

    Raises:
        UsageError: The CSV is missing or holds something else.
    """
    details = read_json(path) or {}
    try:
        with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
            timings = [timing(line) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError) as error:
        reason = "is missing or damaged, and holds the timings; run the bench again"
        raise UsageError(f"{path.with_suffix('.csv')}: {reason}") from error
    return Measured(timings, list(details.get("wrong_values", [])), details)


def timing(line: Mapping[str, str]) -> Timing:
    """Return the timing of a line of the CSV."""
    values: dict[str, Any] = {field.name: line[field.name] for field in fields(Timing)}
    values |= {name: float(line[name]) if line[name] else None for name in FORMATS}
    return Timing(**{**values, "threads": int(line["threads"])})


def command_line(details: Mapping[str, Any]) -> str:
    """Return the command that measures the same, with the settings that are not their defaults; "" where none is known.

    >>> command_line({"command": "calibnorm bench layer", "config": {"ops": ["norm"], "repeats": 20, "out": "runs/x"}})
    'calibnorm bench layer --ops norm --out runs/x'
    """
    if (command := details.get("command")) not in CONFIGS:
        return ""
    defaults = {field.name: field.default for field in fields(CONFIGS[command])}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in details["config"].items()}
    changed = [Setting(name, v) for name, v in given.items() if name in defaults and str(v) != str(defaults[name])]
    return shlex.join([*command.split(), *(word for setting in changed for word in as_option(setting).split())])
