"""Which calls run fused, by input and by block, and that they compute what the network does unfused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import calibnorm as cn
from calibnorm.fusion import calls
from cases import randn
from fusion.blocks import each_kind, network, x64
from fusion.helpers import assert_same, computed, fuse, stir
from tolerances import error


def test_one_norm_and_one_relu_in_several_places(done):
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            y = self.relu(self.bn(x))
            y = self.relu(self.bn(y) + x)
            return self.relu(self.bn(y) * 2) + self.relu(x)

    model, plain = stir(Shares()), stir(Shares())
    fuse(model)
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert done == [("BatchNorm2d", False), ("BatchNorm2d", True)]


def test_two_norms_that_are_added(done):
    """As in RepVGG: one takes the other's output as its residual."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return (self.bn1(self.conv1(x)) + self.bn2(self.conv2(x))).relu_()

    torch.manual_seed(0)
    plain = stir(Two())
    model = copy.deepcopy(plain)
    rows = fuse(model)
    assert rows["bn1"] == "fused: norm + add + ReLU"
    assert rows["bn2"] == "left: is added to another norm's output, which takes it as its residual"
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert done == [("BatchNorm2d", True)]


class Adds(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x, residual):
        y = self.norm(x)
        y += residual
        return F.relu(y)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, cn.RBN2d])
def test_a_residual_that_is_broadcast_or_of_another_dtype(norm, done):
    model, plain = Adds(norm(3)), Adds(norm(3))
    assert fuse(model) == {"norm": "fused: norm + add + ReLU"}
    x = randn(2, 3, 4, 4)
    for residual in (randn(2, 3, 1, 1), randn(2, 3, 4, 4, dtype=torch.float64), randn(2, 3, 4, 4).bfloat16()):
        y = model(x, residual)
        assert y.dtype is torch.float32  # in place, as the network wrote it
        assert torch.equal(y, plain(x, residual))
    assert not done
    model(x, x)
    assert done


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, cn.IEBN2d])
def test_errors_are_those_of_the_layer_and_change_the_same(norm):
    model, alone = nn.Sequential(norm(3), nn.ReLU()), nn.Sequential(norm(3))
    cn.fuse(model)
    for bad in (randn(2, 4, 3, 3), randn(2, 3, 3), randn(1, 3, 1, 1), torch.ones(2, 3, 4, 4, dtype=torch.int64)):
        raised = []
        for net in (model, alone):
            try:
                net(bad)
            except (RuntimeError, TypeError, ValueError) as error:
                raised.append(str(error))
        assert len(raised) == 2
        assert raised[0] == raised[1]
    assert_same(model[0].state_dict(), alone[0].state_dict(), 0.0)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d, (4, 3, 9)), (nn.BatchNorm1d, (7, 3)), (nn.BatchNorm3d, (2, 3, 3, 4, 5))],
)
def test_other_dimensions(norm, shape, done):
    model, plain = stir(nn.Sequential(norm(3), nn.ReLU())), stir(nn.Sequential(norm(3), nn.ReLU()))
    cn.fuse(model)
    assert_same(computed(model, x64(*shape)), computed(plain, x64(*shape)))
    assert len(done) == 1


@each_kind
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes_and_layouts(kind, dtype, layout):
    """Fused is rounded once where torch rounds three times: compared with float64, it is not worse."""
    model, plain = (network(kind, fused=fused).to(dtype) for fused in (True, False))
    exact = network(kind, fused=False).to(dtype).double()
    x = randn(4, 3, 12, 12).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        y, expected, truth = model(x), plain(x), exact(x.double())
    assert y.dtype is dtype
    assert y.stride() == expected.stride()
    assert error(y.double(), truth) <= 1.5 * error(expected.double(), truth) + 1e-6


@each_kind
def test_autocast(kind):
    model, plain = network(kind).float(), network(kind, fused=False).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = model(randn(4, 3, 12, 12)), plain(randn(4, 3, 12, 12))
    assert y.dtype is expected.dtype
    assert error(y, expected) <= 0.05


def test_small_planes_of_plain_batchnorm_are_left_to_torch(done, monkeypatch):
    monkeypatch.setattr(calls, "SMALLEST", 64)
    model = cn.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), cn.BN2d(3), nn.ReLU()))
    model(randn(2, 3, 7, 9))
    assert done == [("BN2d", False)]
    model(randn(2, 3, 8, 8))
    assert done[1:] == [("BatchNorm2d", False), ("BN2d", False)]


def test_the_reference_backend_leaves_plain_batchnorm_to_torch(done):
    model, plain = network(), network(fused=False)
    with cn.use_backend("reference"):
        assert torch.equal(model(x64()), plain(x64()))
    assert not done


def test_a_forward_that_takes_a_tensor_or_a_list(done):
    plain = stir(torchvision.models.densenet._DenseLayer(4, 3, 2, 0.0))
    layer = copy.deepcopy(plain)
    fuse(layer)
    x = x64(3, 4, 5, 5)
    for given, at_once in ((x, 0), ([x[:, :1], x[:, 1:]], 2), ((x[:, :1], x[:, 1:]), 0)):
        done.clear()
        assert error(layer(given), plain(given)) <= 1e-12
        assert len(done) == at_once


def test_a_subclass_of_sequential(done):
    def block() -> nn.Module:
        torch.manual_seed(0)
        return stir(torchvision.ops.Conv2dNormActivation(3, 4))

    model = block()
    assert fuse(model) == {"1": "fused: norm + ReLU"}
    assert_same(computed(model, x64()), computed(block(), x64()))
    assert len(done) == 1
