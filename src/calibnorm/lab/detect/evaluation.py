"""`calibnorm detect eval`: the papers' columns of a run on its validation, or of results in COCO's formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from calibnorm.lab.detect import results
from calibnorm.lab.detect.config import EvalConfig
from calibnorm.lab.detect.opening import Detector, opened
from calibnorm.lab.tasks.detect import QUALITIES, Detections, PanopticDetections
from calibnorm.lab.tasks.precision import COLUMNS
from calibnorm.lab.training.processes import Processes
from calibnorm.report.document import Document, Section, Table
from calibnorm.report.files import writing
from calibnorm.report.screen import show


def run(config: EvalConfig, console: Console | None = None) -> int:
    """Evaluate, print the tables and return the exit status.

    Raises:
        UsageError: The run, its pictures or the results are not there, or are something else.
    """
    console = console or Console()
    with opened(config.run, config.data_root) as detector:
        meter = detector.task.meter(torch.device("cpu"))
        if isinstance(meter, PanopticDetections):
            meter.keep_maps = config.out is not None
        if config.results is not None:
            from_files(detector, meter, config.results)
        else:
            batches = track(detector.test, "testing", console=console, transient=True, disable=not console.is_terminal)
            with torch.no_grad():
                for batch in batches:
                    meter.add(detector.network, batch)
        found = meter.gathered(Processes(1))
        if config.out is not None:
            with writing(config.out):
                config.out.mkdir(parents=True, exist_ok=True)
                results.write(config.out, found, detector.test.categories)
        recipe = detector.task.recipe
        title = f"{config.results or config.run}: {recipe.model}, {recipe.backbone}, {recipe.norm} on {recipe.data}"
        show(Document(title, [Section("", tables(meter.of_all(found)))]), console)
    return 0


def from_files(detector: Detector, meter: Detections, folder: Path) -> None:
    """Let a meter take in results of files in the place of a network's.

    Raises:
        UsageError: They cannot be used.
    """
    scenes, categories = detector.test.scenes.part.scenes, detector.test.categories
    with_masks = detector.task.learned != "box"
    of_instances = results.read_instances(folder / results.INSTANCES, scenes, categories, with_masks)
    if isinstance(meter, PanopticDetections):
        meter.maps = results.read_maps(folder, scenes, categories)
    for pictures, targets in detector.test:
        for picture, target in zip(pictures, targets, strict=True):
            meter.found.append(meter.of_picture(picture, of_instances[target["id"]], target))


def tables(figures: Mapping[str, float]) -> list[Any]:
    """Return the papers' columns: AP of boxes and masks, and the qualities of panoptic maps.

    >>> made = tables({f"test_box_{column}": 50.0 for column in COLUMNS})
    >>> made[0].names, made[0].rows
    (['', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'], [['box', '50.0', '50.0', '50.0', '50.0', '50.0', '50.0']])
    """
    kinds = [kind for kind in ("box", "mask") if f"test_{kind}_ap" in figures]
    heads = [f"AP{column[2:]}" for column in COLUMNS]
    rows = [[kind, *(text(figures[f"test_{kind}_{column}"]) for column in COLUMNS)] for kind in kinds]
    made = [Table(["", *heads], rows, left=1)]
    if "test_pq" in figures:
        parts = {"all": "", "things": "_things", "stuff": "_stuff"}
        rows = [[name, *(text(figures[f"test_{q}{of}"]) for q in QUALITIES)] for name, of in parts.items()]
        made.append(Table(["", *(quality.upper() for quality in QUALITIES)], rows, left=1))
    return made


def text(value: float) -> str:
    """Return a figure as the papers print it; a stroke where there is nothing to measure."""
    return "–" if math.isnan(value) else f"{value:.1f}"
