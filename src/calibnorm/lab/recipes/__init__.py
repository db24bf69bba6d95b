"""Recipes: what a run trains, on what, and how. A recipe is a Python function that returns a typed `Recipe`.

Read in this order: recipe, classification, iebn, rbn, small, stylization, detection, named. `types` is for files and
commands.
"""

from calibnorm.lab.recipes.classification import Classification
from calibnorm.lab.recipes.detection import Boxes, Masks, Panoptic
from calibnorm.lab.recipes.named import RECIPES, recipe, register_recipe, summary
from calibnorm.lab.recipes.recipe import Noise, Precision, Recipe, parse_noise, refuse_without_effect
from calibnorm.lab.recipes.stylization import Stylization
from calibnorm.lab.recipes.types import described

__all__ = [
    "RECIPES",
    "Boxes",
    "Classification",
    "Masks",
    "Noise",
    "Panoptic",
    "Precision",
    "Recipe",
    "Stylization",
    "described",
    "parse_noise",
    "recipe",
    "refuse_without_effect",
    "register_recipe",
    "summary",
]
