"""Pictures: one style for a norm, and what the drawings show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from calibnorm import methods
from calibnorm.report.pictures import (
    Drawing,
    Point,
    Seeds,
    bands,
    curves,
    differences,
    figure,
    finals,
    matrix,
    ratios,
    save,
    shades,
    styles,
)
from calibnorm.report.pictures.drawing import Panel, Shades
from calibnorm.report.pictures.shades import png
from calibnorm.report.pictures.style import METHODS

NAMES = ["bn", "iebn", "iebn:init=0,0", "iebn:init=0,-2", "of_mine", "cn.IEBN2d", "authors.RBN", "compiled:cn.RBN2d"]


def labels(made: Figure) -> list[str]:
    return [text.get_text() for legend in made.legends for text in legend.get_texts()]


def only_panel(drawing: Drawing) -> Panel:
    ((_, (panel,)),) = drawing.columns
    assert panel is not None
    return panel


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
    made = figure(curves({"clean": {"test error (%)": runs, "training loss": runs}, "noise": {"test error (%)": runs}}))
    error, _, loss, nothing = made.axes
    line, marks = error.get_lines()
    for each in (line, marks):
        assert list(each.get_xdata()) == [1, 2]
        assert list(each.get_ydata()) == [5.0, 2.0]
    assert (error.get_ylabel(), loss.get_ylabel(), loss.get_xlabel()) == ("test error (%)", "training loss", "epoch")
    assert not nothing.axison
    assert labels(made) == ["bn"]


@pytest.mark.parametrize(("values", "scale"), [((1.0, 4.0), "log"), ((1.0, 2.0), "linear"), ((0.0, 4.0), "linear")])
def test_a_wide_spread_gets_a_logarithmic_axis(values: tuple[float, float], scale: str) -> None:
    columns = {"clean": {"loss": {"bn": [list(enumerate(values, 1))]}}}
    assert figure(curves(columns)).axes[0].get_yscale() == scale


def test_a_logarithmic_axis_takes_a_band_that_reaches_zero() -> None:
    runs = {"bn": [[(1, 9.0), (2, 0.0)], [(1, 9.0), (2, 1.0)]]}
    axis = figure(curves({"clean": {"test error (%)": runs}})).axes[0]
    assert axis.get_yscale() == "log"
    assert 0.4 < axis.get_ylim()[0] < 0.5


def test_one_epoch_has_no_ticks_between() -> None:
    axis = figure(curves({"clean": {"loss": {"bn": [[(1, 0.5)]]}}})).axes[0]
    assert axis.get_xlim() == (0.5, 1.5)
    assert list(axis.get_xticks()) == [1]


@pytest.mark.parametrize("epochs", [1, 2, 3, 30, 200])
def test_many_epochs_have_a_dozen_marks_and_the_last_one(epochs: int) -> None:
    run = [(epoch, 1 / epoch) for epoch in range(1, epochs + 1)]
    panel = only_panel(curves({"": {"loss": {"bn": [run]}}}))
    (dots,) = panel.dots()
    assert min(epochs, 12) <= len(dots.at) <= 24
    assert dots.at[-1].says == f"bn, epoch {epochs}: {1 / epochs:.4g}"
    ticks = [at for at, _ in panel.x.ticks]
    assert 1 <= len(ticks) <= 6
    assert all(at == round(at) and 1 <= at <= epochs for at in ticks)


def test_bands_have_their_start() -> None:
    band = [Point(1, -0.9, -1.0, -0.8), Point(2, -0.7, -1.0, -0.5)]
    columns = {"IEBN": {"gate_bias": {"clean": band}}, "scale_bias": {"scale_bias": {"clean": band}}}
    made = figure(bands(columns, "layer", {("IEBN", "gate_bias"): -1.0}, logarithmic=False))
    assert labels(made) == ["clean", "initial value"]
    assert [each.get_ylabel() for each in made.axes] == ["gate_bias", "scale_bias"]
    assert [each.get_title() for each in made.axes] == ["IEBN", ""]  # no title that only repeats the axis
    assert [len(each.get_lines()) for each in made.axes] == [3, 2]


def test_finals_show_every_seed_and_cut_long_intervals() -> None:
    of = {
        "bn": Seeds({0: 40.0, 1: 75.0, 2: 76.0}, (14.0, 113.0)),
        "bn:gamma_init=0.269,skip=shortcut": Seeds({0: 83.0, 2: 84.0}, (70.0, 97.0), failed=1),
        "rbn": Seeds({}, failed=3),
    }
    panel, empty = figure(finals({"clean": of, "noise": {"bn": Seeds({})}}, "test accuracy (%)", (0, 100))).axes
    low, high = panel.get_xlim()
    assert low < 14
    assert 100 < high < 113
    assert [text.get_text() for text in panel.texts] == ["✕ 1 failed", "✕ 3 failed"]
    assert panel.get_yticklabels()[1].get_text() == "bn:gamma_init=0.269,\nskip=shortcut"
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first is above
    marks = [line.get_marker() for line in panel.get_lines()]
    assert marks.count("|") == 2
    assert marks.count(">") == 1  # BN's interval goes on; that of two seeds is not drawn
    assert empty.get_xlim() == (0.0, 1.0)


def test_differences_stand_beside_a_papers() -> None:
    of = {"clean: iebn": Seeds({0: 1.0, 1: 2.0, 2: 3.0}, (-9.0, 12.0), printed=2.5), "clean: se": Seeds({0: -1.0})}
    made = figure(differences(of, "accuracy minus that of bn"))
    assert labels(made) == ["ours", "paper's"]
    assert [label.get_text() for label in made.axes[0].get_yticklabels()] == list(of)
    low, high = made.axes[0].get_xlim()
    assert -9 < low < -1
    assert 3 < high < 12


def test_ratios_show_groups_and_their_geometric_means(tmp_path: Path) -> None:
    of = {"14x14 and larger": {"cn.RBN2d": [0.25, 1.0], "authors.RBN": [2.0]}, "smaller": {"cn.RBN2d": [0.8]}}
    rows = {"forward": {"float32, NCHW": of, "float32, other": of}, "eval": {"float32, NCHW": of}}
    made = figure(ratios(rows, "time over nn.BatchNorm2d", "norm"))
    means = [line for line in made.axes[0].get_lines() if line.get_markersize() == 7]
    assert [float(line.get_ydata()[0]) for line in means] == pytest.approx([0.5, 2.0, 0.8])
    assert labels(made) == ["cn.RBN2d", "authors.RBN"]
    assert [axes.axison for axes in made.axes] == [True, True, True, False]
    save(made, tmp_path / "one.png")
    save(figure(ratios(rows, "time over nn.BatchNorm2d", "norm")), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_small_pictures_share_black_and_white_where_they_are_alike(tmp_path: Path) -> None:
    of = {"channel 1": {"in": [[0.0, 4.0]], "out": [[2.0, 2.0]], "alone": [[7.0, 7.0]]}}
    of["channel 2"] = {"in": [[1.0], [2.0]], "out": [[3.0], [1.0]], "alone": [[0.0], [5.0]]}
    drawing = shades(of, "step", "channel", [("in", "out")])
    marks = [mark for mark in only_panel(drawing).marks if isinstance(mark, Shades)]
    assert [mark.rows for mark in marks[:3]] == [[[0.0, 1.0]], [[0.5, 0.5]], [[0.0, 0.0]]]
    assert marks[3].rows == [[0.0], [0.5]]
    assert marks[1].says == "channel 1, out: black is 0, white 4"
    assert (marks[5].left, marks[5].right, marks[5].top, marks[5].bottom) == pytest.approx((1.54, 2.46, 0.54, 1.46))
    (axes,) = figure(drawing).axes
    assert [image.get_extent() for image in axes.get_images()][5] == pytest.approx([1.54, 2.46, 1.46, 0.54])
    assert axes.get_ylim() == (1.5, -0.5)  # the first row above
    (tmp_path / "a.png").write_bytes(png([[0.0, 1.0], [0.5, 0.25]]))
    with Image.open(tmp_path / "a.png") as read:
        assert (read.mode, read.size) == ("L", (2, 2))
        assert [read.getpixel(at) for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 255, 128, 64]


def test_a_matrix_has_a_square_for_every_pair_and_black_is_all() -> None:
    drawing = matrix(["cat", "dog", "owl"], [[1, 0, 0], [0.25, 0.75, 0], [0, 0, 0]], "taken for", "class")
    panel = only_panel(drawing)
    (shown,) = panel.marks
    assert isinstance(shown, Shades)
    assert shown.rows == [[0, 1, 1], [0.75, 0.25, 1], [1, 1, 1]]
    assert [text for _, text in panel.x.ticks] == ["1", "2", "3"]
    assert [text for _, text in panel.y.ticks] == ["cat 1", "dog 2", "owl 3"]
    assert (shown.left, shown.right, panel.y.down) == (-0.5, 2.5, True)
    (axes,) = figure(drawing).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "class")
