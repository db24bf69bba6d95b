"""Features before and after each calibration, and what they do to a channel's variance: Figures 5 and 6 of RBN."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import randn
from trained import trained

IMAGES = (24, 6, 5, 4)
RBNS = [
    {},
    {"scale_stat": "std"},
    {"center_stat": "std", "noise": (0.8, 0.5)},
    {"scaling": False},
    {"centering": False},
]


def gradual(options):
    """X, X_cm, X_s, X_cs and the output by Eq. 12, in float64."""
    layer, x = trained(cn.RBN2d(6, **options)), randn(*IMAGES, dtype=torch.float32)
    p = {name: gate.detach().double()[:, None, None] for name, gate in layer.gates().items()}
    pixels = {"dim": (2, 3), "keepdim": True}
    x_cm = x.double()
    if "center_weight" in p:
        k_m = x_cm.mean(**pixels) if layer.method.center_stat == "mean" else x_cm.std(**pixels, correction=0)
        x_cm = x_cm + p["center_weight"] * k_m
    mean, var = (getattr(layer.bn, f"running_{name}").double()[:, None, None] for name in ("mean", "var"))
    n_a, n_b = layer.noise or (1.0, 0.0)
    x_s = (x_cm - mean) / (var + layer.eps).sqrt() * n_a + n_b
    stages = {"input": x.double(), "centred": x_cm, "standardized": x_s}
    if "scale_weight" in p:
        k_s = x_s.mean(**pixels) if layer.method.scale_stat == "mean" else x_s.std(**pixels, correction=0)
        stages["scaled"] = x_s * torch.sigmoid(p["scale_weight"] * k_s + p["scale_bias"])
    last = stages.get("scaled", x_s) * layer.weight.double()[:, None, None] + layer.bias.double()[:, None, None]
    if "center_weight" not in p:
        del stages["centred"]
    return layer, x, {**stages, "output": last.detach()}


@pytest.mark.parametrize("options", RBNS, ids=str)
def test_features_of_every_step(options):
    layer, x, expected = gradual(options)
    seen = cn.inspect.features(nn.Sequential(nn.Identity(), layer), x, "1")
    assert [*seen.stages] == [*expected]
    for stage, feature in expected.items():
        torch.testing.assert_close(seen[stage].double(), feature, rtol=1e-4, atol=1e-4)
    assert [row["stage"] for row in json.loads(json.dumps(seen.to_dicts()))] == [*expected]
    assert seen.table()[0].largest == pytest.approx(x.max().item())
    assert str(seen).splitlines()[0].split() == ["stage", "mean", "std", "least", "largest"]


@pytest.mark.parametrize("options", RBNS, ids=str)
def test_channels_before_and_after_the_scaling(options):
    layer, x, expected = gradual(options)
    found = cn.inspect.channel_std(nn.Sequential(layer, nn.ReLU()), (part for part in x.split(7)))
    (row,) = found
    before, after = (expected[s].mean((2, 3)).std(0) for s in ("standardized", [*expected][-2]))
    torch.testing.assert_close(found.by_channel["0"], torch.stack([before, after]), rtol=1e-4, atol=1e-5)
    numbers = (row.before, row.after, row.before_unevenness, row.after_unevenness)
    wanted = [t.item() for t in (before.mean(), after.mean(), before.std(correction=0), after.std(correction=0))]
    assert numbers == pytest.approx(wanted, rel=1e-4)
    assert (row.layer, row.depth, row.channels, row.images) == ("0", 1, 6, 24)


def test_statistics_over_channels():
    layer = trained(cn.RBN2d(6, center_stat="spatial_mean", scale_stat="spatial_std"))
    x = randn(*IMAGES, dtype=torch.float32)
    seen = cn.inspect.features(layer, x, "")
    k_m = x.mean(1, keepdim=True)
    torch.testing.assert_close(seen["centred"], x + layer.center_weight.detach()[:, None, None] * k_m)
    y = seen["scaled"] * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(y, seen["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in cn.methods() if name != "bn"])
def test_every_method_shows_its_steps(name):
    net = nn.Sequential(cn.norm_layer(name)(32)).eval()
    x = randn(4, 32, 5, 4, dtype=torch.float32)
    (row,) = cn.inspect.channel_std(net, x)
    assert (row.layer, row.channels, row.images) == ("0", 32, 4)
    stages = cn.inspect.features(net, x, "0").stages
    assert {tuple(feature.shape) for feature in stages.values()} == {(4, 32, 5, 4)}
    torch.testing.assert_close(stages["output"], net(x))


def test_other_gates_and_norms_of_others():
    x = randn(*IMAGES, dtype=torch.float32)
    net = nn.Sequential(
        trained(cn.IEBN2d(6)),
        trained(cn.IEBN2d(6, position="beta")),
        trained(cn.SE2d(6, reduction=2)),
        trained(cn.SE2d(6, reduction=2, alone=True)),
        trained(nn.BatchNorm2d(6)),
        nn.GroupNorm(2, 6),
        nn.LayerNorm([6, 5, 4]),
        trained(cn.IEBN2d(6, over="gn")),
    )
    with torch.no_grad():
        net[5].weight.copy_(torch.tensor([-2.0, 0.5, 1.0, 3.0, 1.0, 1.0]))
    found = cn.inspect.channel_std(net, x)
    assert [row.layer for row in found] == ["0", "1", "2", "3", "4", "5", "7"]  # a LayerNorm's gamma has pixels
    moved = {row.layer: row.before != pytest.approx(row.after, rel=1e-6) for row in found}
    assert moved == {"0": True, "1": False, "2": True, "3": True, "4": False, "5": False, "7": True}
    with torch.no_grad():
        z = net[:5](x)
        after_bn = (z - net[4].bias[:, None, None]) / net[4].weight[:, None, None]
        plain = nn.functional.group_norm(z, 2)
    for name, feature in (("4", after_bn), ("5", plain)):
        torch.testing.assert_close(
            found.by_channel[name][0], feature.double().mean((2, 3)).std(0), rtol=1e-4, atol=1e-5
        )
    stages = {name: [*cn.inspect.features(net, x, name).stages] for name in "01357"}
    assert stages == {
        "0": ["input", "standardized", "scaled", "output"],
        "1": ["input", "standardized", "output"],
        "3": ["input", "scaled", "output"],
        "5": ["input", "output"],
        "7": ["input", "standardized", "scaled", "output"],
    }
    alone = cn.inspect.features(net, x, "3")
    torch.testing.assert_close(alone["scaled"], alone["output"])


def test_features_are_copies_of_one_image_s_first_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = trained(cn.RBN2d(6)), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm(torch.relu_(self.norm(x)))

    net, image = Twice(), randn(6, 5, 4, dtype=torch.float32)
    seen = cn.inspect.features(net, image, "norm")
    assert torch.equal(seen["input"], image[None])
    assert seen["output"].min() < 0.0
    assert [(row.layer, row.images) for row in cn.inspect.channel_std(net, image[None])] == [("norm", 2)]
    with pytest.raises(ValueError, match="layer='unused' is not called"):
        cn.inspect.features(net, image, "unused")
    with pytest.raises(ValueError, match="layer='bn' is no module of the network; its norms are norm, unused"):
        cn.inspect.features(net, image, "bn")
    with pytest.raises(TypeError, match=r"image must be a tensor \(C, H, W\)"):
        cn.inspect.features(net, "china.jpg", "norm")
    with pytest.raises(TypeError, match="model must be"):
        cn.inspect.channel_std("resnet", image)
