"""What `build` gives: norms where they belong, the same weights for all of them, and errors before it builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab import models
from calibnorm.lab.models import networks
from calibnorm.nn import CalibratedNorm

NORMS = ("bn", "se", "iebn", "rbn", "gn", "bn:gamma_init=0.269")


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms by name; a calibrated layer's own BatchNorm is part of it."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d | CalibratedNorm)}
    return {n: m for n, m in found.items() if n.rpartition(".")[0] not in found}


def on_meta(name: str, norm: str, **options: Any) -> nn.Module:
    """Return a network without memory."""
    with torch.device("meta"):
        return models.build(name, num_classes=10, norm=norm, **options)


@pytest.mark.parametrize("name", ["resnet11", "preresnet11", "densenet10_k4", "resnext11_2x8d", "mobilenet_v2"])
def test_all_norms_of_a_seed_start_from_the_same_weights(name: str) -> None:
    states = []
    for norm in NORMS:
        torch.manual_seed(3)
        model = models.build(name, num_classes=4, norm=norm)
        after = torch.rand(1).item()
        weights = {n: p for n, p in model.named_parameters() if p.ndim == 4 or n.startswith(("fc.", "classifier."))}
        states.append((after, weights))
    after, weights = states[0]
    for other, others in states[1:]:
        assert other == after
        assert others.keys() == weights.keys()
        assert all(torch.equal(weights[n], others[n]) for n in weights)


SUMS = [0.6391971, 12.7589655, 0.3721208]


def test_the_weights_of_a_seed_are_those_of_the_first_studies() -> None:
    """Numbers that committed results start from: drawn once, they stay."""
    torch.manual_seed(0)
    model = models.build("resnet11", num_classes=10, in_channels=1)
    sums = [model.get_parameter(n).sum().item() for n in ("conv1.weight", "layer2.0.conv3.weight", "fc.weight")]
    assert sums == pytest.approx(SUMS, rel=1e-5)


def test_plain_bn_is_torchs_own() -> None:
    assert {type(m) for m in norms(on_meta("resnet11", "bn")).values()} == {nn.BatchNorm2d}
    assert {type(m) for m in norms(on_meta("resnet11", "bn:skip=shortcut")).values()} == {nn.BatchNorm2d}


@pytest.mark.parametrize("method", [m for m in cn.methods() if m not in ("bn", "se", "iebn")])
@pytest.mark.parametrize("name", ["resnet11", "preresnet11"])
def test_every_method_takes_the_place_of_every_norm(name: str, method: str) -> None:
    found = norms(on_meta(name, method))
    assert {m.method_type.name for m in found.values() if isinstance(m, CalibratedNorm)} == {method}
    assert len(found) == len(norms(on_meta(name, "bn")))
    assert all(isinstance(m, CalibratedNorm) for m in found.values())


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("iebn", nn.BatchNorm2d), ("iebn:skip=none", cn.IEBN2d), ("rbn", cn.RBN2d), ("rbn:skip=shortcut", nn.BatchNorm2d)],
)
@pytest.mark.parametrize("name", ["resnet11", "resnext11_2x8d", "resnet34", "res2net50"])
def test_iebn_alone_leaves_the_norms_of_shortcuts_plain_unless_told(name: str, norm: str, kind: type) -> None:
    shortcuts, others = set(), set()
    for path, module in norms(on_meta(name, norm)).items():
        (shortcuts if "downsample" in path else others).add(type(module))
    assert shortcuts == {kind}
    assert others == {cn.IEBN2d if norm.startswith("iebn") else cn.RBN2d}


@pytest.mark.parametrize("name", ["preresnet11", "densenet10_k4", "mobilenet_v2"])
def test_iebn_takes_all_norms_where_no_shortcut_has_one(name: str) -> None:
    assert {type(m) for m in norms(on_meta(name, "iebn")).values()} == {cn.IEBN2d}


@pytest.mark.parametrize(
    ("name", "places", "biases"),
    [
        ("resnet20", [f"layer{s}.{b}.bn3" for s in (1, 2, 3) for b in (0, 1)], True),
        ("preresnet20", [f"layer{s}.{b}.se" for s in (1, 2, 3) for b in (0, 1)], False),
        ("densenet16_k4", [f"denseblock{s}.{b}.norm2" for s in (1, 2, 3) for b in (0, 1)], False),
        ("resnext11_2x8d", [f"layer{s}.0.bn3" for s in (1, 2, 3)], False),
        ("resnet34", [f"layer{s}.{b}.bn2" for s, depth in enumerate((3, 4, 6, 3), 1) for b in range(depth)], True),
        ("res2net50", [f"layer{s}.{b}.bn3" for s, depth in enumerate((3, 4, 6, 3), 1) for b in range(depth)], True),
    ],
)
def test_where_se_is(name: str, places: list[str], biases: bool) -> None:
    found = norms(on_meta(name, "se"))
    assert [n for n, m in found.items() if isinstance(m, cn.SE2d)] == places
    plain = norms(on_meta(name, "bn"))
    assert {n for n, m in found.items() if type(m) is nn.BatchNorm2d} == plain.keys() - set(places)
    for place in places:
        layer = found[place]
        assert (layer.method.alone, layer.method.reduction) == (place.endswith("se"), 16)
        assert (getattr(layer, "fc1_bias", None) is not None) is biases
    if not place.endswith("se"):
        return
    assert layer.num_features == 4 * 64


def test_se_options_reach_the_layers() -> None:
    for name, place in (("preresnet11", "layer1.0.se"), ("densenet10_k4", "denseblock1.0.norm2")):
        layer = on_meta(name, "se:reduction=2,biases=true").get_submodule(place)
        assert layer.fc1_weight.shape[0] == layer.num_features // 2
        assert layer.fc1_bias is not None


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("resnet50_32", "rbn"),
        ("resnext11_2x8d", "rbn"),
        *(
            (name, n)
            for name in ("resnet11", "preresnet11", "densenet10_k4")
            for n in ("iebn", "se", "bn:gamma_init=2")
        ),
    ],
)
def test_one_stage_alone(name: str, norm: str) -> None:
    stages = 4 if name == "resnet50_32" else 3
    whole = norms(on_meta(name, norm))
    calibrated: dict[str, nn.Module] = {}
    for stage in range(1, stages + 1):
        found = norms(on_meta(name, norm, stages=f"stage{stage}"))
        here = {n: m for n, m in found.items() if isinstance(m, CalibratedNorm)}
        assert here
        assert {n.partition(".")[0] for n in here} <= {f"layer{stage}", f"denseblock{stage}"}
        assert not here.keys() & calibrated.keys()
        calibrated |= here
    outside = {n for n in whole if not n.startswith(("layer", "denseblock"))}  # stem, transitions, last norm
    assert calibrated.keys() == {n for n, m in whole.items() if isinstance(m, CalibratedNorm)} - outside


@pytest.mark.parametrize("norm", ["bn", "iebn", "se", "gn"])
@pytest.mark.parametrize("stages", ["all", "stage2"])
@pytest.mark.parametrize("name", ["resnet11", "preresnet11", "densenet10_k4"])
def test_noise_reaches_every_norm(name: str, stages: str, norm: str) -> None:
    model = on_meta(name, norm, noise=(0.8, 0.5), noise_in="train", stages=stages)
    found = norms(model)
    alone = [n for n, m in found.items() if isinstance(m, cn.SE2d) and m.method.alone]
    assert bool(alone) == (name == "preresnet11" and norm == "se")
    reached = {n: m for n, m in found.items() if n not in alone}
    assert reached.keys() == norms(on_meta(name, "bn")).keys()
    assert {(m.noise, m.noise_in) for m in reached.values()} == {((0.8, 0.5), "train")}


def test_gamma_starts_where_it_is_told() -> None:
    model = models.build("resnet11", num_classes=10, norm="bn:gamma_init=0.269,skip=shortcut")
    for name, layer in norms(model).items():
        assert layer.weight.unique().tolist() == pytest.approx([1.0 if "downsample" in name else 0.269])


def test_the_name_that_two_networks_have_is_imagenets() -> None:
    """101 = 9 * 11 + 2; and no other named network belongs to a pattern."""
    assert on_meta("resnet101", "bn").conv1.kernel_size == (7, 7)
    for name in networks.NAMED:
        matches = name.startswith("resnet") and name[6:].isdigit() and (int(name[6:]) - 2) % 9 == 0
        assert matches == (name == "resnet101")


def test_image_sizes() -> None:
    sizes = {name: models.image_size(name) for name in models.names()}
    small = {"resnet164", "preresnet164", "densenet100_k12", "resnext29_8x64d", "resnet50_32", "resnet14_32"}
    assert sizes == {name: 32 if name in small else 224 for name in models.names()}


def test_other_images() -> None:
    for name in (
        "resnet11",
        "preresnet11",
        "densenet10_k4",
        "resnext11_2x8d",
        "resnet50_32",
        "res2net50",
        "mobilenet_v2",
    ):
        with torch.device("meta"):
            model = models.build(name, num_classes=10, in_channels=1)
        assert next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels == 1


GOOD: dict[str, Any] = {"name": "resnet11", "num_classes": 10}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"name": "resnet165"},
            r"^model=resnet165: its depth must be 9n\+2, such as 164 and 173; by name there are res",
        ),
        ({"name": "resnet2"}, r"its depth must be 9n\+2, such as 11; by name"),
        (
            {"name": "densenet100"},
            r"^model=densenet100: is not known; choose from .*, or .*densenet\{6n\+4\}_k\{growth\}",
        ),
        ({"name": "densenet101_k12"}, r"6n\+4, such as 100 and 106"),
        ({"name": "resnext101_32x8d"}, "ResNeXts of 101 layers are ImageNet's and not here"),
        ({"name": "resnext29_0x64d"}, "is not known"),
        ({"name": "ResNet164"}, "model=ResNet164: is not known; choose from resnet164, "),
        ({"name": None}, "model=None: must be a name such as resnet164"),
        ({"num_classes": 0}, "num_classes=0: must be a whole number, at least 1"),
        ({"num_classes": 10.0}, r"num_classes=10\.0: must be a whole number"),
        ({"num_classes": True}, "num_classes=True: must be"),
        ({"in_channels": 0}, "in_channels=0: must be a whole number, at least 1"),
        ({"name": "resnet50", "in_channels": 1}, "model=resnet50: takes images of 3 channels, not 1; choose another"),
        ({"stages": "stage4"}, "stages=stage4: resnet11 has all, stage1, stage2, stage3; choose one of these"),
        ({"stages": 2}, "stages=2: resnet11 has all, stage1, "),
        ({"name": "mobilenet_v2", "stages": "stage1"}, "stages=stage1: mobilenet_v2 has all; choose one of these"),
        ({"norm": "xbn"}, "norm=xbn: is not known; did you mean bn\\?"),
        ({"norm": "gn:groups=7"}, r"norm=gn:groups=7: resnet11 cannot have it: .*groups=7"),
        ({"noise": (0.0, 0.0)}, r"noise=\(0, 0\) would erase the features; for no noise pass noise=None"),
        ({"noise": (0.8,)}, r"noise=\(0\.8,\) must be 2 numbers"),
        ({"noise": "a"}, "noise='a' must be 2 numbers"),
        ({"noise_in": "test"}, "noise_in='test' is not known; choose one of 'always', 'train'"),
    ],
)
def test_what_cannot_be_is_named(wrong: dict[str, Any], message: str, record: Callable[[], int]) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        models.build(**GOOD | wrong)
    assert "\n" not in str(caught.value)
    if wrong.get("norm") != "gn:groups=7":  # which only the network's channels rule out
        assert record() == 0


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that says how many convolutions have been made in the test."""
    made: list[None] = []
    before = nn.Conv2d.__init__

    def init(self: nn.Conv2d, *args: Any, **options: Any) -> None:
        made.append(None)
        before(self, *args, **options)

    monkeypatch.setattr(nn.Conv2d, "__init__", init)
    return lambda: len(made)
