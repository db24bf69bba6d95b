"""The writer for the page: one HTML file that needs nothing beside it, and asks nothing of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from calibnorm.report.document import Block, Bullets, Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.files import write_whole
from calibnorm.report.pictures.svg import pictured

SUMMARY = "Summary"
"""What the first section of a document is called, which has no title of its own."""
SHORT = 22
"""Texts of fewer characters stay in one line of a table."""
NOTHING_ELSE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""A browser that keeps to this asks for nothing."""


def write(document: Document, path: Path) -> Path:
    """Write a document as a page; return the file."""
    write_whole(path, page(document).encode())
    return path


def page(document: Document) -> str:
    """Return a document as a page.

    >>> text = page(Document("Two norms", [Section("", [Paragraph("`bn` & `iebn`")])]))
    >>> "<h1>Two norms</h1>" in text, "<p><code>bn</code> &amp; <code>iebn</code></p>" in text
    (True, True)
    """
    sections = document.at("page")
    ids = [f"section-{number}" for number in range(len(sections))]
    titles = [section.title or SUMMARY for section in sections]
    links = "".join(f'<li><a href="#{at}">{inline(title)}</a></li>' for at, title in zip(ids, titles, strict=True))
    body = "\n".join(map(section_html, sections, ids, titles))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{NOTHING_ELSE}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>{resource("page.css")}</style>
</head>
<body>
<a class="skip" href="#{ids[0] if ids else ""}">Skip to the summary</a>
<header><p class="kicker">calibnorm</p><h1>{escape(document.title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{body}
</main>
<script>{resource("page.js")}</script>
</body>
</html>
"""


@cache
def resource(name: str) -> str:
    """Return the text of a file that belongs to this package."""
    return files("calibnorm.report").joinpath(name).read_text(encoding="utf-8")


def section_html(section: Section, at: str, title: str) -> str:
    """Return a section; one that is folded can be unfolded, and is unfolded on paper."""
    head, blocks = f"<h2>{inline(title)}</h2>", "\n".join(block_html(block, title) for block in section.blocks)
    if section.folded:
        return f'<section id="{at}"><details><summary>{head}</summary>\n{blocks}</details></section>'
    return f'<section id="{at}">{head}\n{blocks}</section>'


def block_html(block: Block, about: str) -> str:
    """Return a block.

    Args:
        block: The block.
        about: The title of its section.
    """
    match block:
        case Paragraph(text):
            return f"<p>{inline(text)}</p>"
        case Bullets(items, wrong):
            lines = "".join(f"<li>{inline(item)}</li>" for item in items)
            return f"<ul{' class=wrong' if wrong else ''}>{lines}</ul>"
        case Facts(items, large):
            lines = "".join(f"<div><dt>{inline(n)}</dt><dd>{inline(v)}</dd></div>" for n, v in items.items())
            return f'<dl class="{"large" if large else "facts"}">{lines}</dl>'
        case Command(text):
            options = re.sub(r"(?<=\s)--[\w-]+", r'<span class="k">\g<0></span>', escape(text, quote=False))
            return f"<pre><code>{options}</code></pre>"
        case Table():
            return table_html(block, about)
        case Picture(_, shows, draw):
            return f"<figure>{pictured(draw())}<figcaption>{inline(shows)}</figcaption></figure>"


def table_html(table: Table, about: str) -> str:
    """Return a table in a box that it can be moved in where it is too wide; a split one is in groups with titles."""
    parts = table.parts()
    columns = parts[0].names
    head = "".join(cell("th", name, n, parts[0], ' scope="col"') for n, name in enumerate(columns))
    bodies = [
        "<tbody>"
        + (
            f'<tr><th class="group" scope="rowgroup" colspan="{len(columns)}">{inline(part.title)}</th></tr>'
            if table.split
            else ""
        )
        + "".join(f"<tr>{''.join(cells(row, part))}</tr>" for row in part.rows)
        + "</tbody>"
        for part in parts
    ]
    name = escape(table.title or about)
    caption = f"<caption>{inline(table.title)}</caption>" if table.title else ""
    box = f'<div class="box" role="region" tabindex="0" aria-label="{name}">'
    return f"{box}<table>{caption}<thead><tr>{head}</tr></thead>{''.join(bodies)}</table></div>"


def cells(row: Sequence[str], table: Table) -> Iterator[str]:
    """Yield the cells of a row; the last of those on the left names it."""
    for number, text in enumerate(row):
        named = number == table.left - 1
        yield cell("th" if named else "td", text, number, table, ' scope="row"' if named else "")


def cell(tag: str, text: str, number: int, table: Table, more: str = "") -> str:
    """Return one cell; a long name may be broken behind its colons and commas."""
    kind = ' class="n"' if number >= table.left else ' class="k"' if len(text) < SHORT else ""
    broken = re.sub(r"(?<=[:,/])(?=\w)", "<wbr>", inline(text)) if number < table.left else inline(text)
    return f"<{tag}{kind}{more}>{broken}</{tag}>"


def inline(text: str) -> str:
    """Return a text with its code marked.

    >>> inline("a < b: `bn`")
    'a &lt; b: <code>bn</code>'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
