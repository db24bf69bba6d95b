"""The settings of `calibnorm predict` and `calibnorm export`, as the command line takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.experiments.config import Loading
from calibnorm.lab.training.machine import Accelerator
from calibnorm.report.files import refuse_folder

ENDINGS = (".onnx", ".pt2", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Loading):
    """The settings of `calibnorm predict`."""

    run: tyro.conf.Positional[Path] = Path()
    """Folder of a run of `calibnorm train`, or its best.pt or last.pt; the folder means last.pt."""
    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE ...")] = ()
    """Pictures, or folders of pictures: these in the order of their names."""
    out: Path | None = None
    """CSV file to write; without it, a line for each picture is printed."""
    top: int = 3
    """So many classes for each picture, the most probable first."""
    batch_size: int = 32
    """Pictures that go through the network together."""
    accelerator: Accelerator = "auto"
    """Where the network runs; auto is a GPU where there is one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        super().__post_init__()
        if self.run == Path() or not self.pictures:
            what = "a run" if self.run == Path() else "pictures"
            raise UsageError(f"predict: needs {what}: calibnorm predict RUN PICTURE ... --out FILE.csv")
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(Setting(name, getattr(self, name)), "must be at least 1")
        if self.out is not None:
            refuse_folder("out", self.out, "answers.csv")


@dataclass(frozen=True, kw_only=True)
class ExportClassifierConfig(Loading):
    """The settings of `calibnorm export`."""

    run: tyro.conf.Positional[Path] = Path()
    """Folder of a run of `calibnorm train`, or its best.pt or last.pt; the folder means last.pt."""
    out: Path = Path("classifier.onnx")
    """File to write: .onnx or .pt2 (torch.export) for a network that takes pixels from 0 to 1 and gives probabilities,
    .safetensors for the weights."""
    fold: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURE ...")] = ()
    """Pictures, or folders of pictures, by which gates that hardly look at the picture become plain BatchNorm, and
    BatchNorm goes into the convolutions before it: a faster network that says the same. Training pictures will do."""
    tolerance: float = 0.02
    """With --fold: how far the scores may move, as a share of their standard deviation; 0 folds what is exact alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        super().__post_init__()
        if self.run == Path():
            raise UsageError("export: needs a run: calibnorm export RUN --out classifier.onnx")
        if self.out.suffix not in ENDINGS:
            raise UsageError(Setting("out", self.out), f"must end in {' or '.join(ENDINGS)}")
        if self.fold and self.out.suffix == ".safetensors":
            reason = "has the weights of the network as it was trained, which a folded one is not; write .onnx or .pt2"
            raise UsageError(Setting("out", self.out), reason)
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(Setting("tolerance", self.tolerance), "must be 0 or a positive number")
