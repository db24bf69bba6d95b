"""A bench from start to end: measure, print, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from calibnorm.bench import inference, layer, model, summary
from calibnorm.bench.config import Config, InferenceConfig, LayerConfig, ModelConfig
from calibnorm.bench.timings import Measured, Place, say, write_timings
from calibnorm.errors import Setting, UsageError
from calibnorm.report import screen
from calibnorm.report.environment import describe_environment
from calibnorm.report.files import write_json, writing
from calibnorm.report.writing import write

BENCHES: dict[type[Config], tuple[str, Callable[[Any, Place], Measured]]] = {
    LayerConfig: ("layer", layer.run_layer),
    ModelConfig: ("model", model.run_model),
    InferenceConfig: ("inference", inference.run_inference),
}
"""How a bench is called, and what runs it, by its settings."""


def run(config: Config) -> int:
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
        raise UsageError(Setting("out", out), f"cannot be written ({error.strerror}); choose another folder") from error
    start = time.perf_counter()
    with threads(config.threads):
        place = Place.here(config.torch_device)
        say(f"{place}, commit {place.commit or 'unknown'}")
        bench, run_it = BENCHES[type(config)]
        measured = run_it(config, place)
        details = {
            "command": f"calibnorm bench {bench}",
            "config": config.to_dict(),
            "environment": {**describe_environment(), "device": place.device, "threads": place.threads},
            **measured.details,
            "wrong_values": measured.wrong,
            "seconds": round(time.perf_counter() - start, 1),
        }
    report = summary.report_of(measured._replace(details=details))
    try:  # first, as whoever reads the output may leave
        with writing(out):
            write_timings(out / f"{config.stem}.csv", measured.timings)
            write_json(out / f"{config.stem}.json", details)
            reports = write(report, out, config.stem)
    except UsageError:
        screen.show(report)
        raise
    screen.show(report)
    for path in (out / f"{config.stem}.csv", out / f"{config.stem}.json", *reports):
        say(f"written: {path}")
    if report.pictures() and find_spec("matplotlib") is None:
        say("no PNG: matplotlib is not installed; the page has its pictures all the same")
    return 1 if measured.wrong else 0


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
