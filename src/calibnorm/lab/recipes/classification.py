"""The settings of image classification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.recipes.recipe import Recipe

Augmentation = Literal["none", "crop", "crop_flip", "standard", "randaugment", "trivialaugment"]
AUGMENTED = {"crop_flip": " and flips", "randaugment": ", flips and RandAugment"}
AUGMENTED["trivialaugment"] = ", flips and TrivialAugment"
"""What there is beside random crops, in words."""


@dataclass(frozen=True)
class Classification(Recipe):
    """A network that learns to tell classes of images apart, by cross-entropy and stochastic gradient descent."""

    task = "classification"
    opened_by = "calibnorm predict and calibnorm export"
    changeable = Recipe.changeable | {"momentum", "nesterov", "label_smoothing", "mixup", "cutmix"}

    weights: str | None = None
    """Trained weights to start from: a file, or imagenet, where a package brings them. A norm then keeps the network's
    function where its method allows it (IEBN, RBN), and pixels are standardized as the weights expect."""
    train_images: int | None = None
    """Train on so many images, balanced over the classes, the same for every seed; all by default."""
    image_size: int | None = None
    """Pixels a side, by averaging squares of pixels; the data set's own size by default."""
    augment: Augmentation = "none"
    """Random crops and horizontal flips (crop_flip, also called standard); for folders of pictures, RandAugment or
    TrivialAugment after both. A crop is after 4 pixels of padding; of a folder's picture, a part of 8 to 100 %."""
    mixup: float = 0.0
    """Mix the images of a batch in pairs, and their labels (Zhang et al., 2018): Beta(a, a) has this a; 0 is not."""
    cutmix: float = 0.0
    """Put a part of one image into another (Yun et al., 2019), likewise; with --mixup, one of both for each batch."""
    mix: str | None = None
    """The other data set of the mix-datasets attack: mnist or fashion_mnist. With it, --mix-main and --mix-others
    count, and not --batch-size."""
    mix_main: int = 100
    """Images of the data set itself in a mixed batch."""
    mix_others: int = 240
    """Images of the other data set in a mixed batch: 120 k."""
    momentum: float = 0.9
    """Momentum of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's momentum."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("mix_main", "mix_others", *(["image_size"] if self.image_size is not None else []))
        own = self.batch_size if self.mix is None else self.mix_main
        enough = self.train_images is None or self.train_images >= own
        self.require("train_images", enough, f"fewer than one batch of {own}")
        if self.augment == "standard":
            object.__setattr__(self, "augment", "crop_flip")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            self.require(name, math.isfinite(value) and value >= 0, "must be 0 or a positive number, such as 0.2")
        for name in ("momentum", "label_smoothing"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and less than 1")
        if self.nesterov and self.momentum == 0:
            raise UsageError(Setting("nesterov"), "needs a ", Setting("momentum"))
        self.require("mix", self.mix != self.data, "is the data set itself; name another")

    def without_effect(self) -> dict[str, tuple[str | Setting, ...]]:
        found = super().without_effect()
        if self.mix is None:
            return found | dict.fromkeys(("mix_main", "mix_others"), ("has no effect without ", Setting("mix")))
        counted = (Setting("mix_main"), " and ", Setting("mix_others"))
        return found | {"batch_size": ("has no effect with ", Setting("mix", self.mix), "; give ", *counted)}

    @property
    def images_a_step(self) -> int:
        return self.batch_size if self.mix is None else self.mix_main + self.mix_others

    def images_in_words(self) -> str:
        main = f"{self.train_images} training images of {self.data}" if self.train_images else self.data
        size = f" at {self.image_size} x {self.image_size} pixels" if self.image_size else ""
        augment = "" if self.augment == "none" else f", random crops{AUGMENTED.get(self.augment, '')}"
        both = [f"{name} {value:g}" for name in ("mixup", "cutmix") if (value := getattr(self, name))]
        augment += f", {' or '.join(both)}" if both else ""
        mix = f", {self.mix_main} of them and {self.mix_others} of {self.mix} a batch" if self.mix else ""
        return f"{main}{size}{augment}{mix}"

    def optimizer_in_words(self) -> list[str]:
        return [f"SGD with {'Nesterov' if self.nesterov else 'momentum'} {self.momentum:g}"]

    def unusual_in_words(self) -> list[str]:
        trained = [f"from the weights {self.weights}"] if self.weights else []
        smoothed = [f"label smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        return trained + smoothed + super().unusual_in_words()
