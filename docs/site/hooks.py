"""What makes the pages of the repository those of the site: README first, and links that lead out of docs/."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FIRST, OUTSIDE = "index.md", "repository"
"""README's name on the site, and the folder for what stands outside of docs/."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages in the place of the navigation's patterns."""
    named = set(_paths(config.nav))
    left = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in named)
    config.nav = _expanded(config.nav, left)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, what the navigation names outside of docs/, and what these and all other pages link to."""
    waiting = ["README.md", *(p.removeprefix(f"{OUTSIDE}/") for p in _paths(config.nav) if p.startswith(f"{OUTSIDE}/"))]
    for file in files.documentation_pages():
        waiting += _linked(_source(file.src_uri))
    while waiting:
        uri = _uri(path := waiting.pop())
        if uri not in files.src_uris and (ROOT / path).is_file():
            inclusion = InclusionLevel.INCLUDED if uri == FIRST else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path), inclusion=inclusion))
            waiting += _linked(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link name what it leads to on the site; a link to a folder, which has no page, becomes its words."""

    def moved(link: re.Match[str]) -> str:
        words, target, heading = link[1], link[2], link[3] or ""
        path = _target(_source(page.file.src_uri), target)
        if path is None:
            return link[0]
        if (ROOT / path).is_dir():
            return words[1:-1]
        return f"{words}({os.path.relpath(_uri(path), PurePosixPath(page.file.src_uri).parent)}{heading})"

    def drawn(picture: re.Match[str]) -> str:
        """Return the drawing itself, which has the page's colours where a file of its own would have the system's."""
        file = (ROOT / "docs" / page.file.src_uri).parent / picture[1]
        return f"<div>{file.read_text(encoding='utf-8').strip()}</div>\n"

    markdown = re.sub(r"^!\[[^\]]*\]\((\S+\.svg)\)$", drawn, markdown, flags=re.MULTILINE)
    return _outside_of_fences(markdown, lambda text: LINK.sub(moved, text))


def _outside_of_fences(markdown: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _source(uri: str) -> str:
    """Where in the repository a page of the site stands."""
    if uri == FIRST:
        return "README.md"
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def _uri(path: str) -> str:
    """Where on the site a file of the repository stands."""
    if path == "README.md":
        return FIRST
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def _target(path: str, link: str) -> str | None:
    """What in the repository a link on a page means; None for other hosts, and where nothing is there."""
    found = Path(os.path.normpath(ROOT / Path(path).parent / link))
    return found.relative_to(ROOT).as_posix() if found.exists() and found.is_relative_to(ROOT) else None


def _linked(path: str) -> list[str]:
    if not path.endswith(".md") or not (ROOT / path).is_file():
        return []
    targets = [_target(path, link[2]) for link in LINK.finditer((ROOT / path).read_text(encoding="utf-8"))]
    return [target for target in targets if target is not None and not target.startswith("docs/")]


def _paths(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _paths(part)


def _expanded(nav: list[Any], left: list[str]) -> list[Any]:
    whole: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            taken = [name for name in left if fnmatch(name, entry)]
            left[:] = [name for name in left if name not in taken]
            whole += taken
        elif isinstance(entry, dict):
            whole += [
                {title: _expanded(part, left) if isinstance(part, list) else part} for title, part in entry.items()
            ]
        else:
            whole.append(entry)
    return whole
