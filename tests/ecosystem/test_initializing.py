"""Loops over ``modules()`` that initialize BatchNorms: the next forward says what they undo, and how to mend it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import image, randn

STARTS = [
    ("bn", {"gamma_init": 0.5}, False),
    ("iebn", {}, True),
    ("iebn", {"position": "both"}, True),
    ("rbn", {}, True),
    ("rbn", {"center_stat": "std"}, True),
]
each_start = pytest.mark.parametrize(("method", "options", "preserve"), STARTS, ids=str)


def reset(net):
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def ones(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1)
            nn.init.constant_(module.bias, 0)


def weights(net):
    for module in net.modules():
        if hasattr(module, "weight") and module.weight is not None and module.weight.ndim == 1:
            nn.init.ones_(module.weight)


each_loop = pytest.mark.parametrize("loop", [reset, ones, weights])
each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def converted(method, options, preserve):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return cn.convert(net, method, preserve=preserve, **options)


@each_start
@each_loop
@each_layout
@pytest.mark.parametrize("training", [True, False])
def test_what_a_loop_undoes_is_said_once(method, options, preserve, loop, layout, training):
    net = converted(method, options, preserve).train(training)
    loop(net)
    lost = "preserve=True" if preserve else "gamma_init=0.5"
    with pytest.warns(UserWarning, match=rf"{lost} is lost; call reset_parameters\(\) of this layer") as found:
        net(image(layout=layout))
    assert len(found) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(image(layout=layout))


@each_start
@each_loop
def test_the_remedies_that_the_message_names(method, options, preserve, loop):
    net, plain = converted(method, options, preserve).eval(), nn.BatchNorm2d(4).eval()
    loop(net)
    for layer in (net[1], net[3]):
        layer.reset_parameters()
        factor = 1.0 if preserve else 0.5
        torch.testing.assert_close(layer(image()), factor * plain(image()))
    again = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    loop(again)
    expected = copy.deepcopy(again)[1].eval()(image()) * (1.0 if preserve else 0.5)
    torch.testing.assert_close(cn.convert(again, method, preserve=preserve, **options)[1].eval()(image()), expected)


@each_start
def test_apply_meets_the_child_first_and_loses_nothing(method, options, preserve):
    net = converted(method, options, preserve)
    expected = [layer.weight.clone() for layer in (net[1], net[3])]
    net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    net(image())
    assert all(torch.equal(net[i].weight, gamma) for i, gamma in zip((1, 3), expected, strict=True))


def test_torchvisions_init_loop_and_norm_layer():
    import torchvision

    net = torchvision.models.resnet18(norm_layer=cn.norm_layer("bn", gamma_init=0.5))
    with pytest.warns(UserWarning, match=r"BN2d: .*gamma_init=0.5 is lost"):
        net(randn(2, 3, 32, 32))


@each_start
def test_a_checkpoint_may_hold_any_gamma(method, options, preserve):
    net = converted(method, options, preserve)
    state = net.state_dict()
    state["1.bn.weight"] = torch.ones(4)
    net.load_state_dict(state)
    net(image())
