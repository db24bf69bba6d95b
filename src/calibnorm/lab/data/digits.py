"""Real handwriting: the 1797 digits of 8 x 8 pixels that come inside scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from calibnorm.lab.data.image_set import Split

# One split for all seeds and norms, so that a spread over seeds is that of training and not of the test images.
SPLIT_SEED = 0
TEST_SHARE = 1 / 3


def read(root: Path) -> tuple[Split, Split]:
    """Return the digits as bytes, in a stratified split: both parts have the digits in the same proportions."""
    from sklearn.datasets import load_digits  # a second of import
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    halves = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)

    def part(images: Any, labels: Any) -> Split:
        # 0 to 16 become 0 to 240: whole numbers still, and the standardized images are the same.
        return Split(torch.as_tensor(images * 15).to(torch.uint8).view(-1, 1, 8, 8), torch.as_tensor(labels))

    return part(*halves[::2]), part(*halves[1::2])
