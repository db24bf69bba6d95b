"""The recipes by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from calibnorm.errors import UsageError
from calibnorm.lab.recipes import iebn, rbn, small
from calibnorm.lab.recipes.recipe import Recipe

MAKERS: dict[str, Callable[[], Recipe]] = {
    "digits-tiny": small.digits_tiny,
    "digits-deep": small.digits_deep,
    "fashion-small": small.fashion_small,
    "fashion-study": small.fashion_study,
    "folders-small": small.folders_small,
    **{
        f"iebn-{name}-{data}": partial(maker, data)
        for name, maker in (
            ("resnet164", iebn.resnet164),
            ("preresnet164", iebn.preresnet164),
            ("densenet100_k12", iebn.densenet100),
            ("resnext29_8x64d", iebn.resnext29),
        )
        for data in ("cifar10", "cifar100")
    },
    **{
        f"iebn-{model}-imagenet": partial(iebn.imagenet, model)
        for model in ("resnet34", "resnet50", "resnet152", "resnext50_32x4d")
    },
    **{
        f"rbn-{model}-imagenet": partial(rbn.imagenet, model)
        for model in ("resnet50", "resnet101", "resnext50_32x4d", "res2net50")
    },
    "rbn-mobilenet_v2-imagenet": rbn.mobilenet_v2,
    **{f"rbn-{model}-cifar100": partial(rbn.cifar, model) for model in ("resnet50_32", "resnext29_8x64d")},
}
RECIPES: dict[str, Recipe] = {name: maker() for name, maker in MAKERS.items()}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name; raise UsageError where there is none of that name."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 3, 0.5) or RECIPES
        raise UsageError(f"recipe {name}: is not known; choose from {', '.join(near)} (calibnorm train --list)")
    return RECIPES[name]


def summary(name: str) -> str:
    """Return the first line of what a recipe's function says of itself."""
    maker = MAKERS[name]
    text = (maker.func if isinstance(maker, partial) else maker).__doc__ or ""
    return text.splitlines()[0]
