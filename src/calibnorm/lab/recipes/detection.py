"""The settings of detection, instance and panoptic segmentation; COCO's x1 recipes, and small ones for a CPU.

RBN's Tables 5 to 7 are "x1 lr schedule" without numbers. What everybody means by it is 12 epochs of batches of 16,
learning rate 0.02, a tenth after epochs 8 and 11, momentum 0.9, decay 1e-4, a linear warm-up of 500 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from calibnorm.errors import Setting
from calibnorm.lab.recipes.recipe import Recipe

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"]


@dataclass(frozen=True)
class Boxes(Recipe):
    """Faster R-CNN (Ren et al., 2015) on a feature pyramid, trained by stochastic gradient descent."""

    task = "box"
    opened_by = "calibnorm detect eval and calibnorm detect show"
    changeable = Recipe.changeable | {"momentum", "warmup_steps", "rate_for"}

    model: str = "faster_rcnn"
    """Detector: faster_rcnn for boxes, mask_rcnn for masks, panoptic_fpn for both and stuff."""
    data: str = "mini"
    """Pictures: mini, a miniature of digits on textures, made in DATA_ROOT on first use; or a folder in COCO's layout,
    with annotations, train2017 and val2017, here or in DATA_ROOT."""
    epochs: int = 12
    """Passes over the training pictures."""
    backbone: Backbone = "resnet50"
    """Network below the pyramid."""
    backbone_weights: str | None = None
    """Trained weights of the backbone: torchvision (ImageNet's, from torch's cache), or a file: of torchvision's names,
    or best.pt or last.pt of a detector with bn. Each norm keeps their function where it can."""
    neck_norms: bool = True
    """Whether pyramid and heads have norms, too; the first detectors had none there."""
    frozen_batchnorm: bool = False
    """Whether the backbone's BatchNorms are torchvision's frozen ones, whose statistics and scales stay; of a
    calibrated norm on top of them the gates learn. Means --backbone-weights."""
    trained_stages: int = 5
    """Of the backbone's stem and four stages, so many are trained, the last ones."""
    train_images: int | None = None
    """Train on the first so many pictures alone."""
    batch_size: int = 16
    """Pictures a step, over all processes."""
    learning_rate: float = 0.02
    """The highest learning rate, for a batch of --rate-for pictures."""
    rate_for: int = 16
    """Batch that the learning rate is meant for: with twice as many pictures a step it is twice as high."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0, in place of epochs of it."""
    momentum: float = 0.9
    """Of the gradient."""
    image_size: tuple[int, ...] = (800,)
    """Pixels of the shorter side; of several, training takes one at random for each picture, and the test the last."""
    longest_side: int = 1333
    """Pixels that the longer side has at most."""
    channels: int = 256
    """Channels of the pyramid and of the heads."""
    head_convs: int = 4
    """Convolutions of the box head, and of the mask head."""
    head_features: int = 1024
    """Outputs of the box head."""
    anchor: int = 32
    """Pixels a side of the smallest anchor; every level's is twice that of the level before."""
    rois: int = 512
    """Regions of a picture that the box head learns from."""
    proposals: int = 1000
    """Regions of a picture that the first part of the detector hands to the second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("longest_side", "channels", "head_features", "anchor", "rois", "proposals", "rate_for")
        self.check_counts(*counts)
        self.require("head_convs", self.head_convs >= 0, "must be 0 or more")
        self.require("trained_stages", 0 <= self.trained_stages <= 5, "must be from 0 to 5")
        self.require("warmup_steps", self.warmup_steps >= 0, "must be 0 or more")
        self.require("momentum", 0 <= self.momentum < 1, "must be from 0 to less than 1")
        self.require("image_size", bool(self.image_size) and min(self.image_size) >= 32, "must be at least 32")
        least = max(self.image_size)
        self.require("longest_side", self.longest_side >= least, "must not be less than ", Setting("image_size", least))
        self.require("train_images", self.train_images is None or self.train_images >= 1, "must be at least 1")
        both = self.warmup_steps and self.warmup_epochs
        self.require("warmup_steps", not both, "is one warm-up, and ", Setting("warmup_epochs"), " another; choose one")
        alone = self.frozen_batchnorm and self.backbone_weights is None
        self.require(
            "frozen_batchnorm", not alone, "freezes what nobody has trained; name ", Setting("backbone_weights")
        )
        alone = self.trained_stages < 5 and self.backbone_weights is None
        self.require("trained_stages", not alone, "leaves random weights; name ", Setting("backbone_weights"))

    @property
    def peak_rate(self) -> float:
        """The highest learning rate, scaled to the batch (Goyal et al., 2017)."""
        return self.learning_rate * self.batch_size / self.rate_for

    def warmup(self, steps_per_epoch: int) -> int:
        """Return how many steps the learning rate rises for."""
        return self.warmup_steps or super().warmup(steps_per_epoch)

    @property
    def network(self) -> str:
        """The backbone."""
        return self.backbone

    @property
    def subject(self) -> str:
        """The backbone's name."""
        return self.backbone

    def images_in_words(self) -> str:
        """Return which pictures a run is trained on, and how large they are."""
        first = f"the first {self.train_images} pictures of " if self.train_images else ""
        sides = " or ".join(map(str, self.image_size))
        return f"{first}{self.data} at a shorter side of {sides} pixels"

    def optimizer_in_words(self) -> list[str]:
        """Return what is to say of the optimizer."""
        warm = [f"{self.warmup_steps} steps of warm-up"] if self.warmup_steps else []
        scaled = (
            [f"that is {self.peak_rate:g}, for batches of {self.rate_for}"] if self.rate_for != self.batch_size else []
        )
        return [*scaled, *warm, f"momentum {self.momentum:g}", f"backbone {self.backbone}"]

    def unusual_in_words(self) -> list[str]:
        """Return the settings that most runs leave at their defaults."""
        texts = {
            f"backbone begins with {self.backbone_weights}": self.backbone_weights is not None,
            "no norms in pyramid and heads": not self.neck_norms,
            "backbone's BatchNorm frozen": self.frozen_batchnorm,
            f"the last {self.trained_stages} stages trained": self.trained_stages < 5,
        }
        return [text for text, holds in texts.items() if holds] + super().unusual_in_words()


@dataclass(frozen=True)
class Masks(Boxes):
    """Mask R-CNN (He et al., 2017) on a feature pyramid."""

    task = "mask"

    model: str = "mask_rcnn"
    """Detector: faster_rcnn for boxes, mask_rcnn for masks, panoptic_fpn for both and stuff."""


@dataclass(frozen=True)
class Panoptic(Masks):
    """Panoptic FPN (Kirillov et al., CVPR 2019): Mask R-CNN with a semantic branch, merged."""

    task = "panoptic"
    changeable = Masks.changeable | {"semantic_weight", "least_score", "least_share", "least_stuff"}

    model: str = "panoptic_fpn"
    """Detector: faster_rcnn for boxes, mask_rcnn for masks, panoptic_fpn for both and stuff."""
    semantic_channels: int = 128
    """Channels of the semantic branch."""
    semantic_weight: float = 0.5
    """Weight of the semantic loss; those of the instances have 1."""
    least_score: float = 0.5
    """Merging: instances of lower scores are left out."""
    least_share: float = 0.5
    """Merging: an instance is left out of which less than this share is not hidden by surer ones."""
    least_stuff: int = 4096
    """Merging: stuff of fewer pixels in a picture is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("semantic_channels")
        self.require("semantic_weight", 0 < self.semantic_weight < float("inf"), "must be a positive number")
        for name in ("least_score", "least_share"):
            self.require(name, 0 <= getattr(self, name) <= 1, "must be from 0 to 1")
        self.require("least_stuff", self.least_stuff >= 0, "must be 0 or more")


Any_ = TypeVar("Any_", bound=Boxes)


def _x1(recipe: Any_) -> Any_:
    shared = replace(recipe, data="coco", norm="rbn", backbone_weights="torchvision", decay_gates=True)
    return replace(shared, trained_stages=4, milestones=(8, 11), warmup_steps=500)


def _mini(recipe: Any_) -> Any_:
    small = replace(recipe, norm="rbn", backbone="resnet18", image_size=(96,), longest_side=96, anchor=12, channels=64)
    heads = replace(small, head_convs=1, head_features=256, rois=32, proposals=100)
    return replace(heads, batch_size=8, rate_for=8, schedule="cosine", warmup_steps=75, clip_norm=10.0)


def box_x1() -> Boxes:
    """Faster R-CNN on COCO, the x1 schedule of RBN's Table 5: needs GPUs; --data names the folder."""
    return _x1(Boxes())


def mask_x1() -> Masks:
    """Mask R-CNN on COCO, the x1 schedule of RBN's Table 6: needs GPUs; --data names the folder."""
    return _x1(Masks())


def panoptic_x1() -> Panoptic:
    """Panoptic FPN on COCO, the x1 schedule of RBN's Table 7: needs GPUs; --data names the folder."""
    return _x1(Panoptic())


def box_mini() -> Boxes:
    """Faster R-CNN on the miniature, digits on textures: minutes on one CPU core."""
    return replace(_mini(Boxes()), epochs=10)


def mask_mini() -> Masks:
    """Mask R-CNN on the miniature, digits on textures: minutes on one CPU core."""
    return replace(_mini(Masks()), epochs=8)


def panoptic_mini() -> Panoptic:
    """Panoptic FPN on the miniature, digits on textures: minutes on one CPU core."""
    return replace(_mini(Panoptic()), epochs=6, semantic_channels=64, least_stuff=64)
