"""The settings of `calibnorm stylize apply`, `compare` and `export`, as the command line takes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.experiments.config import CompareConfig, Loading
from calibnorm.lab.recipes import Recipe, Stylization, recipe


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(Loading):
    """The settings of `calibnorm stylize apply`."""

    run: tyro.conf.Positional[Path] = Path()
    """Folder of a run of `calibnorm stylize train`, or its weights: last.pt, best.pt, or a file of `stylize export`."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE ...")] = ()
    """Pictures, or folders of pictures, such as a video's frames: these in the order of their names."""
    out: Path = Path("runs/stylized")
    """Folder for the pictures; each has its own name there, and those of a folder their places in it. Of two that have
    one name the second has that of its folder, too."""
    format: Literal["png", "jpg"] = "png"
    """What the pictures are written as."""
    memory: float = 2.5
    """GiB that the features of a picture may take. A larger picture goes through in strips, to the same result, and on
    the disk where its strips' features take more, too."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        super().__post_init__()
        if self.run == Path() or not self.images:
            what = "a network" if self.run == Path() else "pictures"
            raise UsageError(f"stylize apply: needs {what}: calibnorm stylize apply RUN IMAGE ... --out FOLDER")
        if not self.memory > 0:
            raise UsageError(Setting("memory", self.memory), "must be a positive number")


@dataclass(frozen=True)
class StyleCompareConfig(CompareConfig):
    """The settings of `calibnorm stylize compare`."""

    command: ClassVar[str] = "calibnorm stylize compare"

    recipe: tyro.conf.Positional[str] = "style-small"
    """Recipe of style transfer that all runs share."""
    norms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NORM ...")] = ("bn", "in", "se", "iebn", "rbn")
    """What to compare, options behind a colon: rbn:scale_stat=std."""
    styles: Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE ...")] = ("tissue", "gravel")
    """The styles, each a row: files, or pictures that scikit-image and scikit-learn bring."""
    seeds: int = 2
    """Runs of each norm and style; each seed gives all norms the same initial weights and batches."""
    out: Path = Path("runs/stylize")
    """Folder for comparisons; this one is in the folder NAME in it."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if "style" in self.override:
            raise UsageError(Setting("style", self.override["style"]), "is one; name all behind ", Setting("styles"))
        if not isinstance(recipe(self.recipe), Stylization):
            raise UsageError(f"recipe {self.recipe}: is none of style transfer; choose style-small or style-paper")
        if len(names := [Path(style).stem for style in self.styles]) != len(set(names)):
            raise UsageError(Setting("styles", self.styles), "two have the same name; rename one")

    def rows(self, recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
        """Yield every style under every condition."""
        for condition, of in super().rows(recipe):
            changed: Any = of
            for style in self.styles:
                name = Path(style).stem
                yield name if of.noise is None else f"{name}, {condition}", replace(changed, style=style)

    def words(self) -> list[str]:
        """Return the styles."""
        return ["--styles", *map(shlex.quote, self.styles)]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Loading):
    """The settings of `calibnorm stylize export`."""

    run: tyro.conf.Positional[Path] = Path()
    """Folder of a run of `calibnorm stylize train`, or its weights: last.pt or best.pt."""
    out: Path = Path("style.safetensors")
    """File to write: .safetensors for weights, .onnx for a network that takes pictures of any size."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        super().__post_init__()
        if self.run == Path():
            raise UsageError("stylize export: needs a network: calibnorm stylize export RUN --out style.onnx")
        if self.out.suffix not in (".safetensors", ".onnx"):
            raise UsageError(Setting("out", self.out), "must end in .safetensors or .onnx")
