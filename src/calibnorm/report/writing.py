"""One document into all its files."""

from __future__ import annotations

from pathlib import Path

from calibnorm.report import html, markdown
from calibnorm.report.document import Document
from calibnorm.report.files import write_csv


def write(document: Document, folder: Path, name: str = "report") -> list[Path]:
    """Write a document as a page, as Markdown and, where matplotlib is installed, its pictures beside that; its tables.

    Returns:
        The files, the page first.
    """
    for file, rows in document.tables.items():
        write_csv(folder / file, rows)
    files = [folder / file for file in document.tables]
    return [html.write(document, folder / f"{name}.html"), *markdown.write(document, folder / f"{name}.md"), *files]
