"""The Markdown writer: a file with its pictures beside it, and the same text for a plain screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from calibnorm.report.document import Block, Bullets, Command, Document, Facts, Paragraph, Place, Table
from calibnorm.report.files import write_whole
from calibnorm.report.pictures import figure, save


def write(document: Document, path: Path) -> list[Path]:
    """Write a document and, where matplotlib is installed, its pictures beside it.

    Returns:
        The files, the document first.
    """
    drawn = document.pictures() if find_spec("matplotlib") else []
    write_whole(path, markdown(document, {picture.file for picture in drawn}).encode())
    for picture in drawn:
        save(figure(picture.draw()), path.with_name(picture.file))
    return [path, *(path.with_name(picture.file) for picture in drawn)]


def markdown(document: Document, drawn: set[str] | None = None) -> str:
    """Return a document as Markdown.

    Args:
        document: The document.
        drawn: The names of the pictures that are there; None for all.
    """
    return "\n\n".join(texts(document, "file", drawn)) + "\n"


def texts(document: Document, place: Place, drawn: set[str] | None = None) -> Iterator[str]:
    """Yield the paragraphs of the Markdown of a document."""
    yield f"# {document.title}"
    for section in document.at(place):
        if section.title:
            yield f"## {section.title}"
        for block in section.blocks:
            yield from written(block, drawn)


def written(block: Block, drawn: set[str] | None = None) -> Iterator[str]:
    """Yield the paragraphs of the Markdown of a block."""
    match block:
        case Paragraph():
            yield block.text
        case Bullets():
            yield "\n".join(f"- {item}" for item in block.items)
        case Facts():
            yield "\n".join(f"- {name}: {value}" for name, value in block.items.items())
        case Command():
            yield f"    {block.text}"
        case Table():
            if block.title:
                yield f"{block.title}:"
            yield "\n".join(table_lines(block))
        case _:
            if drawn is None or block.file in drawn:
                yield f"![{block.shows}]({block.file})"


def table_lines(table: Table) -> list[str]:
    r"""Return a Markdown table that is aligned for a terminal too.

    >>> print(*table_lines(Table(["norm", "accuracy"], [["bn", "93.5"], ["iebn", "94"]])), sep="\n")
    | norm | accuracy |
    |------|---------:|
    | bn   |     93.5 |
    | iebn |       94 |
    """
    header, left = table.names, table.left
    widths = [max(len(row[column]) for row in (header, *table.rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 2) if n < left else "-" * (w + 1) + ":" for n, w in enumerate(widths))
    return [line(header), f"|{rule}|", *map(line, table.rows)]
