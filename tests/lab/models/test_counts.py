"""Parameter counts against the IEBN paper's Table 1: every cell, at the two decimals that are printed."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from calibnorm.lab import models

# Liang et al., AAAI 2020, Table 1, "#P(M)" of BN, SE and IEBN. SE of DenseNet and ResNeXt-29 is in one version alone of
# arXiv 1908.04008.
TABLE = {
    ("resnet164", 100): ("1.73", "1.93", "1.75"),
    ("preresnet164", 100): ("1.73", "1.92", "1.75"),
    ("densenet100_k12", 100): ("0.80", "0.81", "0.82"),
    ("resnext29_8x64d", 100): ("34.52", "35.04", "34.57"),
    ("resnet164", 10): ("1.70", "1.91", "1.73"),
    ("preresnet164", 10): ("1.70", "1.90", "1.73"),
    ("densenet100_k12", 10): ("0.77", "0.78", "0.79"),
    ("resnext29_8x64d", 10): ("34.43", "34.94", "34.48"),
    ("resnet34", 1000): ("21.81", "21.97", "21.82"),
    ("resnet50", 1000): ("25.58", "28.09", "25.63"),
    ("resnet152", 1000): ("60.27", "66.82", "60.41"),
    ("resnext50_32x4d", 1000): ("25.03", "27.56", "25.09"),
}
CELLS = [
    pytest.param(name, classes, norm, printed, id=f"{name}-{classes}-{norm}")
    for (name, classes), row in TABLE.items()
    for norm, printed in zip(("bn", "se", "iebn"), row, strict=True)
]
# What torchvision's networks have instead. The printed networks have a bias in every convolution, as in the same
# group's ImageNet code (gbup-group/EAN-efficient-attention-network on GitHub: a port of fb.resnet.torch with bias=True
# throughout): one number more for each channel of a BatchNorm, which takes the bias out again. SE-ResNet-50 and -152
# have none.
CONVOLUTIONS_WITH_BIASES = {
    ("resnet34", "bn"): "21.80",
    ("resnet34", "se"): "21.96",
    ("resnet34", "iebn"): "21.81",
    ("resnet50", "bn"): "25.56",
    ("resnet50", "iebn"): "25.60",
    ("resnet152", "bn"): "60.19",
    ("resnet152", "iebn"): "60.34",
}


PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@functools.cache
def on_meta(name: str, classes: int, norm: str) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, num_classes=classes, norm=norm)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def biases_of_convolutions(model: nn.Module) -> int:
    """Return how many numbers more there would be if every convolution had a bias."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)
    return sum(module.out_channels for module in convolutions)


def millions(number: int) -> str:
    return f"{number / 1e6:.2f}"


@pytest.mark.untraced
@pytest.mark.parametrize(("name", "classes", "norm", "printed"), CELLS)
def test_iebn_table_1(name: str, classes: int, norm: str, printed: str) -> None:
    model = on_meta(name, classes, norm)
    ours = CONVOLUTIONS_WITH_BIASES.get((name, norm), printed)
    assert millions(count(model)) == ours
    if ours != printed:
        assert millions(count(model) + biases_of_convolutions(model)) == printed


def test_resnet164_exactly() -> None:
    assert count(on_meta("resnet164", 10, "bn")) == 1_704_154


@pytest.mark.parametrize(
    ("name", "classes", "norm", "instead"),
    [
        ("resnet50", 1000, "iebn:skip=none", "25.64"),
        ("resnext50_32x4d", 1000, "iebn:skip=none", "25.10"),
        ("resnext29_8x64d", 100, "iebn:skip=none", "34.58"),
        ("resnet164", 100, "se:biases=false", "1.92"),
        ("resnet164", 10, "se:biases=false", "1.90"),
        ("resnet50", 1000, "se:biases=false", "28.07"),
        ("preresnet164", 100, "se:biases=true", "1.93"),
        ("preresnet164", 10, "se:biases=true", "1.91"),
        ("resnext29_8x64d", 10, "se:biases=true", "34.95"),
        ("densenet100_k12", 100, "se:biases=true", "0.82"),
    ],
)
def test_the_printed_counts_decide_what_the_paper_leaves_open(name: str, classes: int, norm: str, instead: str) -> None:
    """Whether shortcuts and SE's biases are as in `norms` and `networks`: the other choice misses a printed count."""
    method = norm.partition(":")[0]
    printed = TABLE[name, classes][("bn", "se", "iebn").index(method)]
    model = on_meta(name, classes, norm)
    more = biases_of_convolutions(model) if (name, method) in CONVOLUTIONS_WITH_BIASES else 0
    assert millions(count(model) + more) == instead != printed


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # torchvision's documentation; Res2Net-50 26w4s: Gao et al., TPAMI 2021, 25.7 M
        ("resnet101", 44_549_160),
        ("mobilenet_v2", 3_504_872),
        ("res2net50", 25_699_120),
    ],
)
def test_the_representative_papers_networks(name: str, parameters: int) -> None:
    assert count(on_meta(name, 1000, "bn")) == parameters


def test_resnet50_for_small_images_is_imagenets_but_for_the_stem() -> None:
    with torch.device("meta"):
        large, small = (models.build(name, num_classes=10) for name in ("resnet50", "resnet50_32"))
    assert count(large) - count(small) == 3 * 64 * (7 * 7 - 3 * 3)


@pytest.mark.parametrize("name", ["resnet164", "preresnet164", "densenet100_k12", "resnext29_8x64d"])
def test_the_depth_is_that_of_the_name(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, num_classes=10)
    weights = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(weights) == int("".join(filter(str.isdigit, name.partition("_")[0])))


def test_the_page_has_these_counts() -> None:
    """`| resnet164 | 100 | bn | 1.73 | 1,727,284 |`, and a mark where a cell is not met."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\w+) \| ([\d.]+) \| ([\d,]+) \| (.*) \|$", PAGE.read_text("utf-8"), re.M)
    found = {(name, int(classes), norm): (printed, ours, said) for name, classes, norm, printed, ours, said in rows}
    expected = {}
    for (name, classes), row in TABLE.items():
        for norm, printed in zip(("bn", "se", "iebn"), row, strict=True):
            model = on_meta(name, classes, norm)
            said = "yes"
            if (name, norm) in CONVOLUTIONS_WITH_BIASES:
                said = f"with {biases_of_convolutions(model):,} biases of convolutions"
            expected[name, classes, norm] = (printed, f"{count(model):,}", said)
    assert found == expected
