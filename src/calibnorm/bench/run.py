"""A bench from start to end: measure, print, write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from calibnorm.bench import inference, layer, model, summary
from calibnorm.bench.config import Config, LayerConfig, ModelConfig
from calibnorm.bench.timings import Place, say, write_timings
from calibnorm.errors import Setting, UsageError
from calibnorm.report import markdown, screen
from calibnorm.report.environment import describe_environment
from calibnorm.report.files import write_json


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
        if isinstance(config, LayerConfig):
            measured = layer.run_layer(config, place)
            report = summary.layer_report(measured)
        elif isinstance(config, ModelConfig):
            measured = model.run_model(config, place)
            report = summary.model_report(measured)
        else:
            measured = inference.run_inference(config, place)
            report = summary.inference_report(measured)
        details = {
            "command": report.title,
            "config": config.to_dict(),
            "environment": {**describe_environment(), "device": place.device, "threads": place.threads},
            **measured.details,
            "wrong_values": measured.wrong,
            "seconds": round(time.perf_counter() - start, 1),
        }
    screen.show(report)
    write_timings(out / f"{config.stem}.csv", measured.timings)
    write_json(out / f"{config.stem}.json", details)
    reports = markdown.write(report, out / f"{config.stem}.md")
    for path in (out / f"{config.stem}.csv", out / f"{config.stem}.json", *reports):
        say(f"written: {path}")
    if report.pictures() and find_spec("matplotlib") is None:
        say("no picture: matplotlib is not installed")
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
