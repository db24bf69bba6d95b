"""One layer's calibrations on a run's page: its channels before and after scaling, and an image's features."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab.experiments import calibration
from calibnorm.lab.training.trained import Trained
from calibnorm.report.document import Paragraph, Picture, Section
from calibnorm.report.pictures import Drawing
from calibnorm.report.pictures.drawing import Shades
from drawn import randn


def network(*norms: nn.Module) -> Trained:
    """Norms one behind the other, on three batches of images that one would read from a feed."""
    feed = [(randn(4, 8, 5, 5, seed=seed, std=2.0), torch.zeros(4, dtype=torch.long)) for seed in range(3)]
    of = SimpleNamespace(network=nn.Sequential(*norms).eval(), feeds=SimpleNamespace(test=feed))
    return cast(Trained, of)


def rows(of: Trained) -> list[dict[str, Any]]:
    found = [*cn.inspect.learned(of.network), *cn.inspect.gates(of.network, of.feeds.test)]
    return [{"std_over_images": None} | vars(row) for row in found]


def drawing(section: Section) -> Drawing:
    (picture,) = [block for block in section.blocks if isinstance(block, Picture)]
    return picture.draw()


def words(section: Section) -> str:
    assert isinstance(section.blocks[0], Paragraph)
    return section.blocks[0].text


def calibrated() -> tuple[Trained, cn.RBN2d]:
    """Three RBNs, of which the gate of the second follows the image."""
    of = network(cn.RBN2d(8), follows := cn.RBN2d(8), cn.RBN2d(8))
    with torch.no_grad():
        follows.get_parameter("scale_weight").fill_(-1.0)
        follows.get_parameter("center_weight").copy_(torch.arange(8.0) / 10)
    return of, follows


def test_the_layer_that_follows_the_image_is_shown_unless_another_is_named() -> None:
    of, _ = calibrated()
    channels, features = calibration.sections(of, rows(of))
    assert words(channels).startswith("Layer 1: ")
    assert "12 test images" in words(channels)
    assert "varies most" in words(channels)
    assert "layer 1 makes" in words(features)
    channels, _ = calibration.sections(of, rows(of), "2")
    assert words(channels).startswith("Layer 2: ")
    assert "varies most" not in words(channels)


def test_channels_are_those_of_the_meter_in_their_order() -> None:
    of, _ = calibrated()
    channels, _ = calibration.sections(of, rows(of))
    ((_, (panel,)),) = drawing(channels).columns
    assert panel is not None
    before, after = cn.inspect.channel_std(of.network, of.feeds.test).by_channel["1"]
    last = [dots.at[-1] for dots in panel.dots()]
    assert [dot.y for dot in last] == pytest.approx([before.max().item(), after[before.argmax()].item()])


def test_features_are_an_image_s_and_pairs_share_black_and_white() -> None:
    of, layer = calibrated()
    _, features = calibration.sections(of, rows(of))
    ((_, (panel,)),) = drawing(features).columns
    assert panel is not None
    marks = [mark for mark in panel.marks if isinstance(mark, Shades)]
    columns = [text for _, text in panel.x.ticks]
    assert columns == ["image", "input", "centred", "normed", "scaled", "output"]
    assert len(marks) == len(columns) * calibration.CHANNELS
    stages = cn.inspect.features(of.network, of.feeds.test[0][0][0], "1")
    # The first row is channel 0, whose w_m is the least; black and white are those of the two features together.
    both = torch.stack([stages["input"][0, 0], stages["centred"][0, 0]])
    gray: Tensor = (both - both.min()) / (both.max() - both.min())
    for mark, expected in zip(marks[1:3], gray, strict=True):
        assert torch.tensor(mark.rows) == pytest.approx(expected, abs=1e-6)
        assert mark.says == f"channel 0 (+0), {columns[marks.index(mark)]}: black is {both.min():.3g}, white " + (
            f"{both.max():.3g}"
        )
    assert panel.y.ticks[-1][1] == f"channel 7\n({layer.get_parameter('center_weight')[7].item():+.2g})"


@pytest.mark.parametrize("norm", [cn.SE2d(8), cn.IEBN2d(8), cn.RBN2d(8, centering=False), cn.AN2d(8)])
def test_other_gates_have_their_pictures(norm: nn.Module) -> None:
    of = network(norm)
    for section in calibration.sections(of, rows(of), "0"):
        assert drawing(section).columns


def test_where_there_is_nothing_to_show() -> None:
    of = network(nn.BatchNorm2d(8))
    assert calibration.sections(of, rows(of)) == []
    with pytest.raises(UsageError, match="layer=0: is no calibrated layer; this network has none"):
        calibration.check(of.network, "0")
    of, _ = calibrated()
    with pytest.raises(UsageError, match="layer=conv: is no calibrated layer; choose one of 0, 1, 2"):
        calibration.check(of.network, "conv")
    of, unused = network(cn.RBN2d(8)), cn.RBN2d(8)
    found = rows(of)
    of.network.register_module("unused", unused)
    of.network.forward = lambda x: of.network[0](x)  # type: ignore[operator]
    assert calibration.sections(of, found, "0")
    assert calibration.sections(of, [*found, {"layer": "unused", "std_over_images": None}], "unused") == []
    flat = network(cn.RBN1d(8))
    flat.feeds.test[:] = [(images.mean((2, 3)), labels) for images, labels in flat.feeds.test]  # type: ignore[index]
    _, features = calibration.sections(flat, rows(flat))
    assert features.blocks == []
