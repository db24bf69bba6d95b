"""The settings of `calibnorm detect eval`, `show` and `make-mini`, as the command line takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.coco.folder import MINI_SEED, MINI_TRAIN, MINI_VAL
from calibnorm.lab.experiments.config import Loading


@dataclass(frozen=True, kw_only=True)
class OfRun(Loading):
    """What both commands have that open a run."""

    run: tyro.conf.Positional[Path] = Path()
    """Folder of a finished run of `calibnorm detect train`."""
    data_root: Path = Path("data")
    """Folder that holds the miniature, as for the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run == Path():
            raise UsageError("detect: needs a run: calibnorm detect eval RUN, or calibnorm detect show RUN PICTURE ...")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(OfRun):
    """The settings of `calibnorm detect eval`."""

    results: Path | None = None
    """Folder of results in COCO's formats to evaluate in the place of the network's own: instances.json, and for
    panoptic maps panoptic.json with the folder panoptic."""
    out: Path | None = None
    """Folder to write the results into, in those formats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UsageError(Setting("out", self.out), "is there already; choose a new folder")
        if self.results is not None and self.out is not None:
            raise UsageError(Setting("out", self.out), "writes the network's results; give it or ", Setting("results"))


@dataclass(frozen=True, kw_only=True)
class ShowConfig(OfRun):
    """The settings of `calibnorm detect show`."""

    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE ...")] = ()
    """Pictures, or folders of pictures; the first ones of the validation by default. Those of the validation stand
    beside the truth."""
    count: int = 8
    """How many of the validation are shown where no picture is named."""
    least_score: float = 0.5
    """Boxes and masks of lower scores are not drawn."""
    out: Path = Path("runs/shown")
    """Folder for the drawings; each has the name of its picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise UsageError(Setting("count", self.count), "must be at least 1")
        if not 0 <= self.least_score <= 1:
            raise UsageError(Setting("least_score", self.least_score), "must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class MiniConfig:
    """The settings of `calibnorm detect make-mini`."""

    folder: tyro.conf.Positional[Path] = Path()
    """Where it is made; it must not be there."""
    train: int = MINI_TRAIN
    """Pictures to train on."""
    val: int = MINI_VAL
    """Pictures to validate on."""
    seed: int = MINI_SEED
    """What all of them come from."""

    def __post_init__(self) -> None:
        if self.folder == Path():
            raise UsageError(
                "detect make-mini: needs a folder: calibnorm detect make-mini FOLDER --train 600 --val 150"
            )
        if self.folder.exists():
            raise UsageError(f"{self.folder}: is there already; choose a new folder")
        for name in ("train", "val"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise UsageError(Setting(name, getattr(self, name)), "must be from 1 to 100000")
        if not 0 <= self.seed < 2**63:
            raise UsageError(Setting("seed", self.seed), "must not be negative, nor have more than 63 bits")
