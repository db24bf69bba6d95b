"""The page as text: what is in it, and what it asks for. tests/report/test_browser.py opens pages in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibnorm.report import html, markdown, writing
from calibnorm.report.document import Bullets, Column, Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.environment import named
from calibnorm.report.pictures import Point, Seeds, bands, curves, finals, ratios
from calibnorm.report.pictures.axes import linear, logarithmic
from calibnorm.report.pictures.colors import NIGHT, PAPER, contrast, legible
from calibnorm.report.pictures.outlines import OUTLINES
from calibnorm.report.pictures.style import METHODS, OTHERS, VARIANT_MARKS, styles
from calibnorm.report.pictures.svg import pictured

EMPTY = {"meta", "link", "br", "wbr", "img", "hr", "path", "circle", "polygon"}
SEEDS = {"bn": Seeds({0: 90.0, 1: 91.0, 2: 95.0}, (85.4, 98.6)), "rbn<b>": Seeds({}, failed=2)}
DOCUMENT = Document(
    "Norms & <others>",
    [
        Section("", [Bullets(["`bn` < iebn"]), Facts({"accuracy": "93 %"}, large=True), Paragraph("", on="file")]),
        Section("Screen", [Paragraph("only there")], on="screen"),
        Section(
            "Results",
            [
                Table(
                    ["condition", "norm", Column("shown", on="screen"), "mean"],
                    [["clean", "bn", "x", "1.5"], ["clean", "iebn:init=0,0", "x", "2.5"], ["noise", "bn", "x", "3.5"]],
                    left=2,
                    split=True,
                    title="Means",
                ),
                Picture("finals.png", "Every run", partial(finals, {"clean": SEEDS}, "accuracy (%)")),
            ],
        ),
        Section("Every number", [Table.of([{"layer": "conv1", "mean": 1 / 3}])], on="page", folded=True),
        Section("Again", [Command("calibnorm compare x --norms 'a<b'"), Bullets(["It failed."], wrong=True)]),
    ],
)


class Nesting(HTMLParser):
    """Every element is closed where it should be, and what refers to something outside is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.refers += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag


def parsed(text: str) -> Nesting:
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_a_page_is_one_file_that_asks_for_nothing() -> None:
    text = html.page(DOCUMENT)
    found = parsed(text)
    assert found.refers
    assert all(each.startswith("#") for each in found.refers)
    assert {each[1:] for each in found.refers} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_page_has_what_is_for_files_and_for_it_alone() -> None:
    text = html.page(DOCUMENT)
    assert re.findall(r"<h[12]>(.*?)</h[12]>", text) == [
        "Norms &amp; &lt;others&gt;",
        *("Summary", "Results", "Every number", "Again"),
    ]
    assert '<html lang="en">' in text
    assert "<title>Norms &amp; &lt;others&gt;</title>" in text
    assert "<li><code>bn</code> &lt; iebn</li>" in text
    assert "<details><summary><h2>Every number</h2></summary>" in text
    assert "<ul class=wrong><li>It failed.</li></ul>" in text
    assert "<span class=\"k\">--norms</span> 'a&lt;b'</code></pre>" in text
    assert "<div><dt>accuracy</dt><dd>93 %</dd></div>" in text
    assert "only there" not in text
    assert "<p></p>" not in text


def test_a_split_table_has_groups_and_its_rows_have_names() -> None:
    text = html.page(DOCUMENT)
    heads = re.findall(r'<th[^>]*scope="(\w+)"[^>]*>(.*?)</th>', text)
    assert heads[:7] == [
        *(("col", "norm"), ("col", "mean"), ("rowgroup", "clean"), ("row", "bn")),
        *(("row", "iebn:<wbr>init=0,<wbr>0"), ("rowgroup", "noise"), ("row", "bn")),
    ]
    assert '<div class="box" role="region" tabindex="0" aria-label="Means"><table><caption>Means</caption>' in text
    assert "shown" not in text


def test_every_point_says_its_value_and_a_panel_what_it_shows() -> None:
    text = pictured(finals({"clean": SEEDS}, "accuracy (%)"))
    parsed(text)
    said = re.findall(r'class="point" tabindex="0" role="img" aria-label="(.*?)"><title>(.*?)</title>', text)
    assert [one for one, _ in said] == [other for _, other in said]
    assert [one for one, _ in said] == [
        *("bn, seed 0: 90", "bn, seed 1: 91", "bn, seed 2: 95"),
        "bn, mean: 92, 95 % interval 85.4 to 98.6",
    ]
    assert 'aria-label="clean. accuracy (%). bn, mean: 92, 95 % interval 85.4 to 98.6"' in text
    assert "rbn&lt;b&gt;" in text
    assert "✕ 2 failed" in text


def test_pictures_of_every_kind_are_well_formed_and_inside_their_panels() -> None:
    runs = {
        name: [[(epoch, 2.0 / epoch) for epoch in range(1, 31)]] for name in (*METHODS, "bn:gamma_init=0.3", "mine")
    }
    band = {"clean": [Point(1, -0.9, -1.0, -0.8), Point(20, -0.7, -1.0, -0.5)]}
    of = {"14x14\nand larger": {f"{how}cn.RBN2d": [0.25, 1.0] for how in ("", "compiled:", "fused:")}}
    for drawing in (
        curves({"clean": {"loss": runs}, "noise": {"loss": {"bn": []}}}),
        bands({"gate": {"gate": band}}, "layer", {("gate", "gate"): -1.0}, logarithmic=False),
        ratios({"forward": {"float32": of}}, "time over nn.BatchNorm2d", "norm"),
    ):
        text = pictured(drawing)
        parsed(text)
        wide, high = (100 * side for side in drawing.size)
        places = re.findall(r'class="target" cx="([-\d.]+)" cy="([-\d.]+)"', text)
        assert places
        assert all(0 <= float(x) <= wide and 0 <= float(y) <= high for x, y in places)
        assert "nan" not in text
        for name in drawing.legend:
            assert f"{name}</li>" in text
    assert text.count('class="full" style="clip-path:inset(') == 2 * 2  # two halves: a mean, a legend


def test_colours_stand_out_in_both_modes_and_every_mark_has_an_outline() -> None:
    looks = [*METHODS.values(), *OTHERS, *styles([f"{name}:a={n}" for name in METHODS for n in range(4)]).values()]
    for style in looks:
        assert contrast(legible(style.color, PAPER), PAPER) >= 3
        assert contrast(legible(style.color, NIGHT), NIGHT) >= 4.5
        assert style.marker in OUTLINES or style.marker == "o"
    assert set(VARIANT_MARKS) <= {*OUTLINES, "o"}


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.3, 0.3), (0.0, 0.0), (-5.0, 95.0), (1e-7, 3e-7), (97.1, 98.4)]
)
def test_axes_hold_their_values_and_have_a_few_round_ticks(low: float, high: float) -> None:
    axis = linear(low, high)
    assert axis.low < low <= high < axis.high
    assert 1 <= len(axis.ticks) <= 6
    assert all(axis.low <= at <= axis.high and float(text) == pytest.approx(at, abs=1e-12) for at, text in axis.ticks)
    assert 0 < axis.share(low) <= axis.share(high) < 1


def test_a_wide_logarithmic_axis_has_the_powers_of_ten_alone() -> None:
    assert [text for _, text in logarithmic(1e-5, 10).ticks] == ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10"]


def test_all_files_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = writing.write(DOCUMENT, tmp_path / "new", "norms")
    assert [path.name for path in files] == ["norms.html", "norms.md", "finals.png"]
    text = (tmp_path / "new/norms.md").read_text(encoding="utf-8")
    assert "- accuracy: 93 %\n" in text
    assert "\n    calibnorm compare x --norms 'a<b'\n" in text
    assert "Every number" not in text  # for the page alone
    monkeypatch.setattr(markdown, "find_spec", lambda name: None)
    assert len(writing.write(DOCUMENT, tmp_path)) == 2
    assert 'class="panel"' in (tmp_path / "report.html").read_text(encoding="utf-8")  # needs no matplotlib


def test_a_page_with_its_pictures_needs_torch_alone(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["matplotlib"] = sys.modules["numpy"] = sys.modules["rich"] = None
from pathlib import Path
from calibnorm.report import html
from calibnorm.report.document import Document, Picture, Section
from calibnorm.report.pictures import curves
draw = lambda: curves({"clean": {"loss": {"bn": [[(1, 0.5), (2, 0.25)]]}}})
html.write(Document("x", [Section("", [Picture("x.png", "Curves", draw)])]), Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.html")], check=True)
    assert "bn, epoch 2: 0.25" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_tables_of_plain_mappings_and_environments() -> None:
    table = Table.of([{"row": "clean", "test_loss": 0.123456, "seed": 0, "failed": None}], left=1)
    assert table.columns == ["row", "test loss", "seed", "failed"]
    assert table.rows == [["clean", "0.1235", "0", ""]]
    assert Table.of([]).rows == []
    assert named({"cpu_count": 2, "commit": None, "torch": "2.15"}) == {"cpu count": "2", "torch": "2.15"}
