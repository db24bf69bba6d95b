"""Fast style transfer: a network puts any photograph into the style of one picture (Johnson et al., ECCV 2016)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab import models
from calibnorm.lab.data import ImageBatch, unlabelled
from calibnorm.lab.data.photographs import NAMES, path_of
from calibnorm.lab.data.pictures import pixels_of, read_picture
from calibnorm.lab.models import vgg
from calibnorm.lab.recipes import Stylization
from calibnorm.lab.tasks.groups import parameter_groups
from calibnorm.lab.tasks.perceptual import Perceptual
from calibnorm.lab.tasks.task import Feeds, Network, Place, Task, Together
from calibnorm.report.measure import Measure

FIGURES = ("loss", "content_loss", "style_loss", "variation")
MOST_SHOWN = 8
"""Photographs of a preview, above what becomes of them."""
SMALLEST = 16
"""Pixels a side of pictures whose features are compared: the deepest layers have a sixteenth of them."""


class Stylize(Task[ImageBatch], recipes=Stylization):
    """A network that puts photographs into a style.

    The loss is a weighted sum of the content loss, the style loss and the variation, which are logged apart, each
    without its weight; those of the test are of photographs that were not trained on.
    """

    recipe: Stylization
    headline = Measure("test_loss", digits=4)
    measures = tuple(Measure(f"{of}_{name}", digits=4) for of in ("train", "test") for name in FIGURES)

    def check(self) -> None:
        recipe = self.recipe
        recipe.require("model", recipe.model == "johnson", "is not known; there is johnson")
        recipe.require("data", recipe.data == "photographs", "must be photographs; --content names a folder of others")
        recipe.require("stages", recipe.stages == "all", "the transformation network has no stages; choose all")
        models.parse_norm(recipe.norm)
        least = max(SMALLEST, 8 * recipe.blocks + 1 if recipe.edge == "start" else 0)
        small = f"must be at least {least}, for so far the network reflects the edge"
        recipe.require("image_size", recipe.image_size >= least, small)
        recipe.require("style_size", recipe.style_size >= SMALLEST, f"must be at least {SMALLEST}")
        self.style_path  # noqa: B018 (refuses what is not there)
        vgg.check(recipe.features)

    @property
    def style_path(self) -> Path:
        """The file of the style; raises UsageError where there is none."""
        name = self.recipe.style
        path = path_of(name) if name in NAMES else Path(name)
        if not path.is_file():
            reason = f"is no file; name a picture, or one of {', '.join(NAMES)}"
            raise UsageError(Setting("style", name), reason)
        return path

    def feeds(self, data_root: Path, place: Place, workers: int | None) -> Feeds[ImageBatch]:
        recipe = self.recipe
        found = unlabelled.find(None if recipe.content is None else Path(recipe.content), recipe.style)
        name = recipe.content or recipe.data
        words = [f"style {recipe.style}; features: {self.features_in_words}"]
        train, test = unlabelled.feeds(
            found,
            name,
            {"style": self.style_path},
            words,
            size=recipe.image_size,
            batch_size=recipe.batch_size,
            batches=recipe.steps // recipe.epochs,
            seed=recipe.seed,
            workers=workers,
            **place,
        )
        return Feeds(train, test)

    def network(self, feeds: Feeds[ImageBatch] | None = None) -> nn.Module:
        names = ("norm", "noise", "noise_in", "width", "blocks", "edge", "upsampling")
        options: dict[str, Any] = {name: getattr(self.recipe, name) for name in names}
        return models.transformation(**options)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameter_groups(self.recipe, network), self.recipe.learning_rate)

    @cached_property
    def style(self) -> Tensor:
        """The style's picture (3, H, W), from 0 to 1, its shorter side of the recipe's size."""
        from torchvision.transforms.v2.functional import resize

        sized: Tensor = resize(pixels_of(read_picture(self.style_path)), [self.recipe.style_size], antialias=True)
        return sized.float() / 255

    @cached_property
    def _features(self) -> vgg.Features:
        recipe = self.recipe
        return vgg.features(recipe.features, max((recipe.content_layer, *recipe.style_layers)))

    @property
    def features_in_words(self) -> str:
        """Whose features are compared."""
        return self._features.words

    def perceptual(self, device: torch.device) -> Perceptual:
        """Return the losses; their features are read once."""
        if self._perceptual is None or self._perceptual.features.mean.device != device:
            recipe = self.recipe
            layers: dict[str, float] = dict(zip(recipe.style_layers, recipe.layer_weights, strict=True))
            layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
            on = self._features.to(device).to(memory_format=layout)
            half = recipe.precision == "bfloat16"
            self._perceptual = Perceptual(on, self.style.to(device), recipe.content_layer, layers, half)
        return self._perceptual

    _perceptual: Perceptual | None = None

    def loss(self, network: Network, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        photographs, recipe = batch[0], self.recipe
        each = self.perceptual(photographs.device)(network(photographs), photographs)
        weights = (recipe.content_weight, recipe.style_weight, recipe.variation_weight)
        total = sum((weight * values for weight, values in zip(weights, each, strict=True)), torch.zeros_like(each[0]))
        sums = torch.stack([total, *each, torch.ones_like(total)]).detach().double().sum(1)
        return total.mean(), sums

    def train_figures(self, sums: Tensor) -> dict[str, float]:
        return self.figures("train", sums)

    def figures(self, of: str, sums: Tensor) -> dict[str, float]:
        """Return the means that sums of :meth:`loss` come to, of training or of the test."""
        *totals, count = sums.tolist()
        return {f"{of}_{name}": value / count for name, value in zip(FIGURES, totals, strict=True)}

    def meter(self, device: torch.device) -> Distances:
        return Distances(self, device)

    def preview(self, network: Network, batch: ImageBatch) -> Tensor | None:
        photographs = batch[0][:MOST_SHOWN]
        rows = torch.stack([photographs, network(photographs).float().clamp(0, 1)])
        return (255 * rows).round().to(torch.uint8).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


class Distances:
    """The losses of a network on the test photographs.

    Args:
        task: What it has learned.
        device: Where the batches are.
    """

    def __init__(self, task: Stylize, device: torch.device) -> None:
        self._task = task
        self._sums = torch.zeros(len(FIGURES) + 1, dtype=torch.float64, device=device)

    def add(self, network: Network, batch: ImageBatch) -> None:
        self._sums += self._task.loss(network, batch)[1]

    def figures(self, together: Together) -> dict[str, float]:
        return self._task.figures("test", together.sum(self._sums))
