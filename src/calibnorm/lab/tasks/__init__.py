"""What is learned, one file a task; `task` is the seam that the loop and the experiments see it through."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from calibnorm.errors import UsageError
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks.task import Feeds, Meter, Network, Place, Tables, Task, Together

__all__ = ["Feeds", "Meter", "Network", "Place", "Tables", "Task", "Together", "of"]

DETECT = "calibnorm.lab.tasks.detect"
MODULES = {"classification": "calibnorm.lab.tasks.classify", "stylization": "calibnorm.lab.tasks.stylize"}
MODULES |= dict.fromkeys(("box", "mask", "panoptic"), DETECT)
"""Where this package's tasks are: imported when a recipe asks for one, since a command's help needs none."""


def of(recipe: Recipe) -> Task[Any]:
    """Return what a recipe's network learns.

    Raises:
        UsageError: No task is for recipes of its class.
    """
    if recipe.task in MODULES:
        import_module(MODULES[recipe.task])
    if type(recipe) not in Task.kinds:
        kind = type(recipe).__name__
        raise UsageError(f"task {recipe.task}: has no class; one is needed: class X(Task[Batch], recipes={kind})")
    return Task.kinds[type(recipe)](recipe)
