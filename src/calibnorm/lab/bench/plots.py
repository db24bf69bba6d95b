"""The picture of a layer bench: ratios to nn.BatchNorm2d by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from calibnorm.lab.bench.cases import PLANES, planes
from calibnorm.lab.bench.impls import BASELINE, COMPILED, IMPLS, TIMMS
from calibnorm.lab.bench.summary import impls_of
from calibnorm.lab.bench.table import Row
from calibnorm.lab.bench.targets import TARGETS
from calibnorm.lab.pictures import save, tidy

# Okabe and Ito's colours; a method has a colour, an implementation a mark: ours are filled, the others hollow.
COLORS = {"BN2d": "#000000", "BatchNorm": "#000000", "IEBN": "#D55E00", "RBN": "#0072B2"}
LABELS = {"authors.IEBN": "authors' IEBN", "authors.RBN": "authors' RBN", TIMMS: "timm's BatchNormAct2d"}
TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10)


def style(impl: str) -> dict[str, str]:
    """Return an implementation's colour and mark; layers of other methods are marked by their names in grey."""
    stem = impl.rpartition(".")[2].removesuffix("2d")
    if impl not in IMPLS:
        face = "white" if impl.startswith(COMPILED) else "#777777"
        return {"color": "#777777", "marker": f"${stem}$", "markerfacecolor": face, "linestyle": "none"}
    color = next(color for name, color in reversed(COLORS.items()) if name in impl)
    ours, compiled = impl.startswith("cn."), impl.startswith("compiled:")
    marker = "D" if compiled else "x" if impl == TIMMS else {"#000000": "s", "#D55E00": "o", "#0072B2": "^"}[color]
    return {"color": color, "marker": marker, "markerfacecolor": color if ours else "white", "linestyle": "none"}


def draw(rows: Sequence[Row], device_type: str, folder: Path, stem: str) -> list[Path]:
    """Draw a picture for every operation, the first one's under the stem alone; return where they are."""
    paths: list[Path] = []
    for op in dict.fromkeys(row.op for row in rows):
        path = folder / (f"{stem}-{op.replace('+', '-')}.png" if paths else f"{stem}.png")
        draw_op([row for row in rows if row.op == op], device_type, path)
        paths.append(path)
    return paths


def draw_op(rows: Sequence[Row], device_type: str, path: Path) -> None:
    """Draw modes below and dtypes and layouts beside each other.

    Small marks are shapes, large ones the geometric means of classes of planes, grey bars the targets.
    """
    modes = list(dict.fromkeys(row.mode for row in rows))
    columns = list(dict.fromkeys((row.dtype, row.layout) for row in rows))
    classes = [plane for plane in PLANES if any(planes(row.shape) == plane for row in rows)]
    names = impls_of(rows)
    size = (max(6.4, 1.0 + 2.9 * len(columns)), 1.3 + 2.5 * len(modes))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(modes), len(columns), sharex=True, sharey=True, squeeze=False)
    for line, mode in enumerate(modes):
        for column, (dtype, layout) in enumerate(columns):
            axes = grid[line][column]
            of = [row for row in rows if (row.mode, row.dtype, row.layout) == (mode, dtype, layout)]
            axes.axhline(1, color="#000000", linewidth=1)
            for position, plane in enumerate(classes):
                members = [row for row in of if planes(row.shape) == plane]
                draw_targets(axes, position, members, device_type)
                for number, name in enumerate(names):
                    values = [row.ratio_to_bn for row in members if row.impl == name]
                    if values:
                        at = position + 0.8 * ((number + 0.5) / len(names) - 0.5)
                        marks = style(name)
                        axes.plot([at] * len(values), values, **{**marks, "alpha": 0.35}, markersize=3)
                        label = name if name not in axes.get_legend_handles_labels()[1] else None
                        axes.plot([at], [geometric_mean(values)], **marks, markersize=7, label=label)
            axes.set_yscale("log")
            tidy(axes)
            if line == 0:
                axes.set_title(f"{dtype}, {layout}", fontsize=10)
        grid[line][0].set_ylabel(f"{mode}\ntime over {BASELINE}", fontsize=9)
    short = [
        plane.replace(" and ", "\nand ").replace(" than ", "\nthan ").replace(" to ", "\nto ") for plane in classes
    ]
    for axes in grid[-1]:
        axes.set_xticks(range(len(classes)), short, fontsize=8)
        axes.set_xlim(-0.5, len(classes) - 0.5)
    low, high = min(row.ratio_to_bn for row in rows), max(row.ratio_to_bn for row in rows)
    grid[0][0].set_ylim(min(0.8 * low, 0.25), max(1.25 * high, 2))
    for axes in grid.flat:
        bottom, top = axes.get_ylim()
        ticks = [tick for tick in TICKS if bottom <= tick <= top]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", left=False)
    handles: dict[str, Artist] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(LABELS.get(label, label), handle)
    place = rows[0]
    figure.suptitle(
        f"{place.op}: {place.device}, {place.threads} threads, torch {place.torch}, {place.date}", fontsize=10
    )
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(6, len(handles)), frameon=False
    )
    save(figure, path)


def draw_targets(axes: Axes, position: int, members: Sequence[Row], device_type: str) -> None:
    """Draw the limits for a class of planes as a grey bar."""
    for target in TARGETS:
        if target.device == device_type and not target.against_authors and members and target.takes(members[0]):
            limit = target.limits.get(members[0].mode)
            if limit is not None:
                label = "_" if "target" in axes.get_legend_handles_labels()[1] else "target"  # "_": not in the legend
                axes.hlines(limit, position - 0.45, position + 0.45, color="#888888", linewidth=2.5, label=label)
