"""With which commits, on which machines and data the runs of a grid were trained: what their own folders say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calibnorm.lab.experiments.grid import Grid, Run
from calibnorm.lab.training import same_data
from calibnorm.lab.training.folder import CONFIG, ENVIRONMENT, changes
from calibnorm.report.document import Bullets, Command, Paragraph, Section
from calibnorm.report.environment import describe_environment
from calibnorm.report.files import read_json


def made_with(command: str, seconds: float | None, grid: Grid) -> list[Section]:
    """Return the command, what the runs were trained with, and what wrote the report where that is something else."""
    now = in_words(describe_environment())
    by_runs = trained_with(grid.runs())
    lines = [f"{count} run{'s' if count != 1 else ''} trained {how}." for how, count in by_runs.items()]
    if set(by_runs) != {f"with {now}"}:
        lines.append(f"This report was written with {now}.")
    where = Paragraph(
        "The settings and the machine of every run stand in its folder, in config.json and environment.json. "
        "results.csv has a line for every run, summary.csv one for every cell."
    )
    took = "" if seconds is None else f"It took {seconds:.0f} s this time; what is finished is not trained again."
    return [
        Section("The command that makes this", [Command(command), Paragraph(took)], on="file"),
        Section("Made with", [Bullets([*lines, *trained_on(grid.runs())]), where], on="file", folded=True),
    ]


def trained_with(runs: Iterable[Run]) -> dict[str, int]:
    """Return how the runs that have begun were trained, with how many of them were, the most frequent first."""
    counted = Counter(of_run(run) for run in runs if (run.folder / CONFIG).exists())
    return dict(counted.most_common())


def trained_on(runs: Iterable[Run]) -> list[str]:
    """Return sentences on the data of the runs that have begun, each set once."""
    found = [contents for run in runs if (contents := same_data.noted(run.folder)) is not None]
    return [f"{text}." for text in dict.fromkeys(text for contents in found for text in contents.in_words())]


def of_run(run: Run) -> str:
    """Return what a run was trained with; one that went on elsewhere has several parts."""
    states = environments(run.folder)
    return f"with {'; then with '.join(dict.fromkeys(map(in_words, states)))}" if states else "where nothing was noted"


def environments(folder: Path) -> list[dict[str, Any]]:
    """Return what a run was trained on, in its order: more than one where it went on elsewhere."""
    first = read_json(folder / ENVIRONMENT)
    states = [] if first is None else [{name: value for name, value in first.items() if name != "later"}]
    for change in changes(first or {}):  # each holds what differs from the one before
        states.append(states[-1] | change)
    return states


def in_words(environment: dict[str, Any]) -> str:
    """Return versions, commit and machine in words."""
    e = environment
    commit = f" (commit {e['commit']})" if e.get("commit") else ""
    sources = "".join(f", {Path(of['path']).name} ({of['sha256'][:12]})" for of in e.get("loaded", []))
    device = f", device {e['device']}" if e.get("device", "cpu") != "cpu" else ""
    return (
        f"calibnorm {e.get('calibnorm', '?')}{commit}, torch {e.get('torch', '?')}, Python {e.get('python', '?')}, "
        f"on {e.get('cpu', '?')} with {e.get('cpu_count', '?')} cores, {e.get('platform', '?')}{device}{sources}"
    )
