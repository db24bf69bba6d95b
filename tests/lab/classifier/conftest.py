"""A classifier that was trained for a moment on folders of pictures, with weights that it began with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from calibnorm.lab import models
from calibnorm.lab.training import train
from lab.training.tiny import PICTURES, make_pictures


@dataclass
class Left:
    """Of a run: its folder, and that of the pictures."""

    run: Path
    root: Path

    @property
    def test(self) -> Path:
        return self.root / "folders" / "val"


@pytest.fixture(scope="package")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("classifier")
    root, weights = make_pictures(folder / "sets"), folder / "weights.pt"
    torch.manual_seed(0)
    torch.save(models.build("resnet11", num_classes=7).state_dict(), weights)
    recipe = replace(PICTURES, weights=str(weights), epochs=3, learning_rate=0.02)
    train(recipe, folder / "run", data_root=root, accelerator="cpu", workers=0)
    weights.unlink()  # a trained network is opened without the weights that it began with
    return Left(folder / "run", root)
