"""Recipes: what a run trains, on what, and how. A recipe is a Python function that returns a typed `Recipe`.

Read in this order: config, papers, study.
"""

from calibnorm.lab.recipes.config import Recipe
from calibnorm.lab.recipes.named import RECIPES, recipe

__all__ = ["RECIPES", "Recipe", "recipe"]
