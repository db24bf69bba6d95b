"""The commands that the documentation shows: each is understood, and what it is said to answer it answers."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from calibnorm.lab.experiments.tables.definitions import TABLES
from lab.calling import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
SHOWN = re.compile(r"^(?:\$ |torchrun .*-m )?calibnorm (.+)$")
RUNS = (
    "lab.demo", "lab.training.command", "lab.experiments.compare", "lab.experiments.tables.run",
    "lab.experiments.single", "lab.experiments.reopening", "lab.experiments.gates", "lab.stylize.apply",
    "lab.stylize.export", "lab.classifier.predict", "lab.classifier.export", "lab.detect.evaluation", "lab.detect.show",
    "lab.detect.making", "bench.command",
)  # fmt: skip
"""Where a command, when its words have been read, begins to work."""


def commands() -> list[str]:
    """Return every command in a block, without those of loops, and those whose files are parts of a page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"```console\n.*?```", "", text, flags=re.DOTALL)  # what is refused there, another test asks
        blocks = re.findall(r"```bash\n(.*?)```|((?:^    .*\n)+)", text, re.DOTALL | re.MULTILINE)
        lines = [line.strip() for block in blocks for line in "".join(block).splitlines()]
        found += [match[1] for line in lines if (match := SHOWN.match(line)) and not line.startswith("calibnorm: ")]
    return [line for line in dict.fromkeys(found) if "--load" not in line and "$" not in line]


def in_the_papers() -> list[list[str]]:
    """Return the rows of the page about the papers: what is there, command, needs, what came out."""
    lines = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(("| T", "| F"))]


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let commands read their words and do nothing; return the settings that they have read."""
    settings: list[object] = []
    for name in RUNS:
        read = lambda given, *_, **__: settings.append(given) or 0  # noqa: E731
        monkeypatch.setattr(import_module(f"calibnorm.{name}"), "run", read)
    monkeypatch.setattr(import_module("calibnorm.bench.command"), "pin_allocator", lambda: None)
    return settings


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_is_understood(
    line: str, only_read: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line, comments=True)
    assert main(words) in (0, None), capsys.readouterr().err
    assert only_read or "--help" in words or "--list" in words


def test_a_command_that_is_wrong_is_not(only_read: list[object]) -> None:
    assert main(["compare", "digits-deep", "--norms", "bn", "--seed", "3"]) == 2
    assert not only_read


def asked_and_answered() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    return [pair for block in blocks for pair in re.findall(r"^\$ calibnorm (.*)\n(.*)$", block, re.MULTILINE)]


@pytest.mark.parametrize(("line", "answer"), asked_and_answered())
def test_a_command_answers_as_the_page_says(
    line: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr().err.strip()
    pattern = ".*".join(map(re.escape, answer.split("...")))
    assert re.fullmatch(pattern, said, re.DOTALL), said


@pytest.mark.parametrize(
    ("words", "file"), [("does not run here: ", "ops/dispatch.py"), (": holds a run with ", "lab/training/folder.py")]
)
def test_a_message_that_no_test_of_the_page_can_raise_is_still_there(words: str, file: str) -> None:
    """One is raised without a GPU alone, the other by a trained run."""
    assert words in (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert words.strip(": ") in (ROOT / "src" / "calibnorm" / file).read_text(encoding="utf-8")


def test_the_papers_page_has_every_table_and_figure() -> None:
    rows = in_the_papers()
    names = [row[0].partition(",")[0] for row in rows]
    iebn = [f"Table {n}" for n in range(1, 8)] + [f"Figure {n}" for n in range(1, 6)]
    rbn = [f"Table {n}" for n in range(1, 8)] + [f"Figure {n}" for n in range(1, 7)]
    assert names == iebn + rbn
    assert all(row[-1] for row in rows)
    for table in TABLES.values():
        papers = rows[: len(iebn)] if table.paper == "iebn" else rows[len(iebn) :]
        (row,) = [row for row in papers if row[0].startswith(f"{table.place},")]
        assert row[1] == f"`calibnorm table {table.name} --scale paper`"


@pytest.mark.parametrize("row", in_the_papers(), ids=lambda row: row[0])
def test_its_commands_are_understood(row: list[str], only_read: list[object]) -> None:
    if row[1].startswith("`calibnorm "):
        assert main(shlex.split(row[1].strip("`").removeprefix("calibnorm "))) in (0, None)
