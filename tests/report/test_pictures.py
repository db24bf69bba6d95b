"""Pictures: one style for a norm, and what the drawings show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from calibnorm import methods
from calibnorm.report.pictures import Point, Seeds, bands, curves, differences, finals, ratios, save, styles
from calibnorm.report.pictures.style import METHODS

NAMES = ["bn", "iebn", "iebn:init=0,0", "iebn:init=0,-2", "of_mine", "cn.IEBN2d", "authors.RBN", "compiled:cn.RBN2d"]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_norm_looks_the_same_in_every_picture() -> None:
    found = styles(NAMES)
    for name in NAMES:
        if ":init" not in name and name != "of_mine":
            assert styles([name])[name] == found[name]
    assert found["cn.IEBN2d"] == found["iebn"] == METHODS["iebn"]
    assert found["authors.RBN"].color == found["compiled:cn.RBN2d"].color == METHODS["rbn"].color
    assert styles(["nn.BatchNorm2d", "timm.BatchNormAct2d"])["timm.BatchNormAct2d"].color == METHODS["bn"].color
    assert styles(["cn.GhostBN2d"])["cn.GhostBN2d"] == METHODS["ghost"]


def test_no_two_names_of_a_picture_look_alike() -> None:
    variants = [name for name in NAMES if name != "cn.IEBN2d"]
    assert len(set(styles(variants).values())) == len(variants)
    assert set(methods()) <= set(METHODS)
    assert len({(style.color, style.marker) for style in METHODS.values()}) == len(METHODS)
    layers = [
        "cn.RBN2d",
        "authors.RBN",
        *(f"{how}:{of}RBN" for how in ("compiled", "fused") for of in ("cn.", "authors.")),
    ]
    assert len(set(styles(layers).values())) == 6


def test_curves_are_means_and_ranges_and_leave_out_what_is_not_finite() -> None:
    runs = {"bn": [[(1, 4.0), (2, 2.0)], [(1, 6.0), (2, math.nan)]], "rbn": [[]]}
    figure = curves({"clean": {"test error (%)": runs, "training loss": runs}, "noise": {"test error (%)": runs}})
    error, _, loss, nothing = figure.axes
    (line,) = error.get_lines()
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [5.0, 2.0]
    assert (error.get_ylabel(), loss.get_ylabel(), loss.get_xlabel()) == ("test error (%)", "training loss", "epoch")
    assert not nothing.axison
    assert labels(figure) == ["bn"]


@pytest.mark.parametrize(("values", "scale"), [((1.0, 4.0), "log"), ((1.0, 2.0), "linear"), ((0.0, 4.0), "linear")])
def test_a_wide_spread_gets_a_logarithmic_axis(values: tuple[float, float], scale: str) -> None:
    columns = {"clean": {"loss": {"bn": [list(enumerate(values, 1))]}}}
    assert curves(columns).axes[0].get_yscale() == scale


def test_one_epoch_has_no_ticks_between() -> None:
    assert curves({"clean": {"loss": {"bn": [[(1, 0.5)]]}}}).axes[0].get_xlim() == (0.5, 1.5)


def test_bands_have_their_start() -> None:
    band = [Point(1, -0.9, -1.0, -0.8), Point(2, -0.7, -1.0, -0.5)]
    columns = {"IEBN": {"gate_bias": {"clean": band}}, "RBN": {"scale_bias": {"clean": band}}}
    figure = bands(columns, "layer", {("IEBN", "gate_bias"): -1.0}, logarithmic=False)
    assert labels(figure) == ["clean", "initial value"]
    assert [each.get_ylabel() for each in figure.axes] == ["gate_bias", "scale_bias"]
    assert [len(each.get_lines()) for each in figure.axes] == [2, 1]


def test_finals_show_every_seed_and_cut_long_intervals() -> None:
    of = {
        "bn": Seeds({0: 40.0, 1: 75.0, 2: 76.0}, (14.0, 113.0)),
        "bn:gamma_init=0.269,skip=shortcut": Seeds({0: 83.0, 2: 84.0}, (70.0, 97.0), failed=1),
        "rbn": Seeds({}, failed=3),
    }
    figure = finals({"clean": of, "noise": {"bn": Seeds({})}}, "test accuracy (%)", (0, 100))
    panel, empty = figure.axes
    low, high = panel.get_ylim()
    assert low < 14
    assert 100 < high < 113
    assert [text.get_text() for text in panel.texts] == ["✕ 1 failed", "✕ 3 failed"]
    assert panel.get_xticklabels()[1].get_text() == "bn:\ngamma_init=0.269,\nskip=shortcut"
    marks = [line.get_marker() for line in panel.get_lines()]
    assert marks.count("_") == 2
    assert marks.count("^") == 1  # BN's interval goes on; that of two seeds is not drawn
    assert empty.get_ylim() == (0.0, 1.0)


def test_differences_stand_beside_a_papers() -> None:
    of = {"clean: iebn": Seeds({0: 1.0, 1: 2.0, 2: 3.0}, (-9.0, 12.0), printed=2.5), "clean: se": Seeds({0: -1.0})}
    figure = differences(of, "accuracy minus that of bn")
    assert labels(figure) == ["ours", "paper's"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(of)
    low, high = figure.axes[0].get_xlim()
    assert -9 < low < -1
    assert 3 < high < 12


def test_ratios_show_groups_and_their_geometric_means(tmp_path: Path) -> None:
    of = {"14x14 and larger": {"cn.RBN2d": [0.25, 1.0], "authors.RBN": [2.0]}, "smaller": {"cn.RBN2d": [0.8]}}
    figure = ratios({"forward": {"float32, NCHW": of}}, "time over nn.BatchNorm2d", "norm")
    means = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 7]
    assert [float(line.get_ydata()[0]) for line in means] == pytest.approx([0.5, 2.0, 0.8])
    assert labels(figure) == ["cn.RBN2d", "authors.RBN"]
    save(figure, tmp_path / "one.png")
    again = ratios({"forward": {"float32, NCHW": of}}, "time over nn.BatchNorm2d", "norm")
    save(again, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
