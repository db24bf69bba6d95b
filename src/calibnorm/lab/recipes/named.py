"""The recipes by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from calibnorm import loading
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.recipes import detection, iebn, rbn, small, stylization
from calibnorm.lab.recipes.recipe import Recipe

MAKERS: dict[str, Callable[[], Recipe]] = {
    "digits-tiny": small.digits_tiny,
    "digits-deep": small.digits_deep,
    "fine-tune": small.fine_tune,
    "fashion-small": small.fashion_small,
    "fashion-study": small.fashion_study,
    "instance-study": small.instance_study,
    "folders-small": small.folders_small,
    "style-small": stylization.style_small,
    "style-paper": stylization.style_paper,
    "box-mini": detection.box_mini,
    "mask-mini": detection.mask_mini,
    "panoptic-mini": detection.panoptic_mini,
    "box-x1": detection.box_x1,
    "mask-x1": detection.mask_x1,
    "panoptic-x1": detection.panoptic_x1,
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
loading.REGISTRIES["recipe"] = lambda: RECIPES

Maker = TypeVar("Maker", bound=Callable[[], Recipe])


def register_recipe(name: str) -> Callable[[Maker], Maker]:
    """Give a recipe of one's own a name, which `calibnorm train NAME --load FILE` then knows; a decorator.

    Args:
        name: Such as "my-digits". The first line of the function's docstring stands in `calibnorm train --list`.

    Raises:
        TypeError: What is decorated does not return a recipe.
        ValueError: The name is no name of a folder, or that of another recipe.

    >>> from calibnorm.lab.recipes import Classification, recipe, register_recipe
    >>> @register_recipe("my-digits")
    ... def my_digits() -> Classification:
    ...     "ResNet-20 on digits, five epochs."
    ...     return Classification(model="resnet20", data="digits", epochs=5, batch_size=64)
    >>> recipe("my-digits").epochs
    5
    """
    if not re.fullmatch(r"[a-zA-Z0-9]\w*([.-]\w+)*", name):
        raise ValueError(f"name={name!r} must be letters, digits, _, - and . alone, such as 'my-digits'")

    def decorate(maker: Maker) -> Maker:
        if name in MAKERS and _origin(MAKERS[name]) != _origin(maker):  # a notebook's cell may run again
            raise ValueError(f"name={name!r} is a recipe already; choose another name")
        if not isinstance(made := maker(), Recipe):
            raise TypeError(f"the function of recipe {name!r} must return a Recipe, not {type(made).__name__}")
        MAKERS[name], RECIPES[name] = maker, made
        return maker

    return decorate


def _origin(maker: Callable[[], Recipe]) -> tuple[str, str]:
    return getattr(maker, "__module__", ""), getattr(maker, "__qualname__", "")


def recipe(name: str) -> Recipe:
    """Return a recipe by its name; raise UsageError where there is none of that name."""
    if name not in RECIPES:
        if near := difflib.get_close_matches(name, RECIPES, 3, 0.6):
            raise UsageError(f"recipe {name}: is not known; did you mean {' or '.join(near)}? (calibnorm train --list)")
        known = "is not known; calibnorm train --list shows those that there are; for one of your own, "
        raise UsageError(f"recipe {name}: {known}", Setting("load", "FILE"), " that registers it")
    return RECIPES[name]


def summary(name: str) -> str:
    """Return the first line of what a recipe's function says of itself; without one, of what its class says."""
    maker = MAKERS.get(name, type(RECIPES[name]))
    text = (maker.func if isinstance(maker, partial) else maker).__doc__ or ""
    return next(iter(text.splitlines()), "")
