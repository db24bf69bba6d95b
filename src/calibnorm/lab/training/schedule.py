"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from bisect import bisect_right

from calibnorm.lab.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    During the warm-up it rises linearly and reaches its peak with the warm-up's last step (Goyal et al. 2017). Then it
    falls by ``gamma`` after each of the ``milestones`` ("step"), or along a half cosine to 0 at the end ("cosine",
    Loshchilov & Hutter 2017), counted from the end of the warm-up.

    Args:
        recipe: The settings.
        step: From 0.
        steps_per_epoch: Batches an epoch.

    >>> from calibnorm.lab.recipes import Classification
    >>> recipe = Classification(model="resnet11", data="digits", epochs=4, schedule="step", milestones=(1, 3))
    >>> [round(learning_rate(recipe, step, 2), 6) for step in range(8)]
    [0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001]
    """
    peak, warmup = recipe.peak_rate, recipe.warmup(steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if recipe.schedule == "step":
        return peak * recipe.gamma ** bisect_right(recipe.milestones, step // steps_per_epoch)
    done = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2
