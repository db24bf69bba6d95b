"""Detection, instance and panoptic segmentation in COCO's way: R-CNNs on feature pyramids, AP and PQ."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm import loading
from calibnorm.errors import Setting, UsageError
from calibnorm.lab import models
from calibnorm.lab.data.coco.feed import ObjectBatch, ObjectFeed, object_feeds
from calibnorm.lab.data.coco.folder import Categories, Learned
from calibnorm.lab.data.coco.masks import encoded
from calibnorm.lab.models.detection import BACKBONES, Sizes, detector, weights_file
from calibnorm.lab.recipes import Boxes, Masks, Panoptic
from calibnorm.lab.tasks.groups import parameter_groups
from calibnorm.lab.tasks.merging import Map, merge
from calibnorm.lab.tasks.panoptic_quality import counted, qualities
from calibnorm.lab.tasks.precision import COLUMNS, Kind, precisions
from calibnorm.lab.tasks.task import Feeds, Network, Place, Task, Together
from calibnorm.report.measure import Measure

LOSSES = {"loss_objectness": "objectness", "loss_rpn_box_reg": "proposals", "loss_classifier": "classes"}
LOSSES |= {"loss_box_reg": "boxes", "loss_mask": "masks", "loss_semantic": "semantic"}
"""The losses of a detector, as torchvision names them and as the figures do."""
SIZES = {"aps": " small", "apm": " medium", "apl": " large"}
"""Of objects of a size."""
QUALITIES = ("pq", "sq", "rq")
SOLID = 0.5
"""From this probability on, a pixel is a mask's."""
NEXT_TO_NOTHING = 2.0
"""Percent of AP or PQ that what takes no notice of the picture does not exceed."""

_percent = partial(Measure, chance=NEXT_TO_NOTHING, chance_means="2 %", unit="%", higher_is_better=True, digits=2)


def _losses(*names: str) -> tuple[Measure, ...]:
    own = tuple(Measure(f"train_{name}", digits=4, in_line=False) for name in names)
    return (Measure("train_loss", digits=4), *own)


def _columns(kind: Kind) -> tuple[Measure, ...]:
    return tuple(
        _percent(
            f"test_{kind}_{column}",
            words=f"test {kind} {column[:2].upper()}{SIZES.get(column, column[2:])}",
            in_line=column in ("ap", "ap50"),
            may_lack=column in SIZES,
        )
        for column in COLUMNS
    )


class Detect(Task[ObjectBatch]):
    """What the three have in common.

    Attributes:
        learned: What is read of the pictures.
        measured: What AP is measured of.
        losses: Of the detector, in the order of the figures.
    """

    recipe: Boxes
    learned: Learned
    measured: tuple[Kind, ...]
    losses: tuple[str, ...]

    def check(self) -> None:
        recipe = self.recipe
        own = type(recipe).model
        recipe.require("model", recipe.model == own, f"is not known here; it is {own}, with a ", Setting("backbone"))
        recipe.require("stages", recipe.stages == "all", "all norms of a detector are replaced; choose all")
        recipe.require("compile", not recipe.compile, "torchvision's detectors cannot be compiled; leave it out")
        recipe.require("backbone", recipe.backbone in BACKBONES, f"is not known; choose from {', '.join(BACKBONES)}")
        models.parse_norm(recipe.norm)
        if recipe.backbone_weights is not None:
            weights_file(recipe.backbone, recipe.backbone_weights)

    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[ObjectBatch]:
        recipe = self.recipe
        common: dict[str, Any] = {"batch_size": recipe.batch_size, "seed": recipe.seed, "workers": workers, **place}
        common["train_images"] = recipe.train_images
        return Feeds(*object_feeds(recipe.data, data_root, self.learned, **common))

    def network(self, feeds: Feeds[ObjectBatch]) -> nn.Module:
        return self._made(feeds, self.recipe.backbone_weights)

    def blank(self, feeds: Feeds[ObjectBatch]) -> nn.Module:
        return self._made(feeds, None)

    def _made(self, feeds: Feeds[ObjectBatch], weights: str | None) -> nn.Module:
        recipe, categories = self.recipe, categories_of(feeds)
        return detector(
            self.learned,
            backbone=recipe.backbone,
            things=len(categories.things),
            stuff=len(categories.stuff),
            sizes=self.sizes(),
            norm=recipe.norm,
            noise=recipe.noise,
            noise_in=recipe.noise_in,
            neck_norms=recipe.neck_norms,
            frozen_batchnorm=recipe.frozen_batchnorm,
            trained_stages=recipe.trained_stages,
            weights=weights,
            trained=recipe.backbone_weights is not None,
        )

    def sizes(self) -> Sizes:
        """Return what the detector is besides its backbone."""
        r = self.recipe
        sides = (r.image_size, r.longest_side, r.channels, r.head_convs, r.head_features)
        return Sizes(*sides, r.anchor, r.rois, r.proposals)

    def try_out(self, network: nn.Module, feeds: Feeds[ObjectBatch]) -> None:
        pictures, _ = next(iter(feeds.test))
        device = next(network.parameters()).device
        try:
            with torch.no_grad():
                copy.deepcopy(network).eval()([pictures[0].to(device)])
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            if (own := loading.fault(error)) is not None:
                raise own from error
            raise UsageError(Setting("image_size", self.recipe.image_size), f"does not work: {reason}") from error

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        recipe = self.recipe
        groups = parameter_groups(recipe, network)
        return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum)

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Return what is made smaller."""
        return torch.stack([value.float() for value in losses.values()]).sum()

    def loss(self, network: Network, batch: ObjectBatch) -> tuple[Tensor, Tensor]:
        pictures, targets = batch
        held = [target | {"boxes": target["boxes"].view(torch.int32)} for target in targets]  # not in half precision
        losses = network(pictures, held)
        total = self.weighted(losses)
        each = {LOSSES[name]: value.detach().double() for name, value in losses.items()}
        one = torch.ones_like(total, dtype=torch.float64)
        sums = torch.stack([total.detach().double(), *(each[name] for name in self.losses), one])
        return total, len(pictures) * sums

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        *totals, pictures = sums.tolist()
        names = ("loss", *(f"{name}_loss" for name in self.losses))
        return {f"train_{name}": total / pictures for name, total in zip(names, totals, strict=True)}

    def meter(self, device: torch.device) -> Detections:
        return Detections(self)


class DetectBoxes(Detect, recipes=Boxes):
    """Boxes around objects; runs are compared by the boxes' AP."""

    learned = "box"
    measured = ("box",)
    losses = ("objectness", "proposals", "classes", "boxes")
    measures = (*_losses(*(f"{name}_loss" for name in losses)), *_columns("box"))
    headline = next(measure for measure in measures if measure.name == "test_box_ap")


class DetectMasks(Detect, recipes=Masks):
    """Boxes and masks of objects; runs are compared by the masks' AP."""

    learned = "mask"
    measured = ("box", "mask")
    losses = (*DetectBoxes.losses, "masks")
    measures = (*_losses(*(f"{name}_loss" for name in losses)), *_columns("box"), *_columns("mask"))
    headline = next(measure for measure in measures if measure.name == "test_mask_ap")


class DetectPanoptic(Detect, recipes=Panoptic):
    """Which thing or stuff each pixel is of; runs are compared by PQ."""

    recipe: Panoptic
    learned = "panoptic"
    measured = ("box", "mask")
    losses = (*DetectMasks.losses, "semantic")
    of_pixels = tuple(
        _percent(f"test_{name}{of}", words=f"test {name.upper()}{of.replace('_', ' of ')}", in_line=name == "pq")
        for of in ("", "_things", "_stuff")
        for name in QUALITIES
    )
    measures = (*_losses(*(f"{name}_loss" for name in losses)), *_columns("box"), *_columns("mask"), *of_pixels)
    headline = next(measure for measure in measures if measure.name == "test_pq")

    def sizes(self) -> Sizes:
        return replace(super().sizes(), semantic_channels=self.recipe.semantic_channels)

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"loss_semantic": self.recipe.semantic_weight}
        return torch.stack([weights.get(name, 1.0) * value.float() for name, value in losses.items()]).sum()

    def meter(self, device: torch.device) -> Detections:
        return PanopticDetections(self)

    def merged(self, result: dict[str, Tensor], things: int, stuff: int) -> Map:
        """Return the panoptic map of what the network says of a picture."""
        recipe = self.recipe
        return merge(
            result["masks"][:, 0] >= SOLID,
            result["labels"],
            result["scores"],
            result["semantic"],
            things=things,
            stuff=stuff,
            least_score=recipe.least_score,
            least_share=recipe.least_share,
            least_stuff=recipe.least_stuff,
        )


def categories_of(feeds: Feeds[ObjectBatch]) -> Categories:
    """Return the classes of a feed."""
    assert isinstance(feeds.train, ObjectFeed)
    return feeds.train.categories


class Detections:
    """AP over all pictures of the test.

    Every picture's boxes and coded masks are kept, with the truth; processes put theirs together, and the figures are
    made of all of them in the order of their ids: so they are the same for any number of processes.

    Args:
        task: What was learned.
    """

    def __init__(self, task: Detect) -> None:
        self.task = task
        self.found: list[dict[str, Any]] = []

    def add(self, network: Network, batch: ObjectBatch) -> None:
        pictures, targets = batch
        for picture, result, target in zip(pictures, network(pictures), targets, strict=True):
            self.found.append(self.of_picture(picture, result, target))

    def of_picture(self, picture: Tensor, result: dict[str, Tensor], target: dict[str, Any]) -> dict[str, Any]:
        """Return what is kept of a picture."""
        each: dict[str, Any] = {"id": target["id"], "size": tuple(picture.shape[1:])}
        each |= {name: result[name].float().cpu() for name in ("boxes", "scores")} | {"labels": result["labels"].cpu()}
        each |= {f"true_{name}": target[name].cpu() for name in ("boxes", "labels")}
        each |= {name: target[name].cpu() for name in ("crowd", "area")}
        if "masks" in target:
            each["codes"] = encoded(result["masks"][:, 0] >= SOLID)
            each["true_codes"] = encoded(target["masks"])
        return each

    def figures(self, together: Together) -> dict[str, float]:
        return self.of_all(self.gathered(together))

    def gathered(self, together: Together) -> list[dict[str, Any]]:
        """Return what all processes have kept, in the order of the pictures' ids."""
        parts = together.gather(self.found)
        return sorted((each for part in parts for each in part), key=lambda each: int(each["id"]))

    def of_all(self, found: list[dict[str, Any]]) -> dict[str, float]:
        """Return the figures of what was kept of every picture."""
        return precisions(found, self.task.measured)


class PanopticDetections(Detections):
    """PQ besides.

    Attributes:
        maps: The maps of pictures by id that are measured in the place of those that are merged here.
        keep_maps: Whether every map is kept, for whoever writes them.
    """

    task: DetectPanoptic
    maps: dict[int, Map] | None = None
    keep_maps = False

    def of_picture(self, picture: Tensor, result: dict[str, Tensor], target: dict[str, Any]) -> dict[str, Any]:
        things, stuff = target["counts"]
        found = self.task.merged(result, things, stuff) if self.maps is None else self.maps[target["id"]]
        sums = counted(found, target["segments"], target["classes"], target["crowds"], things + stuff)
        kept = {"map": found} if self.keep_maps else {}
        return super().of_picture(picture, result, target) | {"counts": (things, stuff), "sums": sums, **kept}

    def of_all(self, found: list[dict[str, Any]]) -> dict[str, float]:
        things, stuff = found[0]["counts"]
        sums = torch.stack([each["sums"] for each in found]).sum(0)
        parts = {"": range(things + stuff), "_things": range(things), "_stuff": range(things, things + stuff)}
        figures = super().of_all(found)
        for name, classes in parts.items():
            values = zip(QUALITIES, qualities(sums, classes), strict=True)
            figures |= {f"test_{quality}{name}": value for quality, value in values}
        return figures
