"""A trained transformation network, from a run's folder or from a file of weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibnorm.errors import Setting, UsageError
from calibnorm.lab import tasks
from calibnorm.lab.models.pretrained import read_tensors
from calibnorm.lab.models.transformation import TransformationNetwork
from calibnorm.lab.recipes import Recipe, Stylization
from calibnorm.lab.training.contents import WEIGHTS, read, refused
from calibnorm.lab.training.folder import weights_file

METADATA = "calibnorm"
"""The entry of a safetensors file, and of an ONNX model, that holds the recipe."""
REMEDY = "name the folder of a run of calibnorm stylize train, or weights of calibnorm stylize export"


@dataclass(frozen=True)
class Opened:
    """A trained network.

    Args:
        recipe: How it was trained.
        network: In evaluation mode, on the CPU.
    """

    recipe: Stylization
    network: TransformationNetwork

    @property
    def words(self) -> str:
        """What it is: the style, the norm, and the features that were compared; every picture says it."""
        r = self.recipe
        return f"calibnorm: style {r.subject}, norm {r.norm}, {r.steps} steps, seed {r.seed}, features {r.features}"


def opened(place: Path) -> Opened:
    """Return the network of a run's folder, of its best.pt or last.pt, or of a safetensors file of `stylize export`.

    Raises:
        UsageError: There is none, or it is a network of another task.
    """
    asked = Setting("run", place)
    path = weights_file(place, REMEDY)
    if path.suffix == ".safetensors":
        tensors: Any = read_tensors(path, "network")
        settings = json.loads(metadata(path).get(METADATA, "null"))
    else:
        content = read(path, path.read_bytes(), WEIGHTS, REMEDY)
        tensors, settings = content["network"], content.get("recipe")
    recipe = Recipe.from_dict(settings, path)
    if not isinstance(recipe, Stylization):
        raise UsageError(asked, recipe.not_for_this())
    network = tasks.of(recipe).network(None)  # type: ignore[arg-type]  # this task's needs no images
    with refused(path, "does not fit its recipe", REMEDY):
        network.load_state_dict(tensors)
    assert isinstance(network, TransformationNetwork)
    return Opened(recipe, network.eval())


def metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says beside its tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
