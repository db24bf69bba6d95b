"""Recipes: what a run trains, on what, and how. A recipe is a Python function that returns a typed `Recipe`.

Read in this order: config, iebn, rbn, small, named.
"""

from calibnorm.lab.recipes.config import (
    Noise,
    Precision,
    Recipe,
    as_typed,
    described,
    named_as_typed,
    option,
    parse_noise,
)
from calibnorm.lab.recipes.named import RECIPES, recipe, summary

__all__ = [
    "RECIPES",
    "Noise",
    "Precision",
    "Recipe",
    "as_typed",
    "described",
    "named_as_typed",
    "option",
    "parse_noise",
    "recipe",
    "summary",
]
