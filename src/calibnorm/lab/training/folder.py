"""A run's folder: config, environment, metrics, checkpoints, weights, result."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from calibnorm import loading
from calibnorm.errors import RunFailed, Setting, UsageError
from calibnorm.lab.locks import exclusive
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks import Task
from calibnorm.lab.training.clock import Timing
from calibnorm.lab.training.contents import count, finite, numbers
from calibnorm.lab.training.progress import EpochFigures
from calibnorm.report.files import read_csv, read_json, refuse_file, write_json
from calibnorm.report.measure import Measure

CONFIG, RESULT, ENVIRONMENT = "config.json", "result.json", "environment.json"
METRICS, TIMING, NOISE, CHECKPOINTS = "metrics.csv", "timing.csv", "noise.csv", "checkpoints"
BEST, LAST, LOCK = "best.pt", "last.pt", ".lock"

NUMERICAL = ("torch", "backend", "device", "cpu", "processes", "threads", "convolutions")
"""What of the environment the last bits of a sum depend on."""


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        figures: Those of the last epoch that its task wants here, by the names of their measures; and the best headline
            of all epochs, with "best_" before its name, which flatters: it was chosen on the test images. They can be
            read as attributes, too.
        best_epoch: The epoch of the best, from 1; 0 where no epoch had finite figures.
        parameters: Learnable numbers of the network.
        epochs: Passes over the training images.
        seconds: Time in the loop, over all resumptions.
    """

    figures: dict[str, float]
    best_epoch: int
    parameters: int
    epochs: int
    seconds: float

    def __getattr__(self, name: str) -> float:
        if name in (figures := self.__dict__.get("figures", {})):
            return float(figures[name])
        raise AttributeError(name)

    def flat(self) -> dict[str, float]:
        """Return what result.json holds."""
        return {**self.figures, **{name: value for name, value in vars(self).items() if name != "figures"}}

    def sentence(self, headline: Measure) -> str:
        """Say it in a line."""
        after = f"{self.epochs} epoch{'s' if self.epochs != 1 else ''}"
        last, best = (headline.text(self.figures[f"{of}{headline.name}"]) for of in ("", "best_"))
        chosen = f"the best was {best} after {self.best_epoch}"
        chosen = chosen if self.best_epoch else "no epoch has finite test figures; try a smaller learning rate"
        return f"{headline.label} {last} after {after} ({chosen})"


def last_figures(task: Task[Any]) -> list[str]:
    """Return the names of the figures of the last epoch that result.json holds."""
    return [measure.name for measure in task.measures if measure.in_result]


def result_of(rows: Sequence[EpochFigures], task: Task[Any], parameters: int, seconds: float) -> Result:
    """Return what a run came to that ends with the last of these epochs."""
    figures = {name: rows[-1].figures[name] for name in last_figures(task)}
    best, headline = best_row(rows, task), task.headline.name
    figures[f"best_{headline}"] = math.nan if best is None else best.figures[headline]
    return Result(figures, 0 if best is None else best.epoch, parameters, len(rows), seconds)


def best_row(rows: Sequence[EpochFigures], task: Task[Any]) -> EpochFigures | None:
    """Return the first row with the best headline.

    One without a test is never it, nor one with a figure that is NaN, but for figures that can lack.
    """
    best: EpochFigures | None = None
    headline = task.headline
    names = [measure.name for measure in task.measures if measure.name.startswith("test_") and not measure.may_lack]
    for row in rows:
        finite = all(math.isfinite(row.figures[name]) for name in names)
        if finite and (best is None or headline.better(row.figures[headline.name], best.figures[headline.name])):
            best = row
    return best


def waited(rows: Sequence[EpochFigures], task: Task[Any], patience: int | None) -> bool:
    """Return whether so many tests in a row, the last ones, were no better than the best before them."""
    tested = [row for row in rows if row.tested]
    best = best_row(tested, task)
    since = len(tested) if best is None else len(tested) - 1 - tested.index(best)
    return patience is not None and since >= patience


def weights_file(place: Path, remedy: str) -> Path:
    """Return the file of the weights that a run's folder ended with, or the place itself, which is a file of weights.

    Raises:
        UsageError: There is none; the text says what to do.
    """
    path = place / LAST if place.is_dir() else place
    if not path.is_file():
        missing = f"holds no {LAST}, as a run has after its first epoch" if place.is_dir() else "is not there"
        raise UsageError(Setting("run", place), f"{missing}; {remedy}")
    return path


def read_result(folder: Path) -> Result | None:
    """Return the result of a finished run, or None; raise UsageError where something else is in the file."""
    if not (folder / RESULT).exists():
        return None
    content = read_json(folder / RESULT) or {}
    own = {field.name: content.pop(field.name, None) for field in fields(Result)[1:]}
    own |= {name: int(value) for name, value in own.items() if finite(value) and name != "seconds" and value % 1 == 0}
    counted = all(count(value) for name, value in own.items() if name != "seconds") and finite(own["seconds"])
    if not content or not counted or not numbers(content):
        raise _damaged_result(folder)
    return Result(content, **own)


def read_rows(folder: Path, task: Task[Any]) -> list[dict[str, float]]:
    """Return the lines of metrics.csv, the numbers of each by name; none where there is no such file.

    Raises:
        UsageError: Something else is in the file.
    """
    path, names = folder / METRICS, columns(task)
    try:
        text = path.read_text(encoding="utf-8")
        rows = [{name: float(line[name]) for name in names} for line in csv.DictReader(text.splitlines())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged_rows(folder) from error
    if not text.endswith("\n") or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise _damaged_rows(folder)
    return rows


def _damaged_rows(folder: Path) -> UsageError:
    remedy = f"remove it and {RESULT}, and the same command makes both again from the last checkpoint"
    return UsageError(f"{folder / METRICS}: is damaged; {remedy}")


def columns(task: Task[Any]) -> list[str]:
    """Return the columns of metrics.csv."""
    return ["epoch", *(measure.name for measure in task.measures), "learning_rate"]


def _damaged_result(folder: Path) -> UsageError:
    remedy = "remove it, and the same command makes it again from the last checkpoint"
    return UsageError(f"{folder / RESULT}: is damaged; {remedy}")


def finished(folder: Path, task: Task[Any]) -> Result | None:
    """Return the result of a folder that holds a finished run of just this task's recipe, or None.

    Raises:
        UsageError: Something else is in its files.
    """
    result = read_result(folder)
    if result is None or read_recipe(folder) != task.recipe:
        return None
    if result.figures.keys() != {*last_figures(task), f"best_{task.headline.name}"}:
        raise _damaged_result(folder)
    return result


def read_recipe(folder: Path) -> Recipe | None:
    """Return how the run of a folder is trained, None where it holds none.

    A setting that an older version had not has its default.

    Raises:
        UsageError: Its config.json cannot be read, or holds something else; or a method or a task of it is not known
            here, since what `--load` named is missing.
    """
    path = folder / CONFIG
    changed_sources(folder)
    try:
        return Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path}: is damaged ({error}); remove {folder}, or choose another folder") from error


def check(folder: Path, recipe: Recipe, override: Sequence[str] = ()) -> dict[str, Any] | None:
    """Compare a recipe with what a folder holds.

    Returns:
        The settings of the run in the folder, None where there is none, or where it ended before it had saved anything.

    Raises:
        UsageError: The folder holds something else, or a run of another recipe, but for what is named in `override`.
    """
    for name in override:
        if name not in recipe.changeable:
            known = ", ".join(sorted(recipe.changeable))
            raise UsageError(Setting("override", name), f"cannot change in a run; choose from {known}")
    refuse_file("folder", folder)
    if (folder / CHECKPOINTS).exists() and not (folder / CHECKPOINTS).is_dir():
        raise UsageError(f"{folder / CHECKPOINTS}: is a file; move it away")
    if (trained := read_recipe(folder)) is None:
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            reason = "is not empty and holds no run; choose another "
            raise UsageError(Setting("folder", folder), reason, Setting("folder"))
        return None
    if not saved(folder):
        return None
    before, now = ({"task": each.task, **each.to_dict()} for each in (trained, recipe))
    changed = [name for name in now if now[name] != before.get(name)]
    if other := [name for name in changed if name not in override]:
        name = other[0]
        reason = f"holds a run with {name} {before[name]}, not {now[name]}; choose another "
        advice = (" To change it under way: ", Setting("override", name), ".") if name in recipe.changeable else ()
        raise UsageError(Setting("folder", folder), reason, Setting("folder"), ".", *advice)
    result = read_result(folder) if changed and "epochs" not in changed else None
    if result is not None and not ("patience" in changed and result.epochs < trained.epochs):
        reason = f"the run in {folder} is finished, and would not be trained any more; give it more "
        remedy = (Setting("epochs"), ", or choose another ", Setting("folder"))
        raise UsageError(Setting("override", changed[0]), reason, *remedy)
    return before


def saved(folder: Path) -> bool:
    """Return whether a run has left anything in its folder but its settings, so that others would contradict it."""
    kept = any((folder / name).exists() for name in (METRICS, LAST, BEST, RESULT))
    return kept or any((folder / CHECKPOINTS).glob("step-*.pt"))


def check_epochs(folder: Path, epochs: int, rows: Sequence[EpochFigures]) -> None:
    """Refuse fewer epochs than a run has done: the figures and the weights would be those of another run.

    Raises:
        UsageError: There are fewer; or as many, and the last one was not tested, as no last epoch was it.
    """
    done = len(rows)
    least = done + 1 if rows and not rows[-1].tested else done
    if epochs < least:
        untested = ", the last one without a test" if least > done else ""
        reason = f"the run in {folder} has done {done} already{untested}; choose {least} or more, or choose another "
        raise UsageError(Setting("epochs", epochs), reason, Setting("folder"))


def claim(folder: Path, recipe: Recipe, override: Sequence[str] = ()) -> None:
    """Write the recipe into a folder, which `check` looks at; note what has changed where it holds a run."""
    before, now = check(folder, recipe, override), recipe.to_dict()
    if before is None:
        write_json(folder / CONFIG, now)
    elif changed := {name: [before[name], now[name]] for name in now if before[name] != now[name]}:
        notes = folder / "overrides.json"
        past = (read_json(notes) or {}).get("changes") if notes.exists() else []
        if not isinstance(past, list):
            raise UsageError(f"{notes}: is damaged; move it away")
        write_json(notes, {"changes": [*past, changed]})
        (folder / RESULT).unlink(missing_ok=True)  # of the settings of before
        write_json(folder / CONFIG, now)


def note_environment(folder: Path, environment: dict[str, Any]) -> dict[str, list[Any]]:
    """Write what a run starts on; where it goes on, add what has changed since under "later".

    A damaged file is put aside under another name.

    Returns:
        What has changed of `NUMERICAL`, by name: before and now.
    """
    path = folder / ENVIRONMENT
    first = read_json(path)
    if first is None:
        if path.exists():
            path.replace(path.with_name(f"{ENVIRONMENT}.damaged"))
        write_json(path, environment)
        return {}
    later: list[dict[str, Any]] = changes(first)
    first.pop("later", None)
    last = first.copy()
    for change in later:
        last |= change
    if changed := {name: value for name, value in environment.items() if last.get(name) != value}:
        write_json(path, {**first, "later": [*later, changed]})
    return {name: [last.get(name), changed[name]] for name in NUMERICAL if name in changed}


def sources_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Return what `--load` brought of a recipe's norm and its task, as environment.json holds it."""
    words = re.findall(r"\w+", recipe.norm)
    return loading.used_by([f"task {recipe.task}", *(f"method {word}" for word in words)])


def changed_sources(folder: Path) -> list[str]:
    """Return the files that a run was trained with by `--load` and that have changed since.

    Raises:
        UsageError: Such a file is missing here; the text says which.
    """
    first = read_json(folder / ENVIRONMENT) or {}
    states = [first, *first.get("later", [])]
    noted = [state["loaded"] for state in states if "loaded" in state]
    return loading.check(noted[-1], folder) if noted else []


def read_timings(folder: Path) -> list[Timing]:
    """Return what the steps of a run's epochs took, as timing.csv has it; none where it is missing."""
    rows = read_csv(folder / TIMING)
    return [Timing(epoch=int(row.pop("epoch")), **{name: float(text) for name, text in row.items()}) for row in rows]


def changes(environment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what changed under a run that went on elsewhere, one mapping a time; none where something else stands."""
    later = environment.get("later", [])
    return later if isinstance(later, list) and all(isinstance(each, dict) for each in later) else []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes from training in it.

    Raises:
        UsageError: The folder cannot be written, or another process trains in it.
    """
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(exclusive(folder / LOCK))
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); choose another "
            raise UsageError(Setting("folder", folder), reason, Setting("folder")) from error
        if not ours:
            raise UsageError(Setting("folder", folder), "another process is training in it; wait, or choose another")
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise RunFailed, in one line, when a file cannot be written; what was there before is whole."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); the checkpoint of before is whole"
        remedy = "make room, and start the same command again"
        raise RunFailed(f"{error.filename or folder}: {reason}: {remedy}") from error
