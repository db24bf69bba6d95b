"""A trained detector, from a run's folder, with the pictures that it is validated on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.coco.feed import ObjectFeed
from calibnorm.lab.recipes import Boxes
from calibnorm.lab.tasks.detect import Detect
from calibnorm.lab.training.folder import read_recipe
from calibnorm.lab.training.trained import trained


@dataclass(frozen=True)
class Detector:
    """A trained detector.

    Args:
        task: What it has learned.
        network: In evaluation mode, on the CPU.
        test: The validation.
    """

    task: Detect
    network: nn.Module
    test: ObjectFeed


@contextmanager
def opened(run: Path, data_root: Path) -> Iterator[Detector]:
    """Open a run of `calibnorm detect train` that has finished an epoch or more.

    Raises:
        UsageError: It is none, or is not whole; or its pictures are not there, or are others.
    """
    if not run.is_dir():
        raise UsageError(Setting("run", run), "is no folder; name a run of calibnorm detect train")
    recipe = read_recipe(run)
    if recipe is not None and not isinstance(recipe, Boxes):
        raise UsageError(Setting("run", run), recipe.not_for_this())
    with trained(run, data_root) as found:
        assert isinstance(found.task, Detect)
        assert isinstance(found.feeds.test, ObjectFeed)
        yield Detector(found.task, found.network, found.feeds.test)
