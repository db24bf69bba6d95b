"""From rows to what is read: ratios by group, and the targets beside what was reached, as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from calibnorm.lab.bench.cases import PLANES, planes
from calibnorm.lab.bench.impls import BASELINE, COPY, OURS
from calibnorm.lab.bench.table import Row
from calibnorm.lab.bench.targets import floors, judge, ratios

Group = tuple[str, str, str, str, str]
FLOOR = "at copy speed"
"""The column that says what moving the least bytes would take, as fast as a tensor of the size is copied."""


def group_of(row: Row) -> Group:
    """Return what a row is summed up with: operation, mode, dtype, layout and class of planes."""
    return row.op, row.mode, row.dtype, row.layout, planes(row.shape)


def groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Return the rows by group, in the order of the plan, larger planes first."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        found.setdefault(group_of(row), []).append(row)
    order = {group: number for number, group in enumerate(dict.fromkeys(group[:4] for group in found))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][:4]], PLANES.index(item[0][4]))))


def impls_of(rows: Sequence[Row]) -> list[str]:
    """Return the implementations beside the baseline, in their order."""
    return [name for name in dict.fromkeys(row.impl for row in rows) if name not in (BASELINE, COPY)]


def mean_text(values: Sequence[float]) -> str:
    """Return a geometric mean, or a dash."""
    return f"{geometric_mean(values):.2f}" if values else "-"


def ratio_table(rows: Sequence[Row]) -> list[str]:
    """Return geometric means by group: each implementation over nn.BatchNorm2d, and ours over the authors'."""
    names = impls_of(rows)
    pairs = [pair for pair in OURS.values() if set(pair) <= set(names)]
    header = ["op", "mode", "dtype", "layout", "planes", "shapes", *names]
    header += [f"{ours.removeprefix('cn.')} / authors'" for ours, _ in pairs] + [FLOOR]
    lines = []
    for group, members in groups(rows).items():
        shapes = len({row.shape for row in members})
        cells = [mean_text(ratios(members, name, BASELINE)) for name in names]
        cells += [mean_text(ratios(members, ours, authors)) for ours, authors in pairs]
        lines.append([*group, str(shapes), *cells, mean_text(floors(members))])
    return markdown(header, lines, left=5)


def target_table(rows: Sequence[Row], device_type: str) -> list[str]:
    """Return every target that the rows say something about, and whether it was reached."""
    lines = [
        [
            outcome.target.label,
            outcome.mode,
            outcome.impl,
            f"{outcome.limit:.2f}",
            f"{outcome.reached:.3f}",
            "passed" if outcome.passed else "missed",
            f"{outcome.floor:.3f}" if outcome.floor else "-",
            str(outcome.cases),
        ]
        for outcome in judge(rows, device_type)
    ]
    header = ["target", "mode", "layer", "at most", "reached", "", FLOOR, "cases"]
    return markdown(header, lines, left=3) if lines else []


def model_table(rows: Sequence[Row]) -> list[str]:
    """Return the times of training steps."""
    lines = [
        [
            row.op,
            row.mode,
            row.shape,
            row.dtype,
            row.layout,
            row.impl,
            f"{row.p20_ms:.1f}",
            f"{row.p50_ms:.1f}",
            f"{row.p80_ms:.1f}",
            f"{row.ratio_to_bn:.3f}",
            "-" if row.peak_mib is None else f"{row.peak_mib:.0f}",
        ]
        for row in rows
    ]
    header = ["network", "what", "input", "dtype", "layout", "norm", "p20 ms", "p50 ms", "p80 ms", "of BN", "peak MiB"]
    return markdown(header, lines, left=6)


def markdown(header: list[str], lines: list[list[str]], left: int) -> list[str]:
    """Return a Markdown table that is aligned for a terminal too; columns after the first ``left`` go to the right."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]

    def text(line: list[str]) -> str:
        cells = (c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if n < left else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return [text(header), rule, *map(text, lines)]
