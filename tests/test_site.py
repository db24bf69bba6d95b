"""The documentation site: what its pages say is in their sources, and what the hooks make of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import calibnorm as cn

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    """As an entry of its own; layers of 1 and 3 dimensions in the table that leads to that of 2."""
    entries = re.findall(r"^::: calibnorm\.(\S+)$", API, re.MULTILINE)
    assert len(entries) == len(set(entries))
    named = {*entries, *re.findall(r"`(\w+[13]d)`", API)}
    assert set(cn.__all__) - {"inspect", "methods"} <= named
    assert {f"inspect.{name}" for name in cn.inspect.__all__} <= named
    assert "methods.methods" in named


def rows_with_a_source() -> list[tuple[str, Path]]:
    """Return the rows of the page's tables, with the page that the last cell leads to."""
    rows = []
    for line in CHOOSING.splitlines():
        if line.startswith("|") and (source := re.search(r"\]\(([^)#]+)[^)]*\) \|$", line)):
            rows.append((line[: source.start()], ROOT / "docs" / source[1]))
    return rows


@pytest.mark.parametrize(("row", "source"), rows_with_a_source(), ids=lambda value: str(value)[:40])
def test_a_number_that_helps_to_choose_stands_where_it_was_measured(row: str, source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert [number for number in re.findall(r"\d+\.\d+", row) if number not in text] == []


def test_most_rows_have_a_source() -> None:
    heads = [line for line in CHOOSING.splitlines() if line.endswith("| measured in |")]
    lines = [line for line in CHOOSING.splitlines() if line.startswith("| ")]
    assert len(rows_with_a_source()) == len(lines) - len(heads)


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    pytest.importorskip("mkdocs")
    return runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))


def test_a_pattern_takes_the_pages_that_nothing_else_names(hooks: dict[str, Any]) -> None:
    nav = [{"A": ["*sty*.md", {"One": "one.md"}]}, "*.md", "*none*.md"]
    left = ["other.md", "style.md"]
    assert hooks["_expanded"](nav, left) == [{"A": ["style.md", {"One": "one.md"}]}, "other.md"]
    assert left == []


@pytest.mark.parametrize(
    "path", ["README.md", "CHANGELOG.md", "docs/methods.md", "docs/results/fashion-study/README.md"]
)
def test_a_file_has_one_place_on_the_site(path: str, hooks: dict[str, Any]) -> None:
    uri = hooks["_uri"](path)
    assert not uri.startswith(("docs/", "../"))
    assert hooks["_source"](uri) == path


def test_links_are_those_of_the_repository(hooks: dict[str, Any]) -> None:
    class Page:
        class file:
            src_uri = "performance.md"

    def moved(text: str) -> str:
        return hooks["on_page_markdown"](text, Page, None, None)

    assert moved("[rows](../benchmarks/results/layer.csv)") == "[rows](repository/benchmarks/results/layer.csv)"
    assert moved("[front](../README.md#limits)") == "[front](index.md#limits)"
    assert moved("[tests](../tests/install)") == "tests"
    assert moved("[there](https://example.org) `a[0](b)` [gone](nowhere.md)").endswith("[gone](nowhere.md)")
    fenced = "```python\nx[0](../README.md)\n```\n"
    assert moved(fenced) == fenced
