"""`calibnorm export --fold`: gates that hardly look at the picture become plain BatchNorm before a file is written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import calibnorm as cn
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.classifier.opening import Classifier
from calibnorm.lab.classifier.predict import seen
from calibnorm.lab.data.augment import standardize
from calibnorm.lab.data.listing import named
from calibnorm.lab.data.workers import readers

MOST = 256
"""Pictures that are looked at, taken evenly from all: they lie in memory, and gates are averages over them."""
BATCH = 32


def folded(of: Classifier, places: Sequence[Path], tolerance: float) -> Classifier:
    """Return a classifier that is folded by `calibnorm.fold`, and says what that costs.

    Args:
        of: The trained network; its own layers change.
        places: Pictures, or folders of pictures: one half chooses which gates are folded, the other half judges.
        tolerance: How far the outputs may move, as a share of their standard deviation.

    Raises:
        UsageError: A place is not there, a picture cannot be read, or there are fewer than four.
    """
    paths = [path for _, found in named(places) for path in found]
    with ThreadPoolExecutor(readers()) as pool:
        part = paths[:: -(-len(paths) // MOST)]
        pictures = [whole(each) for each in pool.map(lambda path: seen(path, of.pixels), part)]
    images = standardize(torch.stack(pictures), *of.pixels.statistics(torch.device("cpu")))
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    said: list[str] = []
    try:
        plan = cn.fold_plan(of.network, batches, tolerance=tolerance)
    except ValueError as error:
        raise UsageError(Setting("fold", places), f"cannot be folded by: {error}") from error
    network = cn.fold(of.network, plan, into_convolutions=True, report=said.append)
    return replace(of, network=network, folding=said[0].partition("\n\n")[0])


def whole(picture: Tensor | UsageError) -> Tensor:
    """Return a picture, or raise why it cannot be read."""
    if isinstance(picture, UsageError):
        raise picture
    return picture
