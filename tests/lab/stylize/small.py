"""Style transfer of a second: a network of four channels, features of two blocks, pictures of 24 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from calibnorm.lab import recipes
from calibnorm.lab.recipes import Stylization

SMALL = replace(
    cast("Stylization", recipes.recipe("style-small")),
    steps=4, epochs=2, batch_size=2, schedule="step", warmup_epochs=0, image_size=24, style_size=32, width=4, blocks=1,
    content_layer="relu2_1", style_layers=("relu1_1", "relu2_1"), layer_weights=(1.0, 2.0),
)  # fmt: skip
"""Two steps an epoch."""


def words(recipe: Stylization = SMALL) -> list[str]:
    """Return the options of a command line that replace what `SMALL` does."""
    before, found = vars(recipes.recipe("style-small")), list[str]()
    for name, value in vars(recipe).items():
        if value != before[name]:
            values = value if isinstance(value, tuple) else (value,)
            found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found
