"""What a network's pictures are made of: by the data, or as its trained weights expect; and what best.pt says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibnorm.lab import tasks
from calibnorm.lab.data import Pixels, folders
from calibnorm.lab.recipes import Classification
from lab.classifier.conftest import Left
from lab.training.tiny import PICTURES, TINY

LITE = 127 / 255, 128 / 255


@pytest.mark.parametrize(
    ("recipe", "mean", "std", "short"),
    [
        (PICTURES, folders.MEAN, folders.STD, 18),
        (replace(PICTURES, model="efficientnet_lite0", weights="imagenet"), LITE[:1] * 3, LITE[1:] * 3, 18),
        (replace(PICTURES, model="timm/tf_efficientnet_lite0", weights="w.pt"), (0.5,) * 3, (0.5,) * 3, 18),
        (replace(PICTURES, model="timm/resnet18", weights="w.pt"), folders.MEAN, folders.STD, 18),
        (replace(TINY, model="timm/tf_efficientnet_lite0", weights="w.pt"), (0.5,), (0.5,), 8),
    ],
)
def test_pixels(
    left: Left, recipe: Classification, mean: tuple[float, ...], std: tuple[float, ...], short: int
) -> None:
    task = tasks.of(recipe)
    feeds = task.feeds(left.root, tasks.Place(device=torch.device("cpu"), rank=0, world=1), 0)
    assert feeds.train.pixels == feeds.test.pixels
    assert feeds.train.pixels == Pixels(recipe.image_size or 8, short, mean, std)
    said = task.beside(feeds)
    assert Pixels.from_dict(said["pixels"]) == feeds.train.pixels
    images, _ = next(iter(feeds.test))
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    bytes_ = 255 * (images * std_C11 + mean_C11)
    assert torch.allclose(bytes_, bytes_.round(), atol=1e-3)
    assert 0 <= bytes_.min() < bytes_.max() < 256


def test_the_files_of_weights_say_it(left: Left) -> None:
    for name in ("best.pt", "last.pt"):
        content = torch.load(left.run / name, weights_only=True)
        assert content["pixels"] == {"size": 16, "short": 18, "mean": [*folders.MEAN], "std": [*folders.STD]}
        assert content["classes"] == ["cat", "dog", "owl"]
    assert not Path(torch.load(left.run / "last.pt", weights_only=True)["recipe"]["weights"]).exists()
