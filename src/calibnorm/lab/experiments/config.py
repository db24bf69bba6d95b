"""The settings of `calibnorm compare` and `calibnorm table`, as the command line takes them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import tyro

from calibnorm import loading
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.experiments.tables.definitions import TABLES
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training.machine import Accelerator

NOT_OVERRIDDEN = frozenset({"norm", "noise", "seed"})
"""What a grid varies."""
MOST_SEEDS = 10_000
Scale = Literal["tiny", "small", "paper"]
Settings = TypeVar("Settings", bound="CompareConfig")


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
    """Return how help calls values of a type.

    >>> metavar(int | None), metavar(tuple[int, ...]), metavar(Literal["step", "cosine"])
    ('INT|none', 'INT ...', 'step|cosine')
    """
    if isinstance(hint, UnionType):
        return "|".join("none" if kind is type(None) else metavar(kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return f"{metavar(get_args(hint)[0])} ..."
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    return str(hint.__name__).upper()


def overrides(kind: type[Recipe]) -> Any:
    """Return the type of the settings that a command replaces: a recipe's by name, and those alone that are given."""
    hints = get_type_hints(kind)
    texts = {name: text for base in reversed(kind.__mro__[:-1]) for name, text in documented(base).items()}

    def made(name: str) -> Any:
        shown = None if hints[name] is bool else metavar(hints[name])  # a switch takes no value
        text = tyro.conf.arg(help=texts[name], metavar=shown, help_behavior_hint="(default: the recipe's)")
        return Annotated[hints[name], text]

    make: Any = TypedDict  # a type checker wants the names in the source
    return make("Overrides", {f.name: made(f.name) for f in fields(kind) if f.name not in NOT_OVERRIDDEN}, total=False)


def for_recipe(settings: type[Settings], kind: type[Recipe]) -> type[Settings]:
    """Return the settings of a comparison with an option for every setting of a kind of recipe."""
    given: Any = Annotated[overrides(kind), tyro.conf.arg(name="")]
    override: Any = field(default_factory=dict)
    return make_dataclass(settings.__name__, [("override", given, override)], bases=(settings,), frozen=True)


def data_words(data_root: Path) -> list[str]:
    """Return the words that say where the data sets are, for the command in a report; none for the usual folder.

    >>> data_words(Path("pictures")), data_words(Path("data"))
    (['--data-root', 'pictures'], [])
    """
    return [] if data_root == Common.data_root else ["--data-root", str(data_root)]


def check_seeds(seeds: int) -> None:
    """Raise UsageError for no seed, or for more than a folder can hold runs."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(Setting("seeds", seeds), f"must be {'at least 1' if seeds < 1 else f'at most {MOST_SEEDS}'}")


@dataclass(frozen=True)
class Common:
    """What both commands have."""

    after_divergence: ClassVar[str] = ""
    """What a user can do about a run whose loss is NaN, behind the sentence that says so."""

    jobs: int | None = None
    """Processes of one thread each; by default one a core, or one a GPU; 0 trains in the command's own
    process. The results do not depend on their number."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    accelerator: Accelerator = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.jobs is not None and self.jobs < 0:
            raise UsageError(Setting("jobs", self.jobs), "must not be negative")

    @property
    def processes(self) -> int:
        """How many processes train."""
        import torch

        from calibnorm.lab.data.workers import cores

        if self.jobs is not None:
            return self.jobs
        gpus = 0 if self.accelerator == "cpu" else torch.cuda.device_count()
        return gpus or cores()


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What commands have that can meet norms, recipes and tasks of the user."""

    load: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|MODULE ...")] = ()
    """Python files or modules to import first, which register norms, recipes or tasks of your own."""

    def __post_init__(self) -> None:
        """Import them."""
        loading.load(self.load)


@dataclass(frozen=True)
class CompareConfig(Loading, Common):
    """The settings of `calibnorm compare`."""

    command: ClassVar[str] = "calibnorm compare"
    default_noise: ClassVar[tuple[str, ...]] = ("none",)
    after_divergence = (
        "; a smaller --learning-rate, more --warmup-epochs or a --clip-norm make another comparison: give it a --name"
    )

    recipe: tyro.conf.Positional[str] = "digits-tiny"
    """Recipe that all runs share; `calibnorm train --list` lists them."""
    norms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NORM ...")] = ("bn", "se", "iebn", "rbn")
    """What to compare, options behind a colon: bn:gamma_init=0.269."""
    baseline: Annotated[str | None, tyro.conf.arg(metavar="NORM")] = None
    """The norm, one of --norms, that the others are compared with; the first by default."""
    noise: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="none|N_a,N_b")] = ()
    """A condition: none, or a constant noise attack such as 0.5,0.2. Give it once for each condition;
    without it, there is none alone (in the demo: none and 0.8,0.5)."""
    seeds: int = 3
    """Runs of each norm in each condition; each seed gives all norms the same initial weights and batches."""
    name: str | None = None
    """Name of the comparison, by default the recipe's. Runs that it holds are not trained again."""
    out: Path = Path("runs/compare")
    """Folder for comparisons; this one is in the folder NAME in it."""
    override: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    """Settings of the recipe that are replaced, by name."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        Common.__post_init__(self)
        Loading.__post_init__(self)
        check_seeds(self.seeds)
        if not self.norms:
            raise UsageError(Setting("norms"), "name at least one")

    @property
    def conditions(self) -> tuple[str, ...]:
        """The noise of each condition."""
        return self.noise or self.default_noise

    def rows(self, recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
        """Yield the name and the recipe of every row of the grid.

        Raises:
            UsageError: A condition is none, or two are equal.
        """
        from calibnorm.lab.experiments.grid import conditions

        return conditions(recipe, self.conditions)

    def words(self) -> list[str]:
        """Return the words of a command line that a comparison of another kind has besides."""
        return []


@dataclass(frozen=True)
class GatesConfig(Loading):
    """The settings of `calibnorm inspect gates`."""

    folder: tyro.conf.Positional[Path]
    """Folder of a comparison, such as runs/compare/NAME, or of a run."""
    data_root: Path = Path("data")
    """Folder of the data sets."""


@dataclass(frozen=True)
class InspectConfig:
    """The settings of `calibnorm inspect`."""

    folder: tyro.conf.Positional[Path] = Path()
    """Folder of a finished run, such as runs/digits-tiny/iebn-seed0."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    layer: str | None = None
    """The calibrated layer, such as layer3.1.bn2, whose channels and features of an image are shown; by default that
    whose gate varies most from image to image."""

    def __post_init__(self) -> None:
        """Refuse a missing folder."""
        if self.folder == Path():
            example = "such as runs/digits-tiny/iebn-seed0; or: calibnorm inspect gates FOLDER"
            raise UsageError(f"inspect: needs a word; name a run's folder, {example}")


@dataclass(frozen=True)
class ReportConfig:
    """The settings of `calibnorm report`."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs, of comparisons or of tables; or a bench's, such as runs/bench, or one of its JSON files."""
    out: Path | None = None
    """Folder of the page; runs/report/NAME by default, with the name of what is reported."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    gates: bool = True
    """Read the trained networks, for their gates and their batch noise by layer. That takes a pass over the test
    images for each, and 5376 images for the noise."""


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
            wrong = f" {self.table}: is not known" if self.table else ": a name is missing"
            raise UsageError(f"table{wrong}; choose one of {', '.join(TABLES)}")
        check_seeds(1 if self.seeds is None else self.seeds)
