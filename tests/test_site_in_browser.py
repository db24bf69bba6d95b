"""The documentation site, built and opened from its folder: on a phone, on a desk, in the dark, and by keyboard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import calibnorm
from browser import CHROMIUM, WITHOUT, looked_at

pytestmark = pytest.mark.nightly
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)
ROOT = Path(__file__).parents[1]
FURTHER = """
globalThis.further = ({ page, doc, all, text, box, visible }) => {
  const shown = (each) => visible(each) && box(each).width > 0;
  const menu = doc.querySelector("label.md-header__button[for=__drawer]");
  menu.dispatchEvent(new page.KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  const link = doc.querySelector("article a[href]:not(.headerlink)");
  link?.focus();
  return {
    first: doc.querySelector("a[href], button").className,
    skippable: doc.querySelector("article :is(h1, h2)[id]") !== null,
    unreachable: all("a[href], button, input, label.md-header__button")
      .filter((each) => shown(each) && each.tabIndex < 0 && each.type !== "reset")
      .map(text),
    jumps: all("[tabindex]").filter((each) => each.tabIndex > 0).length,
    opened: doc.getElementById("__drawer").checked,
    ring: link ? page.getComputedStyle(link).outlineStyle : "none there",
    lettering: all(".drawing text").map((each) => box(each).height),
    unnamed: all("article img:not([alt]), article svg.drawing:not([aria-labelledby])").length,
    results: all(".md-search-result__item h1").map(text),
  };
};
"""
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Links(HTMLParser):
    """What a page has names for, leads to, and loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.names, self.targets, self.loaded = set[str](), list[str](), list[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    here = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(Path(calibnorm.__file__).parents[1])}
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=here, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Links]:
    """Return every page that has an address of its own; 404.html is served below any."""
    return {str(p.relative_to(site)): Links(p) for p in sorted(site.rglob("*.html")) if p.name != "404.html"}


def test_no_link_is_dead(site: Path, pages: dict[str, Links]) -> None:
    dead = []
    for name, page in pages.items():
        for target in page.targets:
            address = urlsplit(target)
            if not address.scheme:
                path = os.path.normpath(Path(name).parent / unquote(address.path)) if address.path else name
                found = (site / path).is_file() and (
                    not address.fragment or unquote(address.fragment) in pages[path].names
                )
                dead += [] if found else [(name, target)]
    assert dead == []


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[str, Links]) -> None:
    for name, page in pages.items():
        assert page.loaded
        for target in page.loaded:
            assert not urlsplit(target).netloc, (name, target)
            assert (site / Path(name).parent / urlsplit(target).path).is_file(), (name, target)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_page_of_the_repository_is_there(pages: dict[str, Links]) -> None:
    names = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index"}
    assert names <= {name.removesuffix(".html") for name in pages}


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (800, False), (1400, False), (1400, True)])
def test_a_person_can_read_it(site: Path, pages: dict[str, Links], tmp_path: Path, width: int, dark: bool) -> None:
    around, frames = tmp_path / "around.html", [f'src="{(site / name).as_uri()}"' for name in pages]
    found = [looked_at(frames[at : at + 8], around, width, dark, FURTHER) for at in range(0, len(frames), 8)]
    for name, page in zip(pages, chain(*found), strict=True):
        assert page.language == "en"
        assert [tag for tag, _ in page.headings].count("H1") == 1, name
        assert page.overflow <= 0, name
        assert all(page.links), name
        assert [asked for asked in page.asked if not asked.startswith(site.as_uri())] == [], name
        assert sum(page.background) < 150 if dark else page.background == [255, 255, 255]
        assert page.least("text") >= 4.5, (name, min(page.contrasts, key=lambda each: each[2]))
        assert page.first == "md-skip" or not page.skippable, name
        assert page.unreachable == [], name
        assert page.jumps == 0
        assert page.opened, name
        assert page.ring in ("solid", "auto", "none there"), name
        assert page.unnamed == 0, name
        if name == "idea.html":
            assert min(page.lettering) > 8


@in_browser
def test_the_search_works_in_a_folder(site: Path, tmp_path: Path) -> None:
    frame = f'src="{(site / "index.html").as_uri()}?q=freeze_stats"'
    (page,) = looked_at([frame], tmp_path / "around.html", 1400, False, FURTHER)
    assert "API" in page.results
