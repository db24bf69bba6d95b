"""RandAugment, TrivialAugment, MixUp and CutMix: what they do, and that a resumed run does the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab import data, tasks
from calibnorm.lab.recipes import Classification
from calibnorm.lab.tasks.classify import cross_entropy, mixed
from calibnorm.lab.training import train
from lab.calling import main
from lab.training.tiny import PICTURES, TINY, Interrupting, assert_same_run, make_pictures

MIXED = replace(PICTURES, augment="randaugment", mixup=0.4, cutmix=1.0, label_smoothing=0.1)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_shares_say_what_is_in_an_image(mixup: float, cutmix: float) -> None:
    values = torch.arange(6.0)
    for seed in range(4):
        torch.manual_seed(seed)
        images, shares = mixed(values.view(-1, 1, 1, 1).expand(6, 3, 32, 32), mixup, cutmix)
        assert torch.allclose(shares.sum(1), torch.ones(6))
        assert torch.allclose(images.mean((1, 2, 3)), shares @ values, atol=1e-5)
        torch.manual_seed(seed)
        assert torch.equal(mixed(values.view(-1, 1, 1, 1).expand(6, 3, 32, 32), mixup, cutmix)[0], images)


def test_the_loss_is_that_of_the_shares() -> None:
    task = tasks.of(replace(TINY, mixup=0.5))
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    torch.manual_seed(1)
    loss, sums = task.loss(network, (images, labels))
    torch.manual_seed(1)
    other, shares = mixed(images, 0.5, 0.0)
    targets = torch.stack([shares[:, labels == label].sum(1) for label in range(3)], 1)
    torch.testing.assert_close(loss, cross_entropy(network(other), targets))
    assert sums[1] == (network(other).argmax(1) == targets.argmax(1)).sum()


def test_a_resumed_run_augments_and_mixes_as_an_undisturbed_one(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "sets")

    def run(name: str, **options: object) -> None:
        train(MIXED, tmp_path / name, data_root=root, accelerator="cpu", workers=0, **options)  # type: ignore[arg-type]

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", watcher=Interrupting(5), checkpoint_minutes=0)
    run("broken")
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("augment", ["randaugment", "trivialaugment"])
def test_an_augmented_picture_is_a_function_of_seed_epoch_and_picture(tmp_path: Path, augment: data.Augment) -> None:
    root, options = make_pictures(tmp_path / "sets"), {"batch_size": 6, "device": "cpu", "size": 16, "workers": 0}

    def first(seed: int, epoch: int, kind: data.Augment) -> torch.Tensor:
        train, *_ = data.folder_feeds("folders", root, seed=seed, augment=kind, **options)  # type: ignore[arg-type]
        train.set_epoch(epoch)
        return next(iter(train))[0]

    state = torch.get_rng_state()
    assert torch.equal(first(0, 0, augment), first(0, 0, augment))
    for other in (first(1, 0, augment), first(0, 1, augment), first(0, 0, "crop_flip")):
        assert not torch.equal(first(0, 0, augment), other)
    assert torch.equal(torch.get_rng_state(), state)


def test_standard_is_crops_and_flips_and_has_a_second_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replace(PICTURES, augment="standard") == replace(PICTURES, augment="crop_flip")
    words = "resnet11 on folders at 16 x 16 pixels, random crops, flips and RandAugment, mixup 0.4 or cutmix 1; 2 epo"
    assert MIXED.in_words().startswith(words)
    message = "is for folders of pictures; a set in memory takes crop_flip, crop, none\n"
    for option in ("--augmentation", "--augment"):
        assert main(["train", "digits-tiny", f"{option}=randaugment", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"calibnorm: --augment randaugment: {message}"


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_cannot_be_mixed_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}: must be 0 or a positive number, such as 0.2"):
        Classification("resnet11", "digits", 1, **{name: value})
