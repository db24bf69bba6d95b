"""The recipes by name."""

from __future__ import annotations

from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes.config import Recipe


def fashion_study() -> Recipe:
    """FashionMNIST at half its size, a deep ResNet, two or three minutes a run on one CPU core: docs/results has the study.

    Depth was bought with pixels and images: 5000 training images of 14 x 14. The rest is the usual recipe of a CIFAR
    ResNet with a warm-up, a cosine and batches of 64; nothing was tuned for any norm.
    """
    return Recipe(
        model="resnet56",
        data="fashion_mnist",
        train_images=5000,
        image_size=14,
        epochs=6,
        test_every=3,
        batch_size=64,
        schedule="cosine",
        warmup_epochs=1,
    )


RECIPES: dict[str, Recipe] = {"fashion-study": fashion_study()}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r}: unknown; there are {', '.join(RECIPES)}")
    return RECIPES[name]
