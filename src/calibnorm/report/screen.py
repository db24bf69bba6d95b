"""The writer for the screen: with rich where it is installed, else as plain text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calibnorm.report.document import Bullets, Document, Paragraph, Table
from calibnorm.report.markdown import table_lines, texts, written

if TYPE_CHECKING:
    from rich.console import Console

NUMBER = 13
"""Columns of numbers and other short texts, up to so many characters, are never broken into lines."""


def show(document: Document, console: Console | None = None) -> None:
    """Print a document.

    Args:
        document: The document; its pictures are left out.
        console: Where to print; standard output by default.
    """
    try:
        from rich.console import Console
    except ImportError:
        print("\n" + "\n\n".join(texts(document, "screen")), flush=True)
        return
    console = console or Console()
    say = partial(console.print, highlight=False, markup=False)
    say("", document.title, "", sep="\n", style="bold")
    for section in document.at("screen"):
        if section.title:
            say(section.title, style="bold")
        for block in section.blocks:
            if isinstance(block, Paragraph):
                say(block.text, "", sep="\n")
            elif isinstance(block, Bullets):
                for item in block.items:
                    say(f"- {item}", style="red" if block.wrong else None)
                say()
            elif isinstance(block, Table):
                for part in block.parts():
                    show_table(part, console)
            else:
                say(*written(block), "", sep="\n")


def say_where(console: Console, page: Path, seconds: float | None = None) -> None:
    """Print in a line, however long, where a page is, and how long a command took."""
    took = "" if seconds is None else f"   ({seconds:.0f} s)"
    console.print(f"Page: {page}{took}", highlight=False, markup=False, soft_wrap=True)


def show_table(table: Table, console: Console) -> None:
    """Print a table: long texts are broken into lines where it is too wide, and where that is not enough it stays wide.

    A terminal breaks the lines of a table that stays wide; a file or a pipe keeps them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(
        title=table.title or None, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for number, name in enumerate(table.names):
        wide = max(len(row[number]) for row in table.rows)
        justify: Literal["left", "right"] = "left" if number < table.left else "right"
        whole = wide if number >= table.left and wide <= NUMBER else None  # numbers keep their lines; names may not
        drawn.add_column(Text(name), justify=justify, min_width=whole, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    unbounded = console.options.update(width=100_000)
    if console.measure(drawn, options=unbounded).minimum <= console.width:
        console.print(drawn, "")
    else:
        title = [table.title, ""] if table.title else []
        console.print(*title, *table_lines(table), "", sep="\n", soft_wrap=True, highlight=False, markup=False)
