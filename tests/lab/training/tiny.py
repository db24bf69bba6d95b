"""Recipes of a second, and what two runs are compared by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from calibnorm.lab import tasks
from calibnorm.lab.recipes import Classification, Recipe
from calibnorm.lab.training import Result, train
from calibnorm.lab.training.checkpoints import Checkpoints
from calibnorm.lab.training.learner import Learner, initial_network
from calibnorm.lab.training.processes import Machine, start
from calibnorm.lab.training.progress import EpochFigures
from calibnorm.lab.training.watchers import Watcher

EPOCHS, STEPS = 2, 4
"""Of a run, and of its epochs."""

TINY = Classification(
    model="resnet11",
    data="digits",
    norm="iebn",
    epochs=EPOCHS,
    train_images=256,
    batch_size=64,
    learning_rate=0.05,
    augment="crop",
    schedule="cosine",
)
RICH = replace(
    TINY, norm="rbn", noise=(0.8, 0.5), warmup_epochs=1, nesterov=True, label_smoothing=0.1, clip_norm=1.0, ema=0.5
)
"""Everything that a checkpoint has to remember."""
PICTURES = Classification(
    model="resnet11", data="folders", epochs=2, image_size=16, batch_size=4, augment="crop_flip", norm="iebn"
)
"""Of `make_pictures`."""


def make_pictures(root: Path) -> Path:
    """Make three classes of six training pictures and two test pictures each in a data root; return it."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = root / "folders" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(60 * label, 60 * label + 100, (24, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def feeds(recipe: Recipe) -> tasks.Feeds[Any]:
    """Return the recipe's batches for one process on the CPU."""
    return tasks.of(recipe).feeds(Path(), tasks.Place(device=torch.device("cpu"), rank=0, world=1), 0)


def network(recipe: Recipe) -> nn.Module:
    """Return the recipe's network before it has learned."""
    return initial_network(tasks.of(recipe), feeds(recipe))


def learner(recipe: Recipe) -> Learner[Any]:
    """Return the recipe's network with what a step needs."""
    return Learner(tasks.of(recipe), start(Machine("cpu"), "float32"), network(recipe))


def row(epoch: int, *numbers: float) -> EpochFigures:
    """Return an epoch's figures, those of metrics.csv in their order."""
    names = [measure.name for measure in tasks.of(TINY).measures]
    return EpochFigures(epoch, dict(zip(names, numbers[:-1], strict=True)), numbers[-1])


def run(recipe: Recipe, folder: Path, **options: Any) -> Result:
    """Train on the CPU."""
    return train(recipe, folder, data_root=Path(), accelerator="cpu", **options)


def arguments(recipe: Recipe, folder: Path) -> list[str]:
    """Return the command line that trains a recipe."""
    given = ["train", "digits-tiny", "--out", str(folder), "--accelerator", "cpu", "--no-progress"]
    for name, value in recipe.to_dict().items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{option}" if value else f"--no-{option}")
        else:
            given += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return given


class Interrupting(Watcher):
    """Raises KeyboardInterrupt after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, done: int, figures: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def state(folder: Path) -> dict[str, Any]:
    """Return the newest checkpoint."""
    content = Checkpoints(folder / "checkpoints", print).load()
    assert content is not None
    return content


def assert_equal(ours: object, theirs: object, path: str = "") -> None:
    """Compare bit for bit, whatever is nested in whatever."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), path
        assert list(ours) == list(theirs), path
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple), path
        assert len(ours) == len(theirs), path
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{path}[{number}]")
    elif isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), path
        assert torch.equal(ours, theirs), path
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), path


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Compare what two runs came to: metrics.csv, the weights, and everything else that is saved but times."""
    assert (ours / "metrics.csv").read_bytes() == (theirs / "metrics.csv").read_bytes()
    a, b = state(ours), state(theirs)
    for content in (a, b):
        del content["seconds"], content["progress"]["timings"]
    assert_equal(a, b)
    for name in ("best.pt", "last.pt"):
        assert_equal(*(torch.load(folder / name, weights_only=True) for folder in (ours, theirs)))
