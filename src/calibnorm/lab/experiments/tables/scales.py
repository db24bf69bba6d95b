"""What a number of a paper becomes where there is not the time for it.

At paper scale an entry is trained exactly as its paper says. At the others the same norm is trained in a smaller
network of the same kind, on images that are at hand: that shows how the differences go, not how high the numbers are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from calibnorm.lab import models, recipes
from calibnorm.lab.experiments.config import Scale
from calibnorm.lab.experiments.tables.definitions import Entry, Table
from calibnorm.lab.recipes import Boxes, Classification, Recipe

MIX_MAIN, MIX_UNIT = 100, 120
"""Images of the data set and, times k, of the other one in a mixed batch (IEBN, Table 3)."""


@dataclass(frozen=True)
class Small:
    """A scale below the paper's.

    Args:
        recipe: How every run is trained.
        models: What stands for the papers' networks.
        seeds: Runs of each cell.
        images: Fewer training images for networks that have no small relative, by name.
    """

    recipe: Classification
    models: dict[str, str]
    seeds: int
    images: dict[str, int]


STAND_INS = {
    "resnet164": ("resnet11", "resnet20"),
    "preresnet164": ("preresnet11", "preresnet20"),
    "densenet100_k12": ("densenet10_k12", "densenet22_k12"),
    "resnext29_8x64d": ("resnext11_4x8d", "resnext11_4x8d"),
    "resnet34": ("resnet11", "resnet11"),
    "resnet50": ("resnet11", "resnet20"),
    "resnet101": ("resnet20", "resnet29"),
    "resnet152": ("resnet20", "resnet38"),
    "resnext50_32x4d": ("resnext11_8x4d", "resnext11_8x4d"),
    "res2net50": ("res2net50", "res2net50"),
    "mobilenet_v2": ("mobilenet_v2", "mobilenet_v2"),
    "resnet50_32": ("resnet14_32", "resnet14_32"),
}
"""By the papers' networks: what stands for them at the scales tiny and small."""

# Two epochs of 37 steps bring resnet11 to 97 % on the digits; with a learning rate of 0.03, IEBN's to 85 %.
TINY = Small(
    Classification(model="resnet11", data="digits", epochs=2, batch_size=32, learning_rate=0.1, schedule="cosine"),
    {paper: tiny for paper, (tiny, _) in STAND_INS.items()},
    seeds=2,
    images={"res2net50": 320},  # a step of a second, five times that of mobilenet_v2
)
# A run of resnet20 is a minute and a quarter of one core, the largest table, iebn-1, an hour of two.
SMALL = Small(
    Classification(
        model="resnet20",
        data="fashion_mnist",
        train_images=6000,
        image_size=14,
        epochs=6,
        test_every=2,
        batch_size=64,
        learning_rate=0.1,
        schedule="cosine",
        augment="crop_flip",
    ),
    {paper: small for paper, (_, small) in STAND_INS.items()},
    seeds=3,
    images={"res2net50": 640},
)
MIXED_EPOCHS: dict[Scale, int] = {"tiny": 3, "small": 20}
"""Of the mix-datasets attack, which takes a step for a hundred digits, a third of the steps of the other tables."""
SCALES: dict[Scale, Small] = {"tiny": TINY, "small": SMALL}
PAPER_SEEDS = 3
BACKBONES = {"resnet50": "resnet18", "resnet101": "resnet34"}
"""What stands for a detector's backbone below paper scale, on the miniature."""
OF_DETECTORS: dict[Scale, dict[str, Any]] = {
    "tiny": {"epochs": 3, "train_images": 300, "warmup_steps": 20, "test_every": 3},
    "small": {},
}
"""What their runs have in the place of the miniature's own recipes."""


def recipe(table: Table, entry: Entry, scale: Scale) -> Recipe:
    """Return how an entry is trained at a scale."""
    norm = str(models.parse_norm(entry.norm))
    if table.task != "classification":
        named = recipes.recipe(f"{table.task}-{'x1' if scale == 'paper' else 'mini'}")
        assert isinstance(named, Boxes)
        backbone: Any = entry.model if scale == "paper" else BACKBONES[entry.model]
        return replace(named, norm=norm, backbone=backbone, **OF_DETECTORS.get(scale, {}))
    what: dict[str, Any] = {"norm": norm, "noise": entry.noise, "stages": entry.stages}
    if scale == "paper":
        base = of_paper(table.paper, entry)
    else:
        base = SCALES[scale].recipe
        if table.name == "iebn-3":  # the digits at every scale: FashionMNIST is mixed in
            # As many digits a step in the row that is not mixed as in the others, so that all take as many steps.
            base = replace(TINY.recipe, epochs=MIXED_EPOCHS[scale], batch_size=MIX_MAIN)
        model = what["model"] = SCALES[scale].models[entry.model]
        base = replace(base, train_images=SCALES[scale].images.get(model, base.train_images))
    if entry.mix is not None:
        other, k = entry.mix
        what |= {"mix": other, "mix_main": MIX_MAIN, "mix_others": MIX_UNIT * k}
    return replace(base, **what)


def of_paper(paper: str, entry: Entry) -> Classification:
    """Return the recipe that the paper gives for a network (IEBN's Tables 6 and 7; RBN, Section 4.1)."""
    named = recipes.recipe(f"{paper}-{entry.model}-{entry.data}")
    assert isinstance(named, Classification)
    return named
