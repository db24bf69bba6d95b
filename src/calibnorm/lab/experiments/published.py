"""What the two papers print, from published.yaml: the only place where their numbers are.

Every table is a list of `Printed`, one for each printed number, named by the row and the column that it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Measure = Literal["accuracy", "error"]
PAPERS = {
    "iebn": "Liang et al., Instance Enhancement Batch Normalization, AAAI 2020, arXiv 1908.04008",
    "rbn": "Gao et al., Representative Batch Normalization with Feature Calibration, CVPR 2021",
}


@dataclass(frozen=True)
class Printed:
    """One number of a table.

    Args:
        row: What the table's row is about: an architecture and data set, a noise, a stage ...
        column: What is compared: usually a norm.
        value: Top-1 accuracy or error, in percent.
        std: The standard deviation that the paper prints behind ±.
        top5: Top-5 error in percent, where the paper prints one.
        parameters: Millions, where the paper prints them.
    """

    row: tuple[str | float, ...]
    column: str
    value: float
    std: float | None = None
    top5: float | None = None
    parameters: float | None = None


@dataclass(frozen=True)
class Source:
    """A table of a paper.

    Args:
        paper: "iebn" or "rbn".
        place: Where in it, such as "Table 2".
        measure: Whether its values are top-1 accuracies or errors.
        read: From the parsed file to the numbers.
    """

    paper: Literal["iebn", "rbn"]
    place: str
    measure: Measure
    read: Callable[[dict[str, Any]], Iterator[Printed]]


def parse(text: str) -> dict[str, Any]:
    """Return what a YAML text says: scalars, lists and mappings; a tag that asks for anything else raises YAMLError."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"published figures must be a mapping, not {type(content).__name__}")
    return content


@cache
def content() -> dict[str, Any]:
    """Return the parsed published.yaml; callers leave it unchanged."""
    return parse(files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))


def table(name: str) -> list[Printed]:
    """Return the numbers of a table.

    Args:
        name: A key of `SOURCES`, such as "iebn-2".

    >>> [(p.column, p.value, p.std) for p in table("iebn-2") if p.row == (0.8, 0.8)]
    [('bn', 45.42, 31.42), ('se', 73.18, 0.66), ('iebn', 75.42, 0.08)]
    """
    source = SOURCES[name]
    return list(source.read(content()[source.paper]))


def recipe(paper: Literal["iebn", "rbn"], name: str) -> dict[str, Any]:
    """Return the training settings that a paper prints, such as ``recipe("iebn", "resnet164")["batch"]``."""
    settings: dict[str, Any] = content()[paper]["recipes"][name]
    return settings


def iebn_1(paper: dict[str, Any]) -> Iterator[Printed]:
    """Architectures and data sets; bn, se, iebn."""
    for row in paper["table1"]:
        for norm in ("bn", "se", "iebn"):
            parameters, accuracy = row[norm]
            yield Printed((row["arch"], row["data"]), norm, accuracy, parameters=parameters)


def iebn_2(paper: dict[str, Any]) -> Iterator[Printed]:
    """Constant noise (N_a, N_b), where (0, 0) is printed for no noise; bn, se, iebn."""
    for row in paper["table2"]:
        for norm in ("bn", "se", "iebn"):
            yield Printed(tuple(row["noise"]), norm, *row[norm])


def iebn_3(paper: dict[str, Any]) -> Iterator[Printed]:
    """The mixed-in data set and k; bn, iebn."""
    for row in paper["table3"]:
        for norm in ("bn", "iebn"):
            yield Printed((row["mix"], row["k"]), norm, row[norm])


def iebn_4(paper: dict[str, Any]) -> Iterator[Printed]:
    """The rows are operator and position, the columns their values."""
    for row, columns in paper["table4"].items():
        for column, figures in columns.items():
            yield Printed((row,), column, *figures)


def iebn_5(paper: dict[str, Any]) -> Iterator[Printed]:
    """The rows are the initial g_hat, the columns the initial b_hat."""
    for row, columns in paper["table5"].items():
        for column, accuracy in columns.items():
            yield Printed((int(row.removeprefix("gamma_hat_")),), column, accuracy)


def rbn_1(paper: dict[str, Any]) -> Iterator[Printed]:
    """Architectures; norms."""
    for arch, columns in paper["table1"].items():
        for norm, (top1, top5) in columns.items():
            yield Printed((arch,), norm, top1, top5=top5)


def rbn_2(paper: dict[str, Any]) -> Iterator[Printed]:
    """Architectures; which of the calibrations."""
    for arch, columns in paper["table2"].items():
        for column, error in columns.items():
            yield Printed((arch,), column, error)


def rbn_3(paper: dict[str, Any]) -> Iterator[Printed]:
    """One row; the columns are K_m and K_s, such as "mu_c,sigma_c", or "bn" for neither."""
    for cell in paper["table3"]:
        column = "bn" if cell["km"] is None else f"{cell['km']},{cell['ks']}"
        yield Printed(("resnet50",), column, cell["err"])


def rbn_4(paper: dict[str, Any]) -> Iterator[Printed]:
    """Architectures; the stage whose BatchNorms are replaced."""
    for arch, columns in paper["table4"].items():
        for stage, accuracy in columns.items():
            yield Printed((arch,), stage, accuracy)


SOURCES = {
    "iebn-1": Source("iebn", "Table 1", "accuracy", iebn_1),
    "iebn-2": Source("iebn", "Table 2", "accuracy", iebn_2),
    "iebn-3": Source("iebn", "Table 3", "accuracy", iebn_3),
    "iebn-4": Source("iebn", "Table 4", "accuracy", iebn_4),
    "iebn-5": Source("iebn", "Table 5", "accuracy", iebn_5),
    "rbn-1": Source("rbn", "Table 1", "error", rbn_1),
    "rbn-2": Source("rbn", "Table 2", "error", rbn_2),
    "rbn-3": Source("rbn", "Table 3", "error", rbn_3),
    "rbn-4": Source("rbn", "Table 4", "accuracy", rbn_4),
}
