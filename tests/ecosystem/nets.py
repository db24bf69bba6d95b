"""What the tests of this folder share: a small network, layers with a history, the formulas by torch's own parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import calibnorm as cn

LAYERS = [cn.IEBN2d, cn.RBN2d]
NAMES = ["iebn", "rbn"]
GATES = ("gate_weight", "standardized_gate_weight", "gate_bias", "center_weight", "scale_weight", "scale_bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Net(nn.Module):
    """A residual network of three norms, 8 channels wide: a stem and one block, with a head for 5 classes."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = norm(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = norm(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = norm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(y)))
        return self.fc(x.mean((2, 3)))


def images(n: int = 4, size: int = 8, seed: int = 0, channels: int = 3) -> Tensor:
    """Images whose means differ, so that a gate of the mean has something to say."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, size, size, generator=generator)
    return x + torch.randn(n, channels, 1, 1, generator=generator)


def layers(model: nn.Module) -> Iterator[tuple[str, cn.IEBN2d | cn.RBN2d]]:
    """The calibrated layers of a model."""
    for name, module in model.named_modules():
        if isinstance(module, tuple(LAYERS)):
            yield name, module


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every gate, gamma, beta and running statistic a random value of its own: nothing may hide behind a 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    found = 0
    for _, layer in layers(model):
        found += 1
        for gate in layer.gates().values():
            gate.add_(0.5 * normal(gate))
        if isinstance(layer.weight, Tensor):
            layer.weight.copy_(1 + 0.3 * normal(layer.weight))
            layer.bias.copy_(0.3 * normal(layer.bias))
        if layer.bn.running_mean is not None:
            layer.bn.running_mean.copy_(0.3 * normal(layer.bn.running_mean))
            layer.bn.running_var.copy_(0.5 + normal(layer.bn.running_var).square())
    assert found, "the model has no calibrated layer"
    return model


def network(norm: Callable[[int], nn.Module], seed: int = 0) -> Net:
    """A network with calibrated layers whose every tensor is random."""
    torch.manual_seed(seed)
    return stir(Net(norm), seed)


def stirred(norm: type, channels: int = 6, seed: int = 0, **options: object) -> nn.Module:
    """One layer whose every tensor is random."""
    return stir(norm(channels, **options), seed)


def gates(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gates by full name."""
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[2] in GATES
    }


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running statistics by full name."""
    return {name: b.detach().clone() for name, b in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    """Equal names, equal values; bit-equal without a tolerance."""
    assert expected, "nothing to compare"
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **(tolerance or {"rtol": 0.0, "atol": 0.0}), msg=name)


def _wide(t: Tensor) -> Tensor:
    return t[:, None, None]


def calibrated(layer: nn.Module, x: Tensor) -> Tensor:
    """What enters the batch statistics: x, for RBN with its centre calibrated (Eq. 2 of its paper)."""
    if isinstance(layer, cn.RBN2d):
        return x + _wide(layer.center_weight) * x.mean((2, 3), keepdim=True)
    return x


def oracle(layer: nn.Module, x: Tensor, *, batch: bool) -> Tensor:
    """The layer's output by the papers' formulas and torch's BatchNorm; the child's statistics stay as they are."""
    bn = layer.bn
    x_cm = calibrated(layer, x)
    if batch:
        x_s = F.batch_norm(x_cm, None, None, training=True, eps=bn.eps)
    else:
        # F.batch_norm of torch 2.11 refuses an eps of 0.
        x_s = torch.batch_norm(x_cm, None, None, bn.running_mean, bn.running_var, False, 0.0, bn.eps, False)
    if isinstance(layer, cn.RBN2d):
        gate = torch.sigmoid(_wide(layer.scale_weight) * x_s.mean((2, 3), keepdim=True) + _wide(layer.scale_bias))
    else:
        seen, name = (x_s, "standardized_gate_weight") if "gate_input" in layer.options() else (x, "gate_weight")
        weight = getattr(layer, name)
        gate = torch.sigmoid(_wide(weight) * seen.mean((2, 3), keepdim=True) + _wide(layer.gate_bias))
    return _wide(bn.weight) * x_s * gate + _wide(bn.bias)


@torch.no_grad()
def batchnorm_after(layer: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """The statistics that torch's BatchNorm keeps, from the layer's present ones, after training on the batches."""
    twin = nn.BatchNorm2d(layer.num_features, layer.bn.eps, layer.bn.momentum)
    for name in STATISTICS:
        getattr(twin, name).copy_(getattr(layer.bn, name))
    for x in batches:
        twin(calibrated(layer, x))
    return {name: getattr(twin, name) for name in STATISTICS}


def child_statistics(layer: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of one layer's child."""
    return {name: getattr(layer.bn, name).clone() for name in STATISTICS}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed loss of a copy of the model, which itself stays as it is."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    loss(twin(x)).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def loss(y: Tensor) -> Tensor:
    """A loss whose gradient is different for every element of y."""
    return (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).square().sum()
