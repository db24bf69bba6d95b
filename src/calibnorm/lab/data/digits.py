"""Real handwriting: the 1797 digits of 8 x 8 pixels that come inside scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from calibnorm.lab.data.image_set import Split

# One split for all seeds and norms, so that a spread over seeds is that of training and not of the test images.
SPLIT_SEED = 0
TEST_SHARE = 1 / 3


class DigitsSplit(NamedTuple):
    """Images (N, 8, 8) in float64, whole numbers from 0 to 16, and labels (N,) in int64."""

    train_images: npt.NDArray[np.float64]
    test_images: npt.NDArray[np.float64]
    train_labels: npt.NDArray[np.int64]
    test_labels: npt.NDArray[np.int64]


def split() -> DigitsSplit:
    """Return the digits with a stratified split: both parts have the digits in the same proportions."""
    from sklearn.datasets import load_digits  # a second of import
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    return DigitsSplit(
        *train_test_split(
            bunch.images, bunch.target, test_size=TEST_SHARE, stratify=bunch.target, random_state=SPLIT_SEED
        )
    )


def read(root: Path) -> tuple[Split, Split]:
    """Return the digits as bytes; they need no folder."""
    parts = split()

    def images(array: npt.NDArray[np.float64]) -> torch.Tensor:
        # 0 to 16 become 0 to 240: whole numbers still, and the standardized images are the same.
        return torch.as_tensor(array * 15).to(torch.uint8).unsqueeze(1)

    return (
        Split(images(parts.train_images), torch.as_tensor(parts.train_labels)),
        Split(images(parts.test_images), torch.as_tensor(parts.test_labels)),
    )
