"""The recipes by name."""

from __future__ import annotations

from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes.config import Recipe


def study_fashion() -> Recipe:
    """FashionMNIST in minutes a run on one CPU core: the committed study's recipe."""
    return Recipe(
        model="resnet56",
        data="fashion_mnist",
        train_images=10_000,
        epochs=6,
        augment="crop_flip",
        schedule="cosine",
    )


RECIPES: dict[str, Recipe] = {"study-fashion": study_fashion()}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r}: unknown; there are {', '.join(RECIPES)}")
    return RECIPES[name]
