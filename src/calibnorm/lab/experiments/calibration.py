"""What the calibrations of one layer of a trained network do to its channels: RBN's Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

import calibnorm as cn
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.experiments.layers import Rows
from calibnorm.lab.training.trained import Trained
from calibnorm.report import pictures
from calibnorm.report.document import Paragraph, Picture, Section
from calibnorm.report.pictures import Point

IMAGES = 2000
"""Test images that the channels are read on: more change a standard deviation by less than 2 %."""
CHANNELS = 6
"""That an image's features are shown of."""
PAIRS = (("input", "centred"), ("normed", "scaled"))
"""Steps that are compared with each other."""
SHORT = {"standardized": "normed"}
"""What has no room below a small picture."""


def sections(of: Trained, rows: Rows, layer: str | None = None) -> list[Section]:
    """Return one layer's channels before and after the scaling, and an image's features step by step.

    Args:
        of: The network.
        rows: What `layers.read` says of it.
        layer: The layer's name, which `check` has looked at; that whose gate varies most from image to image by
            default.
    """
    found: dict[str, float] = {}
    for row in rows:
        found[row["layer"]] = max(found.get(row["layer"], 0.0), row["std_over_images"] or 0.0)
    if not found or not isinstance(next(iter(of.feeds.test))[0], Tensor):  # pictures of several sizes are no batch
        return []
    name = layer or max(found, key=lambda each: found[each])
    chosen = "" if layer or not found[name] else " It is the layer whose gate varies most from image to image."
    shown = channels(of, name, chosen)
    return [shown, features(of, name)] if shown.blocks else []


def check(network: nn.Module, layer: str | None) -> None:
    """Raise UsageError where a layer is named and the network has no calibrated layer of that name."""
    found = dict.fromkeys(row.layer for row in cn.inspect.learned(network))
    if layer is not None and layer not in found:
        known = f"choose one of {', '.join(found)}" if found else "this network has none"
        raise UsageError(Setting("layer", layer), f"is no calibrated layer; {known}")


def channels(of: Trained, layer: str, chosen: str) -> Section:
    """Return how much the mean of every channel varies over test images, before and after the scaling calibration."""
    module = of.network.get_submodule(layer)
    images = first(of.feeds.test, IMAGES)
    found = cn.inspect.channel_std(of.network, images, where=lambda _, each: each is module)
    title = "Channels before and after scaling"
    if not found:  # the network does not call the layer
        return Section(title, [])
    before, after = found.by_channel[found[0].layer]
    order = before.argsort()
    named = {"before scaling": before[order], "after scaling": after[order]}
    lines = {name: [Point(at, std, std, std) for at, std in enumerate(stds.tolist())] for name, stds in named.items()}
    text = (
        f"Layer {layer}: the standard deviation, over {found[0].images} test images, of each channel's mean.{chosen} "
        f"On average it is {found[0].before:.3g} before the scaling and {found[0].after:.3g} after it; between "
        f"channels these differ by {found[0].before_unevenness:.3g} and {found[0].after_unevenness:.3g} (std)."
    )
    columns = {layer: {"std of a channel's mean over images": lines}}
    draw = partial(pictures.bands, columns, "channel, in the order of the first", logarithmic=False)
    shows = f"Channels of {layer} before and after the scaling calibration"
    return Section(title, [Paragraph(text), Picture("channels.png", shows, draw)], on="file")


def features(of: Trained, layer: str) -> Section:
    """Return an image's features of a few channels, step by step, beside the image."""
    image = next(iter(first(of.feeds.test, 1)))
    stages = {stage: feature[0] for stage, feature in cn.inspect.features(of.network, image, layer).stages.items()}
    if any(feature.ndim != 3 for feature in stages.values()):
        return Section("Features of an image", [])
    own = dict(of.network.get_submodule(layer).named_parameters())
    weight = next((own[name] for name in ("center_weight", "scale_weight", "gate_weight") if name in own), None)
    table = {
        f"channel {number}{said}": {"image": image[0].mean(0).tolist()}
        | {SHORT.get(stage, stage): feature[number].tolist() for stage, feature in stages.items()}
        for number, said in spread(len(stages["input"]), weight)
    }
    text = (
        f"The first test image, and what layer {layer} makes of it in {CHANNELS} channels"
        f"{', from the least to the greatest weight of its first calibration' if weight is not None else ''}. In a "
        "row, the features before and after a calibration share black, the least value, and white, the greatest."
    )
    draw = partial(pictures.shades, table, "steps of the layer", f"channels of {layer}", PAIRS)
    shows = f"Features of an image in {layer}, step by step"
    return Section("Features of an image", [Paragraph(text), Picture("features.png", shows, draw)], on="file")


def spread(channels: int, weight: Tensor | None) -> Iterator[tuple[int, str]]:
    """Yield a few channels with what is to say of them: evenly chosen in the order of a weight, if there is one.

    >>> list(spread(3, None))
    [(0, ''), (1, ''), (2, '')]
    """
    order = range(channels) if weight is None or weight.ndim > 1 else weight.argsort().tolist()
    count = min(CHANNELS, channels)
    for place in range(count):
        number = order[place * (channels - 1) // max(count - 1, 1)]
        yield number, "" if weight is None or weight.ndim > 1 else f"\n({weight[number].item():+.2g})"


def first(batches: Iterable[Any], count: int) -> Iterator[Tensor]:
    """Yield the first images of a feed."""
    for images, *_ in batches:
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return
