"""From timings to what is read: ratios by group, times of training steps, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import geometric_mean

from calibnorm.bench.cases import PASSES, PLANES, planes
from calibnorm.bench.impls import BASELINE, COPY, OURS, PEERS
from calibnorm.bench.results import command_line
from calibnorm.bench.timings import Measured, Timing, unsteady
from calibnorm.report.document import Block, Bullets, Command, Document, Facts, Paragraph, Picture, Section, Table
from calibnorm.report.environment import named
from calibnorm.report.pictures import Drawing
from calibnorm.report.pictures import ratios as draw_ratios

Group = tuple[str, str, str, str, str]
EXPLAINED = Paragraph("Small marks are shapes, large ones the geometric means of their group. Below 1 is faster.")
SHOWN = ("op", "impl", "mode", "shape", "dtype", "layout", "p20_ms", "p50_ms", "p80_ms", "ratio_to_bn")
"""The columns of the CSV that differ from line to line."""
FLOOR = "at copy speed"
"""The column that says what moving the least bytes would take, as fast as a tensor of the size is copied."""


def report_of(measured: Measured) -> Document:
    """Return the report of a bench, whichever its details name."""
    bench = measured.details["command"].rpartition(" ")[2]
    return {"layer": layer_report, "model": model_report, "inference": inference_report}[bench](measured)


def layer_report(measured: Measured) -> Document:
    """Return the report of a layer bench."""
    timings = measured.timings
    explained = Paragraph("Geometric means over shapes of time over that of nn.BatchNorm2d:")
    on_screen: list[Block] = [replace(explained, on="screen"), replace(ratio_table(timings), on="screen")]
    if of_peers := peer_table(timings):
        on_screen.append(of_peers)
    more = [
        Section("Every ratio", [EXPLAINED, *pictures(timings, "layer")], on="file"),
        Section("Ratios by group", [explained, ratio_table(timings)], on="file"),
    ]
    return report("layer", measured, [overview(timings), *on_screen], more)


def model_report(measured: Measured) -> Document:
    """Return the report of a model bench."""
    return report("model", measured, [model_table(measured.timings)])


def inference_report(measured: Measured) -> Document:
    """Return the report of an inference bench."""
    return report("inference", measured, [model_table(measured.timings, "images/s", _images_a_second)])


def _images_a_second(timing: Timing) -> str:
    return f"{1e3 * int(timing.shape.partition('x')[0]) / timing.p50_ms:.1f}"


def _peak(timing: Timing) -> str:
    return "-" if timing.peak_mib is None else f"{timing.peak_mib:.0f}"


def report(bench: str, measured: Measured, table: Sequence[Block], drawn: Sequence[Section] = ()) -> Document:
    """Return a table, what is doubtful in it, pictures, every timing, and what the details say of how it was made."""
    timings, count, details = measured.timings, unsteady(measured.timings), measured.details
    busy = f"{count} of {len(timings)} rows have p80 over 1.5 times p20: the machine was busy, do not quote these."
    wrong = Bullets([f"WRONG VALUES: {line}" for line in measured.wrong], wrong=True)
    every = Table.of([{name: vars(t)[name] for name in SHOWN} for t in timings], left=6)
    command = Command(command_line(details))
    return Document(
        f"calibnorm bench {bench}",
        [
            Section("", [*table, Paragraph(busy if count else ""), wrong]),
            *drawn,
            Section("Every timing", [every], on="page", folded=True),
            Section("The command that makes this", [command], on="file"),
            Section("Made with", [Facts(named(details.get("environment", {})))], on="file", folded=True),
        ],
    )


def ratios(timings: Sequence[Timing], impl: str, baseline: str) -> list[float]:
    """Return the ratios of medians over the cases that both were measured in."""
    of = {timing.case: timing.p50_ms for timing in timings if timing.impl == baseline}
    return [t.p50_ms / of[t.case] for t in timings if t.impl == impl and t.case in of]


def floors(timings: Sequence[Timing], baseline: str = BASELINE) -> list[float]:
    """Return, for every case with a copy, what the least traffic takes at its speed, over the baseline's time.

    A copy reads and writes x once. Where the floor is above a target, memory alone forbids it, for the baseline moves
    hardly more; where a layer is far above the floor, it computes or waits.
    """
    of = {timing.case: timing.p50_ms for timing in timings if timing.impl == baseline}
    copies = [timing for timing in timings if timing.impl == COPY and timing.case in of]
    return [PASSES[copy.op, copy.mode] / 2 * copy.p50_ms / of[copy.case] for copy in copies]


def groups(timings: Sequence[Timing]) -> dict[Group, list[Timing]]:
    """Return the timings by operation, mode, dtype, layout and class of planes.

    In the order of the plan, larger planes first.
    """
    found: dict[Group, list[Timing]] = {}
    for t in timings:
        found.setdefault((t.op, t.mode, t.dtype, t.layout, planes(t.shape)), []).append(t)
    order = {group: number for number, group in enumerate(dict.fromkeys(group[:4] for group in found))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][:4]], PLANES.index(item[0][4]))))


def impls_of(timings: Sequence[Timing]) -> list[str]:
    """Return the implementations beside the baseline, in their order."""
    return [name for name in dict.fromkeys(timing.impl for timing in timings) if name not in (BASELINE, COPY)]


def mean_text(values: Sequence[float]) -> str:
    """Return a geometric mean, or a dash."""
    return f"{geometric_mean(values):.2f}" if values else "-"


def ratio_table(timings: Sequence[Timing]) -> Table:
    """Return geometric means by group: each implementation over nn.BatchNorm2d, and ours over the authors'."""
    names = impls_of(timings)
    pairs = [pair for pair in OURS.values() if set(pair) <= set(names)]
    header = ["op", "mode", "dtype", "layout", "planes", "shapes", *names]
    header += [f"{ours.removeprefix('cn.')} / authors'" for ours, _ in pairs] + [FLOOR]
    lines = []
    for group, members in groups(timings).items():
        shapes = len({timing.shape for timing in members})
        cells = [mean_text(ratios(members, name, BASELINE)) for name in names]
        cells += [mean_text(ratios(members, ours, authors)) for ours, authors in pairs]
        lines.append([*group, str(shapes), *cells, mean_text(floors(members))])
    return Table(header, lines, left=5)


def peer_table(timings: Sequence[Timing]) -> Table | None:
    """Return the time of our layers over that of their peers in torch and timm, or None where none were measured."""
    header = ["layer", "peer", "mode", "dtype", "layout", "cases", "mean", "largest", "in"]
    lines = []
    kinds = dict.fromkeys((t.mode, t.dtype, t.layout) for t in timings)
    for ours, (peer, _) in PEERS.items():
        for kind in kinds:
            of = [t for t in timings if (t.mode, t.dtype, t.layout) == kind]
            theirs = {t.case: t.p50_ms for t in of if t.impl == peer}
            found = [
                (t.p50_ms / theirs[t.case], f"{t.op} {t.shape}") for t in of if t.impl == ours and t.case in theirs
            ]
            if found:
                mean, (largest, where) = mean_text([ratio for ratio, _ in found]), max(found)
                lines.append([ours, peer, *kind, str(len(found)), mean, f"{largest:.2f}", where])
    title = "Time over that of the natural peer in torch or timm: geometric means over cases, and the largest ratio"
    return Table(header, lines, left=5, title=title) if lines else None


def overview(timings: Sequence[Timing]) -> Table:
    """Return geometric means over all that was measured in a mode, for whoever reads one table alone."""
    names = impls_of(timings)
    lines = [
        [mode, *(mean_text(ratios([t for t in timings if t.mode == mode], name, BASELINE)) for name in names)]
        for mode in dict.fromkeys(timing.mode for timing in timings)
    ]
    title = "Time over that of nn.BatchNorm2d, geometric means over all that was measured; less is better"
    return Table(["mode", *names], lines, title=title, on="file")


def model_table(timings: Sequence[Timing], last: str = "peak MiB", text: Callable[[Timing], str] = _peak) -> Table:
    """Return the times of a network, and in a last column what else is asked of them."""
    lines = [
        [
            *(t.op, t.mode, t.shape, t.dtype, t.layout, t.impl),
            *(f"{ms:.1f}" for ms in (t.p20_ms, t.p50_ms, t.p80_ms)),
            f"{t.ratio_to_bn:.3f}",
            text(t),
        ]
        for t in timings
    ]
    header = ["network", "what", "input", "dtype", "layout", "norm", "p20 ms", "p50 ms", "p80 ms", "of BN", last]
    return Table(header, lines, left=6)


def pictures(timings: Sequence[Timing], stem: str) -> list[Picture]:
    """Return a picture for every operation, the first one's under the stem alone."""
    found: list[Picture] = []
    for op in dict.fromkeys(timing.op for timing in timings):
        file = f"{stem}-{op.replace('+', '-')}.png" if found else f"{stem}.png"
        found.append(Picture(file, f"Times of {op} over those of {BASELINE}", partial(draw, timings, op)))
    return found


def draw(timings: Sequence[Timing], op: str) -> Drawing:
    """Draw an operation: modes below and dtypes and layouts beside each other."""
    of = [timing for timing in timings if timing.op == op]
    panels: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for (_, mode, dtype, layout, plane), members in groups(of).items():
        column = panels.setdefault(mode, {}).setdefault(f"{dtype}, {layout}", {})
        # Shorter lines below the axis.
        short = plane.replace(" and ", "\nand ").replace(" than ", "\nthan ").replace(" to ", "\nto ")
        column[short] = {name: found for name in impls_of(of) if (found := ratios(members, name, BASELINE))}
    t = of[0]
    title = f"{op}: {t.device}, {t.threads} threads, torch {t.torch}, {t.date}"
    return draw_ratios(panels, f"time over {BASELINE}", title)
