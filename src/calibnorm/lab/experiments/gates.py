"""`calibnorm inspect gates`: how much of a trained network's figure hangs on its gates following the image.

Every finished run whose norm has gates is tested twice: as it was trained, and as the plain BatchNorm that
``calibnorm.revert(network, lossy=True)`` makes of it, with every gate the constant of an average input. RBN with both
calibrations has a third test, with its scaling gate alone held. docs/experiments.md says what is held in each layer,
and what that leaves out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab import models
from calibnorm.lab.experiments import texts
from calibnorm.lab.experiments.config import GatesConfig
from calibnorm.lab.experiments.grid import changed_sources, condition_name
from calibnorm.lab.experiments.single import tell
from calibnorm.lab.training.folder import CONFIG, RESULT, read_recipe
from calibnorm.lab.training.trained import trained
from calibnorm.methods import METHODS, Method
from calibnorm.nn import CalibratedNorm
from calibnorm.report import pictures
from calibnorm.report.document import Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.environment import describe_environment, named
from calibnorm.report.measure import Measure
from calibnorm.report.pictures import Seeds

TABLE = "average_gates.csv"


@dataclass(frozen=True)
class GatesHeld:
    """One line of average_gates.csv; figures are those that compare runs, in the unit of their task.

    Args:
        condition: "clean" or the noise.
        norm: The run's norm.
        seed: The run's seed.
        as_trained: The test figure as trained.
        average_gates: The test figure with every gate the constant of an average input.
        lost: The first minus the second.
        spread: The standard deviation of a gate over the test images divided by its mean, averaged over all channels
            and layers; None where no layer has a gate.
        average_scale: For RBN with both calibrations: the test figure with the scaling gate alone held; else None.
        instance_share: The share of the gates' variance, between channels and between images, that is between images,
            averaged likewise; None where no layer has a gate.
    """

    condition: str
    norm: str
    seed: int
    as_trained: float
    average_gates: float
    lost: float
    spread: float | None
    average_scale: float | None
    instance_share: float | None


def run(config: GatesConfig, console: Console | None = None) -> int:
    """Measure a comparison's runs, or one run; print a table and write it into the folder.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: There are no such runs, one is not whole, or the table cannot be written.
    """
    console = console or Console()
    runs, unfinished = gated_runs(config.folder)
    for sentence in changed_sources(runs):
        console.print(sentence, style="yellow", highlight=False, soft_wrap=True)
    shown = track(runs, "testing", console=console, transient=True, disable=not console.is_terminal)
    measured = [measure(folder, config.data_root) for folder in shown]
    rows = [row for row, _ in measured]
    tell(document(rows, measured[0][1], unfinished, config), config.folder, console, Path(TABLE).stem)
    return 0


def measure(folder: Path, data_root: Path) -> tuple[GatesHeld, Measure]:
    """Test a finished run with its gates and without.

    Args:
        folder: The run's.
        data_root: Where data sets lie.

    Returns:
        The line, and what its figures are.

    Raises:
        UsageError: The run's files are not there or not whole, its images are missing, or it has SE without BatchNorm.
    """
    with trained(folder, data_root) as of:
        recipe, network = of.task.recipe, of.network
        with cn.inspect.watch_gates(network) as watch:
            as_trained = of.headline()
        scale = of.headline() if cn.inspect.hold_scaling_gates(network) else None
        cn.revert(network, lossy=True)
        if any(isinstance(module, CalibratedNorm) and module.gates() for module in network.modules()):
            raise UsageError(
                f"{folder}: {recipe.model} has SE without BatchNorm, whose gates cannot be held; leave it out"
            )
        held = of.headline()
    condition, seen = condition_name(recipe.noise), watch.report()
    lost = as_trained - held
    read = seen.spread, scale, seen.instance_share
    return GatesHeld(condition, recipe.norm, recipe.seed, as_trained, held, lost, *read), of.task.headline


def gated_runs(root: Path) -> tuple[list[Path], int]:
    """Return the folders of the finished runs whose norm is calibrated by the image, and how many are not finished.

    Args:
        root: A comparison's folder, or a run's.

    Raises:
        UsageError: There are no such runs.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: is no folder; name a comparison's, such as runs/compare/NAME, or a run's")
    configs = [root / CONFIG] if (root / CONFIG).exists() else sorted(root.glob(f"*/*/seed*/{CONFIG}"))
    norms = {
        config.parent: models.parse_norm(recipe.norm).method
        for config in configs
        if (recipe := read_recipe(config.parent)) is not None
    }
    gates = [name for name, method in METHODS.items() if method.mean_gate is not Method.mean_gate]
    gated = [run for run, norm in norms.items() if norm in gates]
    finished = [run for run in gated if (run / RESULT).exists()]
    if not finished:
        found = (
            f"it has {len(gated)} unfinished" if gated else f"its runs are of {', '.join(sorted({*norms.values()}))}"
        )
        reason = found if norms else "name a comparison's folder, or a run's"
        raise UsageError(f"{root}: holds no finished run of {', '.join(gates[:-1])} or {gates[-1]}; {reason}")
    return finished, len(gated) - len(finished)


def document(rows: list[GatesHeld], measure: Measure, unfinished: int, config: GatesConfig) -> Document:
    """Return what was measured, as a table and drawn: each norm beside itself with its gates held."""
    tested = ["as trained", "average gates", "lost", "scale held"]
    columns = ["condition", "norm", "seed", *tested, "gates vary by", "by the instance"]
    cells = [
        [
            row.condition,
            row.norm,
            str(row.seed),
            measure.text(row.as_trained),
            measure.text(row.average_gates),
            f"{row.lost:.{measure.digits}f}",
            "" if row.average_scale is None else measure.text(row.average_scale),
            "" if row.spread is None else f"{100 * row.spread:.3g} %",
            "" if row.instance_share is None else f"{100 * row.instance_share:.3g} %",
        ]
        for row in rows
    ]
    left_out = f"{unfinished} unfinished runs are left out." if unfinished else ""
    name = texts.beginning(measure.label)
    how = (
        f"{name} of every run as trained, and with every gate held at the constant of an average "
        'input. For RBN there is also a test with its scaling gate alone held. "Gates vary by" is the standard '
        'deviation of a gate from image to image, over its mean; "by the instance" is the share of its variance, '
        "between channels and between images, that is between images."
    )
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        panel = panels.setdefault(row.condition, {})
        panel.setdefault(row.norm, {})[row.seed] = row.as_trained
        panel.setdefault(f"{row.norm}{',' if ':' in row.norm else ':'} gates held", {})[row.seed] = row.average_gates
    seeds = {title: {name: Seeds(of) for name, of in panel.items()} for title, panel in panels.items()}
    shows = f"{name} of every run as trained and with its gates held; lines connect those of a seed"
    picture = Picture("average_gates.png", shows, partial(pictures.finals, seeds, measure.label_with_unit))
    return Document(
        "Trained gates, held constant",
        [
            Section("", [Paragraph(how), Table(columns, cells, left=2), Paragraph(left_out)]),
            Section("Every run", [picture], on="file"),
            Section("The command that makes this", [Command(f"calibnorm inspect gates {config.folder}")], on="file"),
            Section("Made with", [Facts(named(describe_environment()))], on="file", folded=True),
        ],
        {TABLE: [asdict(row) for row in rows]},
    )
