"""A bench from start to end: measure, print, write."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from calibnorm.errors import UsageError
from calibnorm.lab.bench import layer, model, summary
from calibnorm.lab.bench.clock import copy_bandwidth
from calibnorm.lab.bench.config import LayerConfig, ModelConfig
from calibnorm.lab.bench.table import Place, Row, unsteady, write_csv
from calibnorm.report.environment import describe_environment


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def run(config: LayerConfig | ModelConfig) -> int:
    """Measure, print and write the tables.

    Returns:
        The exit status: 0, or 1 where an implementation gave wrong values and was therefore not timed.

    Raises:
        UsageError: ``config.out`` cannot be written, or the network is not known; nothing was measured then.
    """
    out = config.out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    start = time.perf_counter()
    with threads(config.threads):
        place = Place.here(config.torch_device)
        say(f"{place.device}, {place.threads} threads, torch {place.torch}, commit {place.commit or 'unknown'}")
        if isinstance(config, LayerConfig):
            rows, wrong, more, text = run_layer(config, place)
        else:
            rows, wrong, more, text = run_model(config, place)
        details = {
            "command": f"calibnorm bench {'layer' if isinstance(config, LayerConfig) else 'model'}",
            "config": config.to_dict(),
            "environment": {**describe_environment(), "device": place.device, "threads": place.threads},
            **more,
            "wrong_values": wrong,
            "seconds": round(time.perf_counter() - start, 1),
        }
    if count := unsteady(rows):
        text.append(
            f"{count} of {len(rows)} rows have p80 over 1.5 times p20: the machine was busy, do not quote these."
        )
    text += [f"WRONG VALUES: {line}" for line in wrong]
    for line in ("", *text):
        say(line)
    for path in write(config, out, rows, details, text):
        say(f"written: {path}")
    return 1 if wrong else 0


def run_layer(config: LayerConfig, place: Place) -> tuple[list[Row], list[str], dict[str, Any], list[str]]:
    """Return rows, failures, what else is worth keeping, and the summary's lines."""
    device = config.torch_device
    bandwidth = copy_bandwidth(device)
    say(f"copying a large tensor: {bandwidth:.1f} GB/s read and written")
    result, ran = layer.run_cases(config, place, say)
    text = [
        "Geometric means over shapes of time over that of nn.BatchNorm2d:",
        "",
        *summary.ratio_table(result.rows),
        "",
    ]
    if targets := summary.target_table(result.rows, device.type):
        text += ["Targets, geometric means over the shapes that were measured:", "", *targets, ""]
    more = {"copy_gb_per_s": round(bandwidth, 2), "kernels": ran, "skipped": config.skipped()}
    return result.rows, result.wrong, more, text


def run_model(config: ModelConfig, place: Place) -> tuple[list[Row], list[str], dict[str, Any], list[str]]:
    """Return rows, failures, nothing else, and the summary's lines."""
    rows, wrong = model.run_model(config, place, say)
    return rows, wrong, {}, [*summary.model_table(rows), ""]


def write(
    config: LayerConfig | ModelConfig, out: Path, rows: Sequence[Row], details: dict[str, Any], text: list[str]
) -> Iterator[Path]:
    """Write the files, and yield where each is."""
    path = out / f"{config.stem}.csv"
    write_csv(rows, path)
    yield path
    path = out / f"{config.stem}.json"
    path.write_text(json.dumps(details, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    yield path
    path = out / f"{config.stem}.md"
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    yield path
    if isinstance(config, LayerConfig) and rows:
        if find_spec("matplotlib") is None:
            say("no picture: matplotlib is not installed")
            return
        from calibnorm.lab.bench.plots import draw

        yield from draw(rows, config.torch_device.type, out, config.stem)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set torch's number of CPU threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
