"""The lists that the functions of this package return: they print as tables and turn into plain dicts."""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from calibnorm.networks.tables import aligned

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


class Table(list[Row]):
    """Rows of one dataclass, whose fields are the columns."""

    row: ClassVar[type[Any]]

    def __str__(self) -> str:
        return aligned(self._columns(), ([getattr(row, name) for name in self._columns()] for row in self))

    __repr__ = __str__

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return every row as a dict of strings and numbers: what JSON, CSV writers and pandas take."""
        return [asdict(row) for row in self]

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas, which is not installed; to_dicts() needs nothing") from error
        return pandas.DataFrame(self.to_dicts())

    def _columns(self) -> list[str]:
        return [field.name for field in fields(self.row)]
