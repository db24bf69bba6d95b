"""The tables' printed numbers against the papers' own lines, as their texts have them."""

from __future__ import annotations

import re

import pytest
import yaml

from calibnorm.lab.experiments.tables import published
from calibnorm.lab.experiments.tables.definitions import TABLES, Entry
from calibnorm.lab.experiments.tables.published import Printed

# Lines of the papers' texts, copied; IEBN's from arXiv 1908.04008, RBN's from the CVPR 2021 paper.
IEBN_1 = """
ResNet164 CIFAR100 1.73 74.29 1.93 75.80 1.75 77.09
PreResNet164 CIFAR100 1.73 76.56 1.92 77.41 1.75 77.27
DenseNet100-12 CIFAR100 0.80 77.23 0.81 78.43 0.82 78.57
ResNext29,8x64 CIFAR100 34.52 81.47 35.04 83.05 34.57 82.45
ResNet164 CIFAR10 1.70 93.93 1.91 94.65 1.73 95.03
Preresnet164 CIFAR10 1.70 95.01 1.90 95.18 1.73 95.09
DenseNet100-12 CIFAR10 0.77 95.29 0.78 95.76 0.79 95.83
ResNext29,8x64 CIFAR10 34.43 96.11 34.94 96.30 34.48 96.26
ResNet34 ImageNet 21.81 73.91 21.97 74.39 21.82 74.38
ResNet50 ImageNet 25.58 76.01 28.09 76.61 25.63 77.10
ResNet152 ImageNet 60.27 77.58 66.82 78.36 60.41 79.17
ResNext50 ImageNet 25.03 77.19 27.56 78.04 25.09 77.99
"""
NAMES = {
    "resnet164": "resnet164",
    "preresnet164": "preresnet164",
    "densenet100-12": "densenet100_k12",
    "resnext29,8x64": "resnext29_8x64d",
    "resnext50": "resnext50_32x4d",
}
# The row (0.8,0.2) is the first version's alone.
IEBN_2 = """
(0.0,0.0) 74.29(±0.64) 75.80(±0.25) 77.09(±0.15)
(0.8,0.8) 45.42(±31.42) 73.18(±0.66) 75.42(±0.08)
(0.8,0.5) 46.10(±31.91) 71.59(±1.77) 77.39(±0.09)
(0.8,0.2) 71.65(±0.22) 71.08(±0.52) 76.77(±0.22)
(0.5,0.5) 35.77(±34.76) 74.61(±0.56) 77.00(±0.29)
(0.5,0.2) 73.10(±1.72) 75.72(±1.47) 77.11(±0.08)
"""
IEBN_3 = """
C 74.29 -0.00 77.09 -0.00
C+2×M 73.13 -1.16 76.65 -0.44
C+3×M 71.54 -2.75 76.03 -1.06
C+2×F 71.56 -2.73 75.57 -1.52
C+3×F 71.27 -3.02 74.26 -2.83
"""
IEBN_4 = """
linear 77.09(±0.15) gamma 77.09(±0.15)
identity 67.53(±2.49) beta 75.03(±0.54)
fc 76.11(±0.28) gamma_and_beta 77.02(±0.08)
"""
IEBN_5 = """
1 68.5 66.96 69.53
0 75.86 76.21 77.09
-1 74.64 74.73 75.31
"""
RBN_1 = """
resnet50 in 28.40 -
resnet50 gn 24.33 7.30
resnet50 bn 23.85 7.13
resnet50 ilm 23.57 -
resnet50 sn 23.10 -
resnet50 bcn 23.09 6.55
resnet50 iebn 22.90 -
resnet50 frn 22.79 6.43
resnet50 rbn 22.64 6.54
resnet50 rbn_sigma 22.40 6.27
resnet101 bn 22.63 6.44
resnet101 rbn 21.48 5.74
resnext50 bn 22.38 6.30
resnext50 rbn 21.97 6.13
res2net50 bn 22.01 6.15
res2net50 rbn 21.16 5.88
mobilenet_v2 bn 28.03 9.19
mobilenet_v2 rbn 26.23 8.37
"""
RBN_2 = """
bn 28.03 23.85
scaling 26.96 23.06
centering 26.55 22.85
rbn 26.23 22.64
"""
RBN_3 = """
- μ_c μ_c μ_c μ_c μ_s σ_c σ_s
- μ_c μ_s σ_c σ_s μ_c μ_c μ_c
23.85 22.64 22.58 22.40 22.65 22.93 22.76 22.90
"""
RBN_4 = """
resnet50 77.10 78.40 77.70 78.14 79.26 79.99
resnext29 79.69 81.21 80.22 80.64 - 82.12
"""
RBN_5 = """
ResNet-50-BN 37.8 58.0 41.3 21.8 41.0 49.3
ResNet-50-RBN 39.3 59.7 42.8 22.7 43.4 51.8
ResNet-101-BN 39.6 59.6 43.1 22.5 43.5 51.6
ResNet-101-RBN 41.5 61.7 45.1 23.7 45.8 54.3
"""
RBN_6 = """
ResNet-50-BN 38.7 58.6 42.4 22.4 42.0 50.2
ResNet-50-RBN 40.3 60.4 43.9 23.2 44.3 52.7
ResNet-101-BN 40.3 60.0 44.0 23.0 44.1 52.9
ResNet-101-RBN 41.5 61.1 45.4 24.3 45.7 54.3
ResNet-50-BN 34.7 55.4 37.1 18.5 37.8 46.7
ResNet-50-RBN 36.1 57.5 38.3 19.4 39.7 48.9
ResNet-101-BN 36.0 57.1 38.4 18.8 39.4 49.2
ResNet-101-RBN 37.2 58.4 39.9 20.5 41.0 50.6
"""
RBN_7 = """
ResNet-50-BN 33.3 31.0 75.6 44.8 36.3
ResNet-50-RBN 35.0 32.3 76.0 45.9 37.2
ResNet-101-BN 35.7 32.9 76.3 46.4 37.8
ResNet-101-RBN 37.7 34.3 76.9 48.1 39.1
"""


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def spread(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"([\d.]+)\(±([\d.]+)\)", text)
    assert match is not None
    return float(match[1]), float(match[2])


def printed(name: str) -> list[tuple[Entry, Printed]]:
    """Return the entries of a table that its paper prints there: BN beside an ablation is another table's."""
    borrowed = name in ("iebn-4", "iebn-5")
    entries = [e for e in TABLES[name].entries if not (borrowed and e.column == "bn")]
    return [(entry, entry.printed) for entry in entries if entry.printed is not None]


def named(name: str) -> list[tuple[str, str, Printed]]:
    return [(entry.row, entry.column, number) for entry, number in printed(name)]


def test_iebn_1() -> None:
    expected = []
    for name, data, *numbers in lines(IEBN_1):
        row = f"{NAMES.get(name.lower(), name.lower())}, {data.lower()}"
        for norm, parameters, accuracy in zip(("bn", "se", "iebn"), numbers[::2], numbers[1::2], strict=True):
            expected.append((row, norm, Printed(float(accuracy), parameters=float(parameters))))
    assert named("iebn-1") == expected
    assert [f"{entry.model}, {entry.data}" for entry, _ in printed("iebn-1")] == [row for row, _, _ in expected]


def test_iebn_2() -> None:
    expected = []
    for noise, *figures in lines(IEBN_2):
        n_a, n_b = map(float, noise.strip("()").split(","))
        for norm, figure in zip(("bn", "se", "iebn"), figures, strict=True):
            expected.append(((n_a, n_b), norm, Printed(*spread(figure))))
    assert [(e.noise or (0, 0), e.column, number) for e, number in printed("iebn-2")] == expected


def test_iebn_3_and_its_drops() -> None:
    found = printed("iebn-3")
    expected = []
    for name, bn, bn_drop, iebn, iebn_drop in lines(IEBN_3):
        other = {"M": "mnist", "F": "fashion_mnist", "C": None}[name[-1]]
        mix = None if other is None else (other, int(name[2]))
        expected += [(mix, "bn", Printed(float(bn))), (mix, "iebn", Printed(float(iebn)))]
        # The paper prints the drops too, which follow.
        assert float(bn) - found[0][1].value == pytest.approx(float(bn_drop), abs=1e-9)
        assert float(iebn) - found[1][1].value == pytest.approx(float(iebn_drop), abs=1e-9)
    assert [(entry.mix, entry.column, number) for entry, number in found] == expected


def test_iebn_4() -> None:
    rows = lines(IEBN_4)
    expected = [("operator", row[0], Printed(*spread(row[1]))) for row in rows]
    expected += [("position", row[2], Printed(*spread(row[3]))) for row in rows]
    assert named("iebn-4") == expected


def test_iebn_5() -> None:
    expected = [
        ("initial values", f"{g_hat}, {b_hat}", Printed(float(accuracy)))
        for g_hat, *row in lines(IEBN_5)
        for b_hat, accuracy in zip(("1", "0", "-1"), row, strict=True)
    ]
    assert named("iebn-5") == expected


def test_rbn_1() -> None:
    expected = [
        (NAMES.get(arch, arch), norm, Printed(float(top1), top5=None if top5 == "-" else float(top5)))
        for arch, norm, top1, top5 in lines(RBN_1)
    ]
    assert named("rbn-1") == expected


def test_rbn_2() -> None:
    rows = lines(RBN_2)
    expected = [("mobilenet_v2", row[0], Printed(float(row[1]))) for row in rows]
    expected += [("resnet50", row[0], Printed(float(row[2]))) for row in rows]
    assert named("rbn-2") == expected


def test_rbn_3() -> None:
    symbols = str.maketrans({"μ": "mu", "σ": "sigma"})
    centers, scales, errors = ([cell.translate(symbols) for cell in row] for row in lines(RBN_3))
    expected = [
        ("resnet50", "bn" if center == "-" else f"{center},{scale}", Printed(float(error)))
        for center, scale, error in zip(centers, scales, errors, strict=True)
    ]
    assert named("rbn-3") == expected


def test_rbn_4() -> None:
    stages = ("none", "stage1", "stage2", "stage3", "stage4", "all")
    models = {"resnet50": "resnet50_32", "resnext29": "resnext29_8x64d"}
    expected = [
        (models[arch], stage, Printed(float(accuracy)))
        for arch, *row in lines(RBN_4)
        for stage, accuracy in zip(stages, row, strict=True)
        if accuracy != "-"
    ]
    assert named("rbn-4") == expected


def of_detectors(text: str, names: list[str]) -> list[tuple[str, str, dict[str, float]]]:
    """Return backbone, norm and figures of lines such as ResNet-50-BN."""
    found = []
    for name, *numbers in lines(text):
        resnet, depth, norm = name.lower().split("-")
        found.append((f"{resnet}{depth}", norm, dict(zip(names, map(float, numbers), strict=True))))
    return found


def six(kind: str) -> list[str]:
    return [f"test_{kind}_{column}" for column in ("ap", "ap50", "ap75", "aps", "apm", "apl")]


def test_rbn_5() -> None:
    found = [(row, column, dict(number.figures)) for row, column, number in named("rbn-5")]
    assert found == of_detectors(RBN_5, six("box"))
    assert all(number.value == dict(number.figures)["test_box_ap"] for _, _, number in named("rbn-5"))


def test_rbn_6() -> None:
    boxes = of_detectors("\n".join(RBN_6.strip().splitlines()[:4]), six("box"))
    masks = of_detectors("\n".join(RBN_6.strip().splitlines()[4:]), six("mask"))
    expected = [(row, norm, box | mask) for (row, norm, box), (_, _, mask) in zip(boxes, masks, strict=True)]
    assert [(row, column, dict(number.figures)) for row, column, number in named("rbn-6")] == expected
    assert all(number.value == dict(number.figures)["test_mask_ap"] for _, _, number in named("rbn-6"))


def test_rbn_7() -> None:
    names = ["test_box_ap", "test_mask_ap", "test_sq", "test_rq", "test_pq"]
    found = [(row, column, dict(number.figures)) for row, column, number in named("rbn-7")]
    assert found == of_detectors(RBN_7, names)
    assert all(number.value == dict(number.figures)["test_pq"] for _, _, number in named("rbn-7"))


def test_every_table_has_a_test_and_shows_what_its_paper_does() -> None:
    tests = " ".join(globals())
    assert [f"test_{name.replace('-', '_')}" in tests for name in TABLES] == [n != "iebn-fig4" for n in TABLES]
    assert {name for name, table in TABLES.items() if table.shows == "error"} == {"rbn-1", "rbn-2", "rbn-3"}
    assert {name: table.shows for name, table in TABLES.items() if table.shows not in ("error", "accuracy")} == {
        "rbn-5": "AP",
        "rbn-6": "mask AP",
        "rbn-7": "PQ",
    }


def test_recipes() -> None:
    assert published.of_paper("iebn")["recipes"]["resnet164"]["schedule"] == [81, 122]
    assert published.of_paper("rbn")["recipes"]["mobilenet_v2"]["epochs"] == 200
    assert published.of_paper("iebn")["figure4"]["activations"] == ["sigmoid", "tanh", "softmax", "relu"]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['echo pwned']",
        "iebn: !!python/object/new:type {args: [x, [], {}]}",
        "iebn: !!python/name:os.system",
        "iebn: !unknown 3",
    ],
)
def test_yaml_tags_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        published.parse(text)


def test_only_a_mapping_is_taken() -> None:
    with pytest.raises(ValueError, match="must be a mapping, not list"):
        published.parse("[1, 2]")
