"""What a report says, before anything is written: a title and sections of paragraphs, tables, pictures and the like.

A writer takes a document; html.py, markdown.py and screen.py are the writers. Whoever makes a document leaves empty
blocks in it: a writer passes over a block that says nothing, and over a section without blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from calibnorm.report.pictures import Drawing, Mosaic

Place = Literal["screen", "file", "page"]
"""The page is a file too: it has what is for files, and what is for it alone."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Anything that may be for one place alone."""

    on: Place | None = None
    """None is for all."""


@dataclass(frozen=True)
class Paragraph(Part):
    """A few sentences."""

    text: str


@dataclass(frozen=True)
class Bullets(Part):
    """A list.

    Args:
        items: A sentence or more each.
        wrong: Whether they say what went wrong: on a screen they are red.
    """

    items: Sequence[str]
    wrong: bool = False


@dataclass(frozen=True)
class Facts(Part):
    """Short values with their names, such as a run's result or a machine.

    Args:
        items: By name.
        large: Whether they are the first that a reader looks for.
    """

    items: Mapping[str, str]
    large: bool = False


@dataclass(frozen=True)
class Command(Part):
    """A line for a shell."""

    text: str


@dataclass(frozen=True)
class Column(Part):
    """A column's name; a table on a narrow screen may have fewer columns, or one with shorter texts."""

    name: str


@dataclass(frozen=True)
class Table(Part):
    """Texts in rows and columns.

    Args:
        columns: Names, or columns that are for one place alone.
        rows: A text for every column.
        left: So many columns are aligned to the left, the others to the right.
        title: What it is about, where the section's title does not say it.
        split: Whether a screen shows a small table for every value of the first column, with the value as its title.
    """

    columns: Sequence[str | Column]
    rows: Sequence[Sequence[str]]
    left: int = 1
    title: str = ""
    split: bool = False

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], left: int = 1, title: str = "", digits: int = 4) -> Table:
        """Return a table of plain mappings, such as the lines of a CSV or what a reading of a network gives.

        Args:
            rows: With the same keys, which are the columns; None is an empty cell.
            left: So many columns are aligned to the left.
            title: What it is about.
            digits: Those of a number that count.

        >>> Table.of([{"layer": "conv1", "mean": 0.26894}, {"layer": "conv2", "mean": None}]).rows
        [['conv1', '0.2689'], ['conv2', '']]
        """
        columns = [name.replace("_", " ") for name in rows[0]] if rows else []
        return cls(columns, [[text_of(value, digits) for value in row.values()] for row in rows], left, title)

    def at(self, place: Place) -> Table:
        """Return the table with the columns of a place alone."""
        columns = [column if isinstance(column, Column) else Column(column) for column in self.columns]
        kept = [number for number, column in enumerate(columns) if column in of(columns, place)]
        rows = [[row[number] for number in kept] for row in self.rows]
        left = sum(number < self.left for number in kept)
        return Table([columns[number].name for number in kept], rows, left, self.title, self.split)

    def parts(self) -> list[Table]:
        """Return a table for every value of the first column, where the table is to be split; else itself."""
        if not self.split:
            return [self]
        groups: dict[str, list[Sequence[str]]] = {}
        for first, *others in self.rows:
            groups.setdefault(first, []).append(others)
        return [Table(self.columns[1:], rows, self.left - 1, first) for first, rows in groups.items()]

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name if isinstance(column, Column) else column for column in self.columns]


@dataclass(frozen=True)
class Picture(Part):
    """A picture, drawn when it is written.

    Args:
        file: Its name beside the report, such as "curves.png".
        shows: What is on it, for those who cannot see it.
        draw: Makes the drawing, such as a function of `report.pictures`.
    """

    file: str
    shows: str
    draw: Callable[[], Drawing | Mosaic] = field(repr=False)
    on: Place | None = field(default="file", kw_only=True)


Block = Paragraph | Bullets | Facts | Command | Table | Picture
AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True)
class Section(Part):
    """Blocks below a title; those that come first in a document have none.

    Args:
        title: Its title.
        blocks: What it says.
        folded: Whether a page shows it when it is asked for: much that few readers need.
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """All of a report.

    Args:
        title: What it is about.
        sections: What it says.
        tables: The lines of the CSV files that lie beside it, by the file's name.
    """

    title: str
    sections: Sequence[Section]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def at(self, place: Place) -> list[Section]:
        """Return the sections of a place that say something, with their blocks of that place that do."""
        found = []
        for section in of(self.sections, place):
            said = [block.at(place) if isinstance(block, Table) else block for block in of(section.blocks, place)]
            if blocks := [block for block in said if says_something(block)]:
                found.append(Section(section.title, blocks, section.folded))
        return found

    def pictures(self) -> list[Picture]:
        """Return the pictures that lie beside the report."""
        return [block for section in self.at("file") for block in section.blocks if isinstance(block, Picture)]


def text_of(value: Any, digits: int) -> str:
    """Return a value as a cell of a table has it."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def of(parts: Iterable[AnyPart], place: Place) -> list[AnyPart]:
    """Return the parts that are for a place."""
    places = {None, place, "file"} if place == "page" else {None, place}
    return [part for part in parts if part.on in places]


def says_something(block: Block) -> bool:
    """Return whether a block has anything in it."""
    match block:
        case Paragraph(text=said) | Command(text=said) | Bullets(items=said) | Facts(items=said) | Table(rows=said):
            return bool(said)
        case _:
            return True
