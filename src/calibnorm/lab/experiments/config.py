"""The settings of `calibnorm compare` and `calibnorm table`, as the command line takes them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import textwrap
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes import Recipe

NOT_OVERRIDDEN = frozenset({"norm", "noise", "seed"})
"""What a grid varies."""
TABLES = ("iebn-1", "iebn-2", "iebn-3", "iebn-4", "iebn-5", "iebn-fig4", "rbn-1", "rbn-2", "rbn-3", "rbn-4")
Scale = Literal["tiny", "small", "paper"]


def documented(cls: type) -> dict[str, str]:
    """Return the text below every field of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(before.target)] = " ".join(str(after.value.value).split())
    return found


def metavar(hint: Any) -> str:
    """Return how help calls values of a type, without the None of an option that is not given.

    >>> metavar(int | None), metavar(bool), metavar(tuple[int, ...]), metavar(Literal["step", "cosine"])
    ('INT', 'True|False', 'INT ...', 'step|cosine')
    """
    (kind, *_) = [kind for kind in get_args(hint) if kind is not type(None)] if isinstance(hint, UnionType) else [hint]
    if get_origin(kind) is tuple:
        return f"{metavar(get_args(kind)[0])} ..."
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return "True|False" if kind is bool else str(kind.__name__).upper()


def overrides() -> type:
    """Return a dataclass with the settings of a recipe that a command may replace, all None: as the recipe has them."""
    hints, texts = get_type_hints(Recipe), documented(Recipe)

    def made(name: str) -> tuple[str, Any, Any]:
        shown = tyro.conf.arg(
            help=texts[name], metavar=metavar(hints[name]), help_behavior_hint="(default: the recipe's)"
        )
        return name, Annotated[hints[name] | None, shown], field(default=None)

    return make_dataclass(
        "Overrides", [made(f.name) for f in fields(Recipe) if f.name not in NOT_OVERRIDDEN], frozen=True
    )


Overrides: Any = overrides()
NO_OVERRIDES = Overrides()


def overridden(recipe: Recipe, changes: object) -> Recipe:
    """Return the recipe with the settings that ``changes`` has."""
    given = {f.name: getattr(changes, f.name) for f in fields(Recipe) if getattr(changes, f.name, None) is not None}
    return dataclasses.replace(recipe, **given)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Common:
    """What both commands have."""

    jobs: int | None = None
    """Processes of one thread each; by default one a core, or one a GPU. The results do not depend on their number."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: must be at least 1")

    @property
    def processes(self) -> int:
        """How many processes train."""
        import torch

        if self.jobs is not None:
            return self.jobs
        gpus = 0 if self.accelerator == "cpu" else torch.cuda.device_count()
        return gpus or cores()


@dataclass(frozen=True)
class CompareConfig(Common):
    """The settings of `calibnorm compare`."""

    recipe: tyro.conf.Positional[str] = "study-fashion"
    """Recipe that all runs share; `calibnorm train --help` lists them."""
    norms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NORM ...")] = ("bn", "se", "iebn", "rbn")
    """What to compare, options behind a colon: bn:gamma_init=0.269. The others are compared with the first."""
    noise: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="none|N_a,N_b")] = ()
    """A condition: none, or a constant noise attack such as 0.5,0.2. Once for each; without it, none alone."""
    seeds: int = 3
    """Runs of each norm in each condition; each seed gives all norms the same initial weights and batches."""
    name: str | None = None
    """Name of the comparison, by default the recipe's. Runs that it holds are not trained again."""
    out: Path = Path("runs/compare")
    """Folder for comparisons; this one is in the folder NAME in it."""
    override: Annotated[Overrides, tyro.conf.arg(name="")] = NO_OVERRIDES

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: must be at least 1")
        if not self.norms:
            raise UsageError("--norms: name at least one")


@dataclass(frozen=True)
class TableConfig(Common):
    """The settings of `calibnorm table`."""

    table: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="|".join(TABLES))] = ""
    """Which table or figure of a paper."""
    scale: Scale = "tiny"
    """tiny: digits and the smallest networks, minutes on two cores; small: a part of FashionMNIST, about an hour;
    paper: the paper's own data, networks and epochs."""
    seeds: int | None = None
    """Runs of each cell; by default 2 at tiny scale, 3 at others."""
    out: Path = Path("runs/table")
    """Folder for tables; this one is in the folder TABLE-SCALE in it."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if self.table not in TABLES:
            raise UsageError(f"table {self.table!r}: unknown; choose one of {', '.join(TABLES)}")
        if self.seeds is not None and self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: must be at least 1")
