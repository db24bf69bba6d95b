"""Networks that have a history, and what must be equal after a conversion."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from calibnorm.networks import finding
from calibnorm.nn import CalibratedNorm
from cases import generator, randn

IMAGES = (4, 3, 64, 64)


def _tv(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10, **options)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10)


def _synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(torchvision.models.resnet18(num_classes=10))


def _split() -> nn.Module:
    return timm.layers.convert_splitbn_model(timm.create_model("regnetx_002", num_classes=10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet18": (_tv("resnet18", zero_init_residual=True), IMAGES, 20),
    "mnasnet": (_tv("mnasnet0_5"), IMAGES, 52),
    "mobilenet_v2": (_tv("mobilenet_v2"), IMAGES, 52),
    "shufflenet_v2": (_tv("shufflenet_v2_x0_5"), IMAGES, 56),
    "regnet_y_400mf": (_tv("regnet_y_400mf"), IMAGES, 53),
    "r3d_18": (_tv("r3d_18"), (2, 3, 4, 16, 16), 20),
    "timm efficientnet_b0": (_timm("efficientnet_b0"), IMAGES, 49),
    "timm regnetx_002": (_timm("regnetx_002"), IMAGES, 44),
    "timm densenet121": (_timm("densenet121"), IMAGES, 121),
    "timm resnet26d": (_timm("resnet26d"), IMAGES, 31),
    "FrozenBatchNorm2d": (lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None), (2, 3, 64, 64), 20),
    "SyncBatchNorm": (_synchronized, IMAGES, 20),
    "SplitBatchNorm2d": (_split, IMAGES, 44),
}
"""Factory, shape of an input, and how many normalization layers the network has."""


class Small(nn.Module):
    """A residual block with a stem: three norms of 4, 4 and 6 channels, the last in a shortcut."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4, **options)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, **options))
        self.downsample = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, **options))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.layer1(x) + self.downsample(x))
        return self.fc(x.mean((2, 3)))


NORMS = ("bn1", "layer1.1", "downsample.1")


def small(seed: int = 0, **options: Any) -> Small:
    """A small network with a history, in eval mode."""
    torch.manual_seed(seed)
    return settle(Small(**options), (4, 3, 5, 5), seed)  # type: ignore[return-value]


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The model's normalization layers by name."""
    return {entry.name: entry.module for entry in finding.find_norms(model)}


def statistics(model: nn.Module) -> list[Tensor]:
    """Running statistics of every norm, and of every part of a split one."""
    parts = (part for norm in norms(model).values() for part in finding.parts_of(finding.batchnorm_of(norm)))
    return [buffer for part in parts for buffer in (part.running_mean, part.running_var)]


@torch.no_grad()
def settle(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Give every norm a gamma and a beta of its own and the statistics of one batch; return the model in eval mode."""
    draw = generator(seed)
    for child in norms(model).values():
        for part in finding.parts_of(finding.batchnorm_of(child)):
            for name, mean in (("weight", 1.0), ("bias", 0.0)):
                value = getattr(part, name)
                if value is not None:
                    value.copy_(mean + 0.2 * torch.randn(value.shape, generator=draw))
            if isinstance(part, FrozenBatchNorm2d):
                part.running_mean.copy_(0.2 * torch.randn(part.running_mean.shape, generator=draw))
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=draw))
            else:
                part.momentum = 1.0
    held = finding.like(model)
    assert held is not None
    model.train()(randn(*shape, seed=seed + 1, dtype=held.dtype))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.1
    return model.eval()


def convert(model: nn.Module, method: Any, **options: Any) -> Any:
    """Convert a trained network without the warning that says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the network has been trained")
        return cn.convert(model, method, **options)


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The network's output as one tensor; detection backbones give several."""
    y = model(x)
    return torch.cat([v.flatten() for v in y.values()]) if isinstance(y, dict) else y


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    assert expected.isfinite().all()
    scale = expected.abs().max()
    assert scale > 0, "nothing to compare"
    return (actual - expected).detach().abs().max().item() / scale.item()


def randomize_gates(model: nn.Module, seed: int = 3) -> None:
    """Train the gates, as it were."""
    draw = generator(seed)
    for module in model.modules():
        if isinstance(module, CalibratedNorm):
            for gate in module.gates().values():
                with torch.no_grad():
                    gate.add_(0.5 * torch.randn(gate.shape, generator=draw))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that an error must leave as it was: classes, hooks, modes, and every tensor's identity and value."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        seen[name] = (id(module), type(module), module.training, list(module._modules), list(module._forward_hooks))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        seen["tensor " + name] = (id(tensor), tensor.requires_grad, None if tensor.is_meta else tensor.tolist())
    return seen
