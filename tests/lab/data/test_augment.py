"""Crops, flips and standardization of sets in memory, against one image and one pixel at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tolerances
from calibnorm.lab import data
from calibnorm.lab.data.augment import PADDING, Shifts, crop_flip
from calibnorm.lab.data.seeding import generator
from lab.data.batches import numbered, order, train_feed


def reference(image_CHW: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """One image and one pixel at a time."""
    channels, height, width = image_CHW.shape
    result = torch.zeros_like(image_CHW)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                source_row = row + top - PADDING
                source_column = (width - 1 - column if mirrored else column) + left - PADDING
                if 0 <= source_row < height and 0 <= source_column < width:
                    result[channel, row, column] = image_CHW[channel, source_row, source_column]
    return result


@pytest.mark.parametrize("shape", [(30, 1, 8, 8), (30, 3, 6, 7)])
def test_crop_and_flip_against_one_image_at_a_time(shape):
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator("test"))
    shifts = Shifts.draw(len(images), generator("test shifts"), flip=True)
    expected = [
        reference(image, int(shifts.top[i]), int(shifts.left[i]), bool(shifts.mirrored[i]))
        for i, image in enumerate(images)
    ]
    assert torch.equal(crop_flip(images, shifts), torch.stack(expected))


def test_all_crops_and_flips_are_drawn_alike():
    shifts = Shifts.draw(81_000, generator("test"), flip=True)
    places = (9 * shifts.top + shifts.left + 81 * shifts.mirrored).bincount(minlength=162)
    assert len(places) == 162
    # 500 of each expected; six standard deviations of a count are 134.
    assert (places - 500).abs().max() < 134
    chi_square = ((places - 500) ** 2 / 500).sum().item()
    assert abs(chi_square - 161) < 6 * (2 * 161) ** 0.5
    unflipped = Shifts.draw(81_000, generator("test"), flip=False)
    assert not unflipped.mirrored.any()
    assert torch.equal(unflipped.top, shifts.top)


@pytest.mark.parametrize("augment", ["crop_flip", "crop", "none"])
def test_batches_are_augmented_and_standardized(color, augment):
    images = numbered(color)
    shifts = Shifts.draw(96, generator("main crops", 0, 0), flip=augment == "crop_flip")
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (images.mean, images.std))
    batch, labels = next(iter(train_feed(images, augment=augment)))
    for i in range(3):
        image = images.train.images[labels[i]]
        if augment != "none":
            image = reference(image, int(shifts.top[i]), int(shifts.left[i]), bool(shifts.mirrored[i]))
        expected = (image.double() / 255 - mean) / std
        assert tolerances.error(batch[i], expected) < tolerances.rounding(torch.float32)
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_training_images_are_standardized_exactly(color):
    every = torch.cat([images for images, _ in train_feed(color, batch_size=100, augment="none")]).double()
    assert every.mean((0, 2, 3)).abs().max() < 1e-6
    assert (every.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_test_images_come_in_order_without_augmentation(color):
    batches = list(data.test_feed(color, batch_size=8, device="cpu"))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 8, 5]
    assert torch.equal(order(batches), color.test.labels)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (color.mean, color.std))
    expected = (color.test.images.double() / 255 - mean) / std
    error = tolerances.error(torch.cat([images for images, _ in batches]), expected)
    assert error < tolerances.rounding(torch.float32)
