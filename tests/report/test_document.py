"""One document, written for a file and for the screen."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from calibnorm.report import markdown, screen
from calibnorm.report.document import Bullets, Column, Document, Paragraph, Picture, Section, Table
from calibnorm.report.pictures import Seeds, finals

RESULTS = Table(
    [
        "condition",
        "norm",
        "accuracy (%)",
        Column("95 % interval", on="file"),
        Column("failed", on="screen"),
        "each seed",
    ],
    [
        ["clean", "bn", "90.00 ± 1.00", "[87.5, 92.5]", "0", "89.0 90.0 91.0"],
        ["clean", "iebn:init=0,0", "91.00", "–", "2 of 3", "91.0 NaN NaN"],
        ["noise 0.8,0.5", "bn", "80.00", "–", "2 of 3", "80.0 error [red]"],
    ],
    left=2,
    split=True,
)
DRAW = partial(finals, {"clean": {"bn": Seeds({0: 90.0, 1: 91.0})}}, "test accuracy (%)")
DOCUMENT = Document(
    "A study: [bn], iebn",
    [
        Section("", [Paragraph("How it was trained."), RESULTS, Paragraph("")]),
        Section("Failures", [Bullets(["iebn, seed 1: the loss is NaN"], wrong=True)]),
        Section("Nothing", [Bullets([]), Table(["a"], [])]),
        Section("For the file", [Bullets(["One.", "Two."])], on="file"),
        Section("Every run", [Paragraph("Dots are runs.", on="file"), Picture("runs.png", "Every run", DRAW)]),
    ],
)


def shown(width: int, document: Document = DOCUMENT) -> str:
    text = io.StringIO()
    screen.show(document, Console(file=text, width=width, force_terminal=True, color_system="standard"))
    return text.getvalue()


def test_markdown_has_what_is_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    assert markdown.write(DOCUMENT, path) == [path, path.with_name("runs.png")]
    assert path.with_name("runs.png").read_bytes().startswith(b"\x89PNG")
    assert path.read_text(encoding="utf-8") == markdown.markdown(DOCUMENT) == (
        "# A study: [bn], iebn\n"
        "\n"
        "How it was trained.\n"
        "\n"
        "| condition     | norm          | accuracy (%) | 95 % interval |        each seed |\n"
        "|---------------|---------------|-------------:|--------------:|-----------------:|\n"
        "| clean         | bn            | 90.00 ± 1.00 |  [87.5, 92.5] |   89.0 90.0 91.0 |\n"
        "| clean         | iebn:init=0,0 |        91.00 |             – |     91.0 NaN NaN |\n"
        "| noise 0.8,0.5 | bn            |        80.00 |             – | 80.0 error [red] |\n"
        "\n"
        "## Failures\n"
        "\n"
        "- iebn, seed 1: the loss is NaN\n"
        "\n"
        "## For the file\n"
        "\n"
        "- One.\n"
        "- Two.\n"
        "\n"
        "## Every run\n"
        "\n"
        "Dots are runs.\n"
        "\n"
        "![Every run](runs.png)\n"
    )  # fmt: skip


def test_the_screen_has_what_is_for_it_and_a_small_table_for_each_condition() -> None:
    text = shown(80)
    for there in ("A study: [bn], iebn", "How it was trained.", "noise 0.8,0.5", "failed", "80.0 error [red]"):
        assert there in text
    for not_there in ("95 %", "condition", "One.", "runs.png", "Every run", "Nothing"):
        assert not_there not in text
    assert "\x1b[31m- iebn, seed 1: the loss is NaN" in text
    assert text.index("noise 0.8,0.5") > text.index("91.0 NaN NaN")


def test_a_narrow_screen_breaks_names_and_lists_and_no_numbers() -> None:
    text = shown(52)
    assert "90.00 ± 1.00" in text
    assert "89.0 90.0 91.0" in text
    narrow = re.sub("\x1b.*?m", "", shown(44))
    assert max(map(len, narrow.splitlines())) == 44
    assert "90.00 ± 1.00" in narrow
    wide = Document(
        "Wide", [Section("", [Table([f"column {n}" for n in range(20)], [[f"{n}.25" for n in range(20)]])])]
    )
    assert "| column 0 | column 1 |" in shown(60, wide)
    named = Document("Times", [Section("", [Table(["input", "mean of the input"], [["64x56x56", "60.1"]], left=1)])])
    assert "64x56x56" in shown(20, named)
    assert "mean of the input" not in shown(20, named)


def test_without_rich_and_matplotlib_it_is_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    screen.show(DOCUMENT)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", "# A study: [bn], iebn"]
    assert "| condition     | norm          | accuracy (%) | failed |        each seed |" in lines
    assert "## Every run" not in lines
    monkeypatch.setattr(markdown, "find_spec", lambda name: None)
    assert markdown.write(DOCUMENT, tmp_path / "report.md") == [tmp_path / "report.md"]
    assert "runs.png" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_importing_needs_torch_alone() -> None:
    program = "import sys, calibnorm.report.writing, calibnorm.report.screen, calibnorm.report.pictures as pictures\n"
    program += "print([name for name in ('rich', 'matplotlib', 'scipy') if name in sys.modules])"
    assert importlib.util.find_spec("rich")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
