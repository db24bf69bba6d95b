from __future__ import annotations

import pytest
import torch
from torch import nn

import calibnorm as cn
from calibnorm.lab import models
from calibnorm.lab.errors import UsageError


def test_resnet164_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        model = models.build("resnet164", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 1_704_154


def test_all_norms_of_a_seed_start_from_the_same_convolutions() -> None:
    found = []
    for norm in ("bn", "se", "iebn", "rbn", "bn:gamma_init=0.269"):
        torch.manual_seed(3)
        model = models.build("resnet11", num_classes=4, norm=norm)
        found.append([p for p in model.parameters() if p.ndim == 4])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(UsageError, match=r"^model resnet165: .*resnet\{9n\+2\}"):
        models.build("resnet165", num_classes=10)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("iebn", nn.BatchNorm2d), ("iebn:skip=none", cn.IEBN2d), ("rbn", cn.RBN2d), ("rbn:skip=shortcut", nn.BatchNorm2d)],
)
def test_iebn_alone_leaves_the_norms_of_shortcuts_plain_unless_told(norm: str, kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = models.build("resnet11", num_classes=10, norm=norm)
    assert all(type(model.get_submodule(f"layer{stage}.0.downsample.1")) is kind for stage in (1, 2, 3))
    assert type(model.get_submodule("layer1.0.bn3")) is not nn.BatchNorm2d
