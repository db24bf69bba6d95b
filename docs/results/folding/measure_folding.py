"""What cn.fold saves in trained networks, and what it costs: accuracy and latency at several tolerances.

python docs/results/folding/measure_folding.py NAME=RUN [NAME=RUN ...]      finished runs, with names for the table

Each run's network is folded on training images, and tested on all test images of its task. Latency is that of one
image in eager torch on one thread, in time of the processor, all variants of a network taken in turns; plain is the
network with BatchNorm in the layers' places (cn.revert), itself folded into the convolutions. Results go to
results.csv, report.md and curve.png beside this file, and the texts of cn.fold for the tolerance SHOWN to a text file
for each network. A NAME is "network, norm" or "network, norm, condition". Without runs the report is written anew.
"""

from __future__ import annotations

import copy
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.bench.clock import Clock, Run, Times, measure
from calibnorm.bench.inference import runner
from calibnorm.lab.experiments.calibration import first
from calibnorm.lab.naming import slug
from calibnorm.lab.training.trained import Trained, trained
from calibnorm.networks import finding
from calibnorm.nn import CalibratedNorm
from calibnorm.report import markdown, pictures, screen
from calibnorm.report.document import Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.environment import describe_environment, named
from calibnorm.report.files import read_csv, write_csv
from calibnorm.report.pictures.bands import Point

HERE = Path(__file__).parent
TABLE = HERE / "results.csv"
TOLERANCES = (0.0, 0.005, 0.02, 0.1, None)
SHOWN = 0.02
IMAGES, REPEATS = 128, 60
CALIBRATED, PLAIN = "calibrated", "plain BatchNorm, folded"


class ProcessorClock(Clock):
    """Leaves out the time that other work on the machine takes."""

    def time(self, run: Run, into: Times) -> None:
        """Time one call."""
        start = time.process_time()
        run()
        into.ms.append(1e3 * (time.process_time() - start))


def rows_of(name: str, of: Trained) -> tuple[list[dict[str, Any]], str]:
    """Return a line for each variant of a run's network, and what cn.fold says at the tolerance SHOWN."""
    images, text = first_images(of), ""
    networks: dict[str, nn.Module] = {CALIBRATED: of.network}
    rows = {CALIBRATED: row(name, CALIBRATED, of, of.network, None)}
    for tolerance in TOLERANCES:
        variant = f"folded, {'no limit' if tolerance is None else f'{100 * tolerance:g} %'}"
        network, said = copy.deepcopy(of.network), list[str]()
        plan = cn.fold_plan(network, images, tolerance=tolerance)
        networks[variant] = cn.fold(network, plan, into_convolutions=True, report=said.append)
        rows[variant] = row(name, variant, of, networks[variant], plan)
        text = said[0] if tolerance == SHOWN else text
    plain = cn.revert(copy.deepcopy(of.network), lossy=True)
    networks[PLAIN] = cn.fold(plain, images, into_convolutions=True)
    rows[PLAIN] = row(name, PLAIN, of, networks[PLAIN], None)
    with torch.no_grad():
        calls = {variant: (nothing, runner(net.eval(), images[:1], "eager", 1)) for variant, net in networks.items()}
        times = measure(calls, ProcessorClock(), REPEATS)
    slow = times[CALIBRATED].quantiles[1]
    for variant, found in rows.items():
        found["ms"] = round(times[variant].quantiles[1], 2)
        found["time_saved"] = round(100 * (1 - times[variant].quantiles[1] / slow), 1)
        found["lost"] = round(rows[CALIBRATED]["accuracy"] - found["accuracy"], 2)
        found["cpu"] = describe_environment()["cpu"]
    return list(rows.values()), text


def nothing() -> None:
    """Prepare nothing."""


def first_images(of: Trained) -> Tensor:
    """Return training images, as many as IMAGES."""
    return torch.cat(list(first(of.feeds.train, IMAGES)))


def row(name: str, variant: str, of: Trained, network: nn.Module, plan: Any) -> dict[str, Any]:
    """Return what is known of a variant before it is timed."""
    entries = [entry.module for entry in finding.find_layers(of.network)]
    layers = sum(isinstance(module, CalibratedNorm) for module in entries)
    folded = None if plan is None else sum(layer["fold"] for layer in plan["layers"].values())
    whole = {} if plan is None else plan["whole"]
    return {
        "network": name,
        "variant": variant,
        "layers_folded": layers if variant == PLAIN else folded or 0,
        "layers": layers,
        "numbers_read": percent(whole.get("saved")),
        "outputs_change": percent(whole.get("logit_change")),
        "answers_change": percent(whole.get("answers_changed")),
        "accuracy": round(Trained(of.task, of.feeds, network).headline(), 2),
    }


def percent(share: float | None) -> float | None:
    """Return a share of 1 in percent."""
    return None if share is None else round(100 * share, 2)


def document(rows: list[dict[str, Any]]) -> Document:
    """Return the report."""
    how = (
        "Shares and accuracies are in percent; lost is accuracy below the calibrated network, in points. The tolerance "
        f"is how far the outputs may move, in their own standard deviation. {IMAGES} training images were given to "
        "cn.fold: one half chose, and changes of outputs and of answers are those on the other half. Accuracy is that "
        "of all test images. ms is the latency of one image, eager, on one thread; time saved is its share of the "
        "calibrated network's, on the machine that the line names."
    )
    label = "accuracy lost, points"
    columns: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for found in sorted(rows, key=lambda found: found["time_saved"]):
        if found["variant"] != PLAIN:
            network, norm, *condition = found["network"].split(", ", 2)
            curves = columns.setdefault(", ".join([network, *condition]), {label: {}})[label]
            curves.setdefault(norm, []).append(Point(found["time_saved"], *[found["lost"]] * 3))
    draw = partial(pictures.bands, dict(sorted(columns.items())), "time saved, %", logarithmic=False)
    shows = "Accuracy lost against time saved, a mark for each tolerance"
    named_runs = " ".join(f'"{name}=RUN"' for name in dict.fromkeys(found["network"] for found in rows))
    command = f"python docs/results/folding/measure_folding.py {named_runs}"
    return Document(
        "Folding trained networks",
        [
            Section("", [Paragraph(how), Table.of(rows, left=2), Picture("curve.png", shows, draw)]),
            Section("The command that makes this", [Command(command)]),
            Section("Made with", [Facts(named(describe_environment()))]),
        ],
    )


def known() -> list[dict[str, Any]]:
    """Return the lines of results.csv, with numbers as numbers."""
    return [{key: value_of(key, text) for key, text in line.items()} for line in read_csv(TABLE)]


def value_of(key: str, text: str) -> Any:
    """Return a cell as a number, where it is one; None where it is empty."""
    return text if key in ("network", "variant", "cpu") else float(text) if text else None


def main() -> None:
    """Measure the runs of the command line."""
    torch.set_num_threads(1)
    for name, _, folder in (argument.partition("=") for argument in sys.argv[1:]):
        with trained(Path(folder), Path("data")) as of:
            found, text = rows_of(name, of)
        (HERE / f"{slug(name.replace(', ', ' '), '-')}.txt").write_text(
            f"cn.fold, {name}, tolerance {SHOWN:g}\n\n{text}\n"
        )
        write_csv(TABLE, [*(row for row in known() if row["network"] != name), *found])
        screen.show(Document(name, [Section("", [Table.of(found, left=2)])]))
    markdown.write(document(known()), HERE / "report.md")


if __name__ == "__main__":
    main()
