"""A trained classifier from its run's folder: the network, its classes, and what pixels it takes. No data needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data import Pixels
from calibnorm.lab.recipes import Classification, Recipe
from calibnorm.lab.tasks.classify import blank
from calibnorm.lab.training.contents import WEIGHTS, read, refused
from calibnorm.lab.training.folder import weights_file

REMEDY = "name the folder of a run of calibnorm train, or its best.pt or last.pt"


@dataclass(frozen=True)
class Classifier:
    """A trained network.

    Args:
        recipe: How it was trained.
        network: In evaluation mode, on the CPU; takes standardized pixels, gives scores.
        classes: The names of its outputs.
        pixels: What it takes.
        folding: What was folded, and what that costs; empty where nothing was.
    """

    recipe: Classification
    network: nn.Module
    classes: tuple[str, ...]
    pixels: Pixels
    folding: str = ""

    @property
    def words(self) -> str:
        """What it is, in a line."""
        r, size = self.recipe, self.pixels.size
        return f"{r.model}, norm {r.norm}, {len(self.classes)} classes, pictures of {size} x {size} pixels"


class Deployed(nn.Module):
    """A classifier as a deployed file holds it: pixels from 0 to 1 in, probabilities out.

    Args:
        of: The trained network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, of: Classifier) -> None:
        super().__init__()
        self.network = of.network
        mean, std = (values / 255 for values in of.pixels.statistics(next(of.network.parameters()).device))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return probabilities (N, classes) of pictures (N, channels, size, size), black 0 and white 1."""
        scores: Tensor = self.network((pictures - self.mean) / self.std)
        return scores.softmax(1)


def opened(place: Path) -> Classifier:
    """Return the classifier of a run's folder, or of its best.pt or last.pt.

    Raises:
        UsageError: There is none, it is a network of another task, or it is of a version that did not note its pixels.
    """
    asked = Setting("run", place)
    path = weights_file(place, REMEDY)
    content = read(path, path.read_bytes(), WEIGHTS, REMEDY)
    recipe = Recipe.from_dict(content.get("recipe"), path)
    if not isinstance(recipe, Classification):
        raise UsageError(asked, recipe.not_for_this())
    if "pixels" not in content or "classes" not in content:
        reason = "does not say which pixels its network takes, as runs of calibnorm 0.1 do not"
        raise UsageError(asked, f"{reason}; train it again, or go on with it by --override epochs")
    with refused(path, "does not fit its recipe", REMEDY):
        classes, pixels = tuple(map(str, content["classes"])), Pixels.from_dict(content["pixels"])
        network = blank(recipe, len(classes), pixels.channels)
        network.load_state_dict(content["network"])
    return Classifier(recipe, network.eval(), classes, pixels)
