"""The networks themselves: equal to others' where there are others, trainable with every norm, compiled whole."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.bench.networks import ResNet
from calibnorm.lab import models
from calibnorm.lab.models.densenet import DenseNet
from tolerances import ORACLE, error

SMALL = ("resnet11", "preresnet11", "densenet10_k4", "resnext11_2x8d")


def images(size: int, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def copied(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Give another network our numbers, in the order in which both hold them."""
    with torch.no_grad():
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            other.copy_(mine)
    return theirs.double()


def assert_same_function(ours: nn.Module, theirs: Callable[[Tensor], Tensor], size: int) -> None:
    """Outputs and gradients of all weights."""
    x = images(size, dtype=torch.float64)
    y = ours(x)
    assert error(y, theirs(x)) <= ORACLE
    if isinstance(theirs, nn.Module):
        found = [torch.autograd.grad(net(x).square().sum(), [*net.parameters()]) for net in (ours, theirs)]
        assert all(error(a, b) <= ORACLE for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("large", "groups", "width"), [(False, 1, 64), (True, 32, 4)], ids=["resnet", "resnext"])
def test_stages_of_bottlenecks_are_torchvisions(large: bool, groups: int, width: int) -> None:
    ours = ResNet((2, 1), 64, 7, large=large, groups=groups, group_width=width).double()
    bottleneck = torchvision.models.resnet.Bottleneck
    theirs = torchvision.models.ResNet(bottleneck, [2, 1, 1, 1], 7, groups=groups, width_per_group=width)
    theirs.layer3, theirs.layer4, theirs.fc = nn.Identity(), nn.Identity(), nn.Linear(512, 7)
    if not large:
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_same_function(ours, copied(ours, theirs), 32 if large else 8)


def test_resnet50_for_small_images_has_imagenets_stages() -> None:
    with torch.device("meta"):
        ours, theirs = (models.build(name, num_classes=7).state_dict() for name in ("resnet50_32", "resnet50"))
    different = {name for name in theirs if ours.pop(name).shape != theirs[name].shape}
    assert (different, ours) == ({"conv1.weight"}, {})


def test_densenet_is_torchvisions() -> None:
    ours = DenseNet(2, 4, 7).double()
    theirs = torchvision.models.DenseNet(4, (2, 2, 2), 8, num_classes=7)
    theirs.features.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    assert_same_function(ours, copied(ours, theirs), 8)


def test_preresnet_by_its_equations() -> None:
    """He et al., ECCV 2016, Fig. 4 e, with the shortcut from the block's input."""
    ours = models.build("preresnet20", num_classes=7).double()
    p = dict(ours.named_parameters())

    def normed(x: Tensor, name: str) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True))

    def network(x: Tensor) -> Tensor:
        x = F.conv2d(x, p["conv1.weight"], padding=1)
        for stage in (1, 2, 3):
            for block in (0, 1):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = F.conv2d(normed(x, f"{at}.bn1"), p[f"{at}.conv1.weight"])
                y = F.conv2d(normed(y, f"{at}.bn2"), p[f"{at}.conv2.weight"], stride=stride, padding=1)
                y = F.conv2d(normed(y, f"{at}.bn3"), p[f"{at}.conv3.weight"])
                x = y + (F.conv2d(x, p[f"{at}.downsample.weight"], stride=stride) if block == 0 else x)
        return F.linear(normed(x, "bn").mean((2, 3)), p["fc.weight"], p["fc.bias"])

    assert_same_function(ours, network, 8)


def test_res2net_is_timms_with_last_gammas_of_one() -> None:
    ours = models.build("res2net50", num_classes=7)
    theirs = timm.create_model("res2net50_26w_4s", num_classes=7)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    gammas = [m.weight for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((gamma == 1).all()) for gamma in gammas)


@pytest.mark.parametrize("noise", [None, (0.8, 0.5)], ids=["clean", "noise"])
@pytest.mark.parametrize("norm", ["bn", "se", "iebn", "rbn"])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_with_every_norm(name: str, norm: str, noise: tuple[float, float] | None) -> None:
    assert_trains(name, norm, noise, size=8)


QUICK = {("resnet34", "se"), ("resnext50_32x4d", "rbn"), ("res2net50", "se"), ("mobilenet_v2", "iebn")}
STEPS = [
    pytest.param(name, norm, marks=[] if (name, norm) in QUICK else pytest.mark.nightly)
    for name in ("resnet34", "resnet50", "resnext50_32x4d", "res2net50", "mobilenet_v2", "resnet50_32")
    for norm in ("bn", "se", "iebn", "rbn")
]


@pytest.mark.parametrize(("name", "norm"), STEPS)
def test_a_step_of_large_networks(name: str, norm: str) -> None:
    assert_trains(name, norm, None, size=32)


def assert_trains(name: str, norm: str, noise: tuple[float, float] | None, size: int) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, norm=norm, noise=noise)
    x, labels = images(size, batch=3), torch.tensor([0, 4, 2])
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert bool(p.grad.isfinite().all()), path
    assert model.eval()(x).shape == (3, 5)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_is_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, norm="iebn").double()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images(8, dtype=torch.float64)
    y = other(x.to(memory_format=torch.channels_last))
    assert error(y, model(x)) <= ORACLE


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("preresnet11", "se"),
        pytest.param("resnet11", "rbn", marks=pytest.mark.nightly),
        pytest.param("densenet10_k4", "iebn", marks=pytest.mark.nightly),
        pytest.param("resnext11_2x8d", "bn", marks=pytest.mark.nightly),
    ],
)
def test_one_graph_in_channels_last(name: str, norm: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, norm=norm).double().to(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = images(8, dtype=torch.float64).to(memory_format=torch.channels_last)
    found = []
    for net in (model, compiled):
        y = net(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [*net.parameters()])])
    assert all(error(a, b) <= ORACLE for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("name", "norm", "relus"),
    [("resnet11", "iebn", 10), ("preresnet11", "se", 10), ("densenet10_k4", "se", 9), ("resnext11_2x8d", "rbn", 10)],
)
def test_fused_it_is_the_same_network(name: str, norm: str, relus: int) -> None:
    """cn.fuse takes every ReLU of the networks into the norm before it."""
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, norm=norm, noise=(0.8, 0.5)).double()
    said: list[str] = []
    fused = cn.fuse(copy.deepcopy(model), report=said.append)
    assert said[0].count(", fused: ") == relus
    x = images(8, dtype=torch.float64)
    found = [[net(x), *torch.autograd.grad(net(x).sum(), [*net.parameters()])] for net in (model, fused)]
    assert all(error(a, b) <= ORACLE for a, b in zip(*found, strict=True))
