"""Which layers a conversion means: patterns, predicates, stages, the shortcut; and the noise for the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from torch import nn

import calibnorm as cn
from calibnorm.nn import CalibratedNorm
from cases import randn
from conversion.helpers import NORMS, Small, convert, norms, relative, small, snapshot

SELECTIONS = [
    ({"include": "layer1.*"}, ["layer1.1"]),
    ({"include": ["bn1", "down*"]}, ["bn1", "downsample.1"]),
    ({"exclude": "*.1"}, ["bn1"]),
    ({"include": "*1*", "exclude": ["layer1.*", "bn?"]}, ["downsample.1"]),
    ({"include": "layer[12].1"}, ["layer1.1"]),
    ({"include": ()}, list(NORMS)),
    ({"where": lambda name, module: module.num_features == 6}, ["layer1.1", "downsample.1"]),
    ({"where": lambda name, module: name.startswith("b"), "include": "*1"}, ["bn1"]),
    ({"stages": 1}, ["layer1.1"]),
    ({"stages": [1]}, ["layer1.1"]),
    ({"skip": "shortcut"}, ["bn1", "layer1.1"]),
    ({"skip": "shortcut", "exclude": "bn1"}, ["layer1.1"]),
]


@pytest.mark.parametrize(("choice", "expected"), SELECTIONS, ids=range(len(SELECTIONS)))
def test_selections(choice, expected):
    net = convert(small(), "iebn", **choice)
    assert [name for name, module in norms(net).items() if isinstance(module, CalibratedNorm)] == expected
    assert cn.plan(Small(), "rbn", **choice)["layers"].keys() == set(expected)


WRONG = [
    (
        {"include": "layer2.*"},
        ValueError,
        r"include='layer2\.\*' matches no normalization of the network; there are bn1",
    ),
    ({"include": "layer1"}, ValueError, r"include='layer1' matches no .*; for all below it write 'layer1\.\*'$"),
    ({"exclude": ["bn1", "down*."]}, ValueError, r"exclude='down\*\.' .*; for all below it write 'down\*\.\*'$"),
    ({"exclude": ["bn1", "bn2"]}, ValueError, "exclude='bn2' matches no normalization"),
    ({"include": [1]}, TypeError, "include=1 must be a name pattern"),
    ({"exclude": 3}, TypeError, "exclude=3 must be a name pattern"),
    ({"include": True}, TypeError, "include=True must be a name pattern"),
    ({"stages": 2}, ValueError, r"stages=2: the network's stages are \[1\]; name the layers with include="),
    ({"stages": "1"}, TypeError, "stages='1' must be a number"),
    ({"stages": True}, TypeError, "stages=True must be a number"),
    ({"stages": 1.0}, TypeError, "stages=1.0 must be a number"),
    ({"skip": "head"}, ValueError, "skip='head' is not known"),
    ({"where": "bn1"}, TypeError, "where='bn1' must be a function"),
]


@pytest.mark.parametrize(("choice", "error", "message"), WRONG, ids=str)
def test_wrong_selections(choice, error, message):
    net = small()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        cn.convert(net, "iebn", **choice)
    assert snapshot(net) == before


def test_an_error_of_the_predicate_changes_nothing():
    net = small()
    before = snapshot(net)
    with pytest.raises(ZeroDivisionError):
        cn.convert(net, "iebn", where=lambda name, module: 1 / (name != "downsample.1"))
    assert snapshot(net) == before


STAGES = {
    "torchvision resnet50": (lambda: torchvision.models.resnet50(), "layer{}.", 4, [10, 13, 19, 10]),
    "torchvision regnet_y_400mf": (
        lambda: torchvision.models.regnet_y_400mf(),
        "trunk_output.block{}.",
        4,
        [4, 10, 19, 19],
    ),
    "timm regnetx_002": (lambda: timm.create_model("regnetx_002"), "s{}.", 4, [4, 4, 13, 22]),
    "timm densenet121": (lambda: timm.create_model("densenet121"), "features.denseblock{}.", 4, [12, 24, 48, 32]),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), "blocks.{}.", 7, [2, 6, 6, 9, 9, 12, 3]),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_real_networks(name):
    factory, prefix, count, sizes = STAGES[name]
    net = factory()
    first = 0 if name == "timm efficientnet_b0" else 1
    for stage, size in zip(range(1, count + 1), sizes, strict=True):
        layers = cn.plan(net, "rbn", stages=stage)["layers"]
        assert all(layer.startswith(prefix.format(stage - 1 + first)) for layer in layers)
        assert len(layers) == size
    both = cn.plan(net, "rbn", stages=(1, count))["layers"]
    assert len(both) == sizes[0] + sizes[-1]
    with pytest.raises(ValueError, match=rf"stages={count + 1}: the network's stages are \[1, 2, 3, 4"):
        cn.plan(net, "rbn", stages=count + 1)


def test_stages_that_have_no_names():
    with pytest.raises(ValueError, match="stages are not recognized by name; name the layers with include="):
        cn.plan(torchvision.models.vgg11_bn(), "rbn", stages=1)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "resnet152", "resnext50_32x4d"])
def test_parameter_counts_of_the_iebn_paper(arch):
    """Table 1, ImageNet: the gates add 2 numbers for every channel of every BatchNorm outside the shortcut.

    The paper prints its BN ResNets one number a BatchNorm channel above today's definition, the ResNeXt as it is.
    """
    table = Path(__file__).parents[3] / "shared" / "facts" / "paper_tables.yaml"
    printed = PRINTED[arch]
    if table.exists():
        rows = yaml.safe_load(table.read_text(encoding="utf-8"))["iebn"]["table1"]
        (row,) = (row for row in rows if row["arch"] == arch)
        assert (row["bn"][0], row["iebn"][0]) == printed
    with torch.device("meta"):
        net = torchvision.models.get_model(arch)
    before = parameters(net)
    channels = {name: bn.num_features for name, bn in norms(net).items()}
    theirs = before + sum(channels.values()) * (not arch.startswith("resnext"))
    texts = []
    cn.convert(net, "iebn", skip="shortcut", report=texts.append)
    added = parameters(net) - before
    downsample = [name for name in channels if "downsample" in name]
    assert added == 2 * sum(size for name, size in channels.items() if name not in downsample)
    assert sum(row.gates for row in cn.summary(net)) == added
    assert (round(theirs / 1e6, 2), round((theirs + added) / 1e6, 2)) == printed
    assert all(f"{name}: left, in a shortcut" in texts[0] for name in downsample)
    assert len(downsample) == (3 if arch == "resnet34" else 4)


PRINTED = {
    "resnet34": (21.81, 21.82),
    "resnet50": (25.58, 25.63),
    "resnet152": (60.27, 60.41),
    "resnext50_32x4d": (25.03, 25.09),
}


@pytest.mark.parametrize(
    ("factory", "shortcuts"),
    [
        (lambda: torchvision.models.regnet_y_400mf(), 4),
        (lambda: timm.create_model("regnetx_002"), 4),
        (lambda: timm.create_model("resnet26d"), 4),
        (lambda: torchvision.models.video.r3d_18(), 3),
    ],
    ids=["torchvision regnet: proj", "timm regnet", "timm resnet26d", "r3d_18"],
)
def test_shortcuts_of_other_networks(factory, shortcuts):
    net = factory()
    left = cn.plan(net, "iebn", skip="shortcut")["left"]
    assert len(left) == shortcuts
    assert set(left.values()) == {"in a shortcut"}


def test_a_network_without_shortcut_is_said():
    net = nn.Sequential(nn.BatchNorm2d(3))
    for function in (cn.plan, cn.convert):
        with pytest.warns(
            UserWarning, match="found no normalization in a branch named downsample, shortcut, skip"
        ) as seen:
            function(net, "iebn", skip="shortcut")
        assert [warning.filename for warning in seen] == [__file__], "the warning names the library's line"


def test_noise_reaches_every_batchnorm():
    """Those that are left become plain BatchNorm with the attack; their function is the attack's and nothing else."""
    plain, x = small(), randn(4, 3, 5, 5, seed=5)
    net = convert(small(), "iebn", noise=(0.8, 0.5), include="bn1")
    assert [type(layer) for layer in norms(net).values()] == [cn.IEBN2d, cn.BN2d, cn.BN2d]
    assert all(layer.noise == (0.8, 0.5) for layer in norms(net).values())
    inner = plain.layer1[0](plain.bn1(plain.conv1(x)))
    bn = plain.layer1[1]
    standardized = (bn(inner) - bn.bias[:, None, None]) / bn.weight[:, None, None]
    expected = (standardized * 0.8 + 0.5) * bn.weight[:, None, None] + bn.bias[:, None, None]
    assert relative(net.layer1[1](inner), expected) <= 1e-5


def test_without_noise_the_others_stay_plain():
    net = convert(small(), "iebn", noise=None, noise_in="train", include="bn1")
    assert [type(layer) for layer in norms(net).values()] == [cn.IEBN2d, nn.BatchNorm2d, nn.BatchNorm2d]


def test_noise_cannot_reach_what_is_not_understood():
    class Doubling(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    net = nn.Sequential(nn.BatchNorm2d(3), Doubling(3))
    with pytest.warns(UserWarning, match=r"the noise does not reach 1, which is a .*Doubling"):
        cn.convert(net, "iebn", noise=(0.8, 0.5), exclude="1")
    assert [type(module) for module in net] == [cn.IEBN2d, Doubling]


def test_calibrated_layers_that_are_left_keep_their_own_options():
    net = convert(convert(small(), "rbn", include="bn1"), "iebn", exclude="bn1", noise=(0.8, 0.5))
    assert net.bn1.noise is None
    assert net.layer1[1].noise == (0.8, 0.5)


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_shared_layer_goes_by_each_of_its_names(name):
    def network():
        bn = nn.BatchNorm2d(4)
        return nn.ModuleDict({"first": bn, "second": bn, "third": nn.BatchNorm2d(4)})

    net = cn.convert(network(), "iebn", include=name)
    assert [type(net[key]).__name__ for key in net] == ["IEBN2d", "IEBN2d", "BatchNorm2d"]
    net = cn.convert(network(), "iebn", exclude=name)
    assert [type(net[key]).__name__ for key in net] == ["BatchNorm2d", "BatchNorm2d", "IEBN2d"]
