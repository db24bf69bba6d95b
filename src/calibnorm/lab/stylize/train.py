"""`calibnorm stylize train`: `calibnorm train` of a recipe of style transfer."""

from __future__ import annotations

from collections.abc import Sequence

from calibnorm.errors import UsageError
from calibnorm.lab.recipes import Stylization, recipe
from calibnorm.lab.training.command import begin

RECIPE = "style-small"


def run(words: Sequence[str], text: str) -> int:
    """Train what words stand for, the first of which may be a recipe; return the exit status.

    Args:
        words: What follows the command's name.
        text: What its help says.

    Raises:
        UsageError: The input cannot be used.
        RunFailed: The run cannot go on.
        Stopped: SIGINT or SIGTERM came.
    """
    first = words[:1] if words and not words[0].startswith("-") else []
    name = first[0] if first else RECIPE
    if not isinstance(recipe(name), Stylization):
        raise UsageError(
            f"stylize train {name}: is no recipe of style transfer; try {RECIPE}, or calibnorm train {name}"
        )
    return begin(name, words[len(first) :], f"calibnorm stylize train{f' {name}' if first else ''}", text)
