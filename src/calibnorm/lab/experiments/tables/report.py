"""A table of a paper with ours beside it: on the screen, as Markdown, as CSV and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from calibnorm.lab.experiments import plots, texts
from calibnorm.lab.experiments.config import Scale
from calibnorm.lab.experiments.grid import Grid
from calibnorm.lab.experiments.origins import made_with
from calibnorm.lab.experiments.published import PAPERS
from calibnorm.lab.experiments.summary import Line, number, write_results, write_summary
from calibnorm.lab.experiments.tables.definitions import Entry, Table
from calibnorm.lab.experiments.tables.extras import further
from calibnorm.lab.pictures import save, tidy
from calibnorm.lab.recipes import Classification
from calibnorm.report.files import write_whole


@dataclass(frozen=True)
class TableReport:
    """Everything that is said of a table.

    Args:
        table: The table.
        scale: "tiny", "small" or "paper".
        grid: The runs.
        lines: A line for every cell of the grid.
        left_out: Why entries are not there, by row.
        complaints: A sentence for every run that did not finish.
        seconds: Wall time of this command.
    """

    table: Table
    scale: Scale
    grid: Grid
    lines: Sequence[Line]
    left_out: Mapping[str, str]
    complaints: Sequence[str]
    seconds: float

    @property
    def factor(self) -> int:
        """-1 where the table has errors: a difference of accuracies with the sign turned."""
        return -1 if self.table.measure == "error" else 1

    @property
    def entries(self) -> dict[tuple[str, str], Entry]:
        """The table's entries by row and column."""
        return {(entry.row, entry.column): entry for entry in self.table.entries}

    def entry(self, line: Line) -> Entry:
        """Return the entry of a line."""
        return self.entries[line.cell.row, line.cell.column]

    def printed_difference(self, line: Line) -> float | None:
        """Return what the paper's numbers say of a column minus the row's baseline."""
        own, row = self.entry(line).printed, line.cell.row
        baseline = self.entries.get((row, self.table.baseline))
        if own is None or baseline is None or baseline.printed is None or line.cell.column == self.table.baseline:
            return None
        return own.value - baseline.printed.value

    def ours(self, line: Line) -> str:
        """Return our number."""
        return texts.spread(100 - line.mean if self.factor < 0 else line.mean, line.std)

    def header(self) -> list[str]:
        """Return the table's columns."""
        return ["", self.table.measure, "ours (%)", "paper (%)", f"minus {self.table.baseline}", "paper", "failed"]

    def cells(self, line: Line, previous: Line | None, least: int) -> list[str]:
        """Return a line of the table; a row's name stands in its first line alone."""
        p, gap = self.entry(line).printed, self.printed_difference(line)
        failed = line.failed + line.at_chance
        return [
            "" if previous is not None and previous.cell.row == line.cell.row else line.cell.row,
            line.cell.column,
            self.ours(line),
            texts.NOTHING if p is None else texts.spread(p.value, p.std),
            texts.difference(line, self.factor, least),
            texts.NOTHING if gap is None else f"{gap:+.2f}",
            f"{failed} of {len(line.outcomes)}" if failed else "0",
        ]

    def rows(self, least: int = 2) -> list[list[str]]:
        """Return all lines as text; intervals of fewer seeds than ``least`` are left out."""
        return [self.cells(line, before, least) for line, before in zip(self.lines, [None, *self.lines], strict=False)]

    def verdict(self) -> str:
        """Return in a sentence how often our differences have the paper's sign."""
        pairs = [
            (self.factor * line.against.mean, gap)
            for line in self.lines
            if line.against is not None and line.against.differences and (gap := self.printed_difference(line))
        ]
        if not pairs:
            return "No difference of the paper has one of ours beside it."
        same = sum(ours * paper > 0 for ours, paper in pairs)
        return f"{same} of {len(pairs)} differences have the sign that they have in the paper."

    def limits(self) -> list[str]:
        """Return what the numbers mean and what they leave open."""
        said = []
        if self.scale != "paper":
            said.append(
                f"Scale {self.scale}: {self.stand_ins()} The "
                "numbers cannot be compared with the paper's in their level; what can be looked at beside the paper's "
                "is the difference from the baseline, and at this scale that too is a hint at most."
            )
        worse = " Less is better: a negative difference is a gain." if self.factor < 0 else ""
        said.append(
            f"Ours: after the last epoch, mean ± sample standard deviation over {len(self.grid.seeds)} "
            f"seed{'s' if len(self.grid.seeds) != 1 else ''}; differences are paired by seed, with 95 % intervals of "
            f"Student's t.{worse} The paper's: as printed, ± the standard deviation where it prints one."
        )
        said.append(
            '"Failed" counts runs whose loss stopped being finite, that ended with an error, or that finished at '
            "twice the accuracy of guessing or less."
        )
        said += self.table.notes
        shared = self.shared()
        if shared:
            said.append(f"At this scale the same runs stand for several rows: {'; '.join(shared)}.")
        return said

    def stand_ins(self) -> str:
        """Return what is trained on and which networks stand for the paper's, as the runs' own recipes have it."""
        pairs = dict.fromkeys((self.entries[c.row, c.column].model, c.recipe.model) for c in self.grid.cells)
        others = [f"{ours} stands for the paper's {paper}" for paper, ours in pairs if ours != paper]
        own = [paper for paper, ours in pairs if ours == paper]
        if own:
            others.append(f"{' and '.join(own)} {'are' if len(own) > 1 else 'is'} as in the paper")
        recipes = [replace(c.recipe, mix=None) for c in self.grid.cells if isinstance(c.recipe, Classification)]
        trained = dict.fromkeys(f"{recipe.images_in_words()} for {texts.epochs(recipe.epochs)}" for recipe in recipes)
        return f"trained on {'; on '.join(trained)}. {'; '.join(others)}."

    def shared(self) -> list[str]:
        """Return the rows that are made of the same runs."""
        by_runs: dict[tuple[str, ...], list[str]] = {}
        for row in self.grid.rows:
            key = tuple(str(self.grid.run(c, 0).folder) for c in self.grid.cells if c.row == row)
            by_runs.setdefault(key, []).append(row)
        return [" = ".join(rows) for rows in by_runs.values() if len(rows) > 1]

    def trained(self) -> list[str]:
        """Return how each row is trained: one sentence where all rows are alike."""
        by_setting: dict[str, list[str]] = {}
        for row in self.grid.rows:
            cell = next(cell for cell in self.grid.cells if cell.row == row)
            by_setting.setdefault(cell.recipe.in_words(), []).append(row)
        if len(by_setting) == 1:
            return list(by_setting)
        return [f"{', '.join(rows)}: {setting}" for setting, rows in by_setting.items()]

    def write(self) -> None:
        """Write the table, its numbers and its pictures into the folder."""
        root = self.grid.root
        write_results(root / "results.csv", self.grid, self.lines)
        write_summary(root / "summary.csv", self.lines, [self.printed_columns(line) for line in self.lines])
        plots.draw_curves(self.grid, root / "curves.png")
        plots.draw_finals(self.grid, self.lines, root / "accuracies.png")
        differences = self.draw_differences(root / "differences.png")
        write_whole(root / "report.md", self.markdown(differences).encode())

    def printed_columns(self, line: Line) -> dict[str, str]:
        """Return what summary.csv says of the paper."""
        p, gap = self.entry(line).printed, self.printed_difference(line)
        return {
            "paper": "" if p is None else f"{p.value:g}",
            "paper_std": "" if p is None or p.std is None else f"{p.std:g}",
            "paper_difference": "" if gap is None else number(gap, 2),
            "paper_top5_error": "" if p is None or p.top5 is None else f"{p.top5:g}",
            "paper_parameters_millions": "" if p is None or p.parameters is None else f"{p.parameters:g}",
            "measure": self.table.measure,
            "model": line.cell.recipe.model,
            "data": line.cell.recipe.data,
            "norm": line.cell.recipe.norm,
        }

    def draw_differences(self, path: Path) -> bool:
        """Draw every difference from the baseline, ours beside the paper's; False where there is none."""
        lines = [line for line in self.lines if line.against is not None and line.against.differences]
        if not lines:
            return False
        figure = Figure(figsize=(7.2, 1.3 + 0.27 * len(lines)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#666666", linewidth=1)
        seen = []
        for y, line in enumerate(lines):
            assert line.against is not None
            gap, interval = self.printed_difference(line), line.against.interval
            points = [self.factor * value for value in line.against.differences.values()]
            ours = self.factor * line.against.mean
            if interval is not None and len(points) > 2:
                low, high = sorted((self.factor * interval.low, self.factor * interval.high))
                axes.plot([low, high], [y, y], color="#0072B2", linewidth=1.4)
            axes.scatter(points, [y] * len(points), s=10, color="#0072B2", alpha=0.45, linewidths=0)
            axes.scatter([ours], [y], s=34, color="#0072B2", marker="o", label="ours")
            seen += points
            if gap is not None:
                axes.scatter([gap], [y], s=34, color="#D55E00", marker="D", zorder=3, label="paper's")
                seen.append(gap)
        margin = 0.08 * (max(seen) - min(*seen, 0)) + 0.1
        axes.set_xlim(min(*seen, 0) - margin, max(*seen, 0) + margin)
        one_row = len(self.grid.rows) == 1
        names = [line.cell.column if one_row else f"{line.cell.row}: {line.cell.column}" for line in lines]
        axes.set_yticks(range(len(lines)), names, fontsize="small")
        axes.invert_yaxis()
        better = "less is better" if self.factor < 0 else "more is better"
        axes.set_xlabel(f"{self.table.measure} minus that of {self.table.baseline}, points ({better})")
        tidy(axes)
        handles = {str(h.get_label()): h for h in axes.collections if not str(h.get_label()).startswith("_")}
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2, frameon=False)
        save(figure, path)
        return True

    def title(self) -> str:
        """Return the table's name, place and subject."""
        t = self.table
        return f"{t.name} at scale {self.scale}: {t.paper.upper()}'s {t.place}, {t.title}"

    def markdown(self, differences: bool) -> str:
        """Return the report as Markdown, with the pictures that lie beside it."""
        parts = [
            f"# {self.title()}",
            f"{PAPERS[self.table.paper]}, {self.table.place}.",
        ]
        if self.left_out:
            parts.append(texts.bullets(absent(self.left_out)))
        parts += [texts.markdown(self.header(), self.rows(), left=2), self.verdict()]
        for part in further(self.table, self.lines):
            parts += [f"## {part.title}", texts.markdown(part.header, part.rows, left=2)]
        if self.complaints:
            parts += ["## Runs that failed or are missing", texts.bullets(self.complaints)]
        parts += ["## How to read it", texts.bullets(self.limits())]
        parts += ["## How it was trained", texts.bullets(self.trained())]
        if differences:
            parts += [
                "## Differences",
                "Small dots are seeds, large ones their mean, with the 95 % interval from three seeds on.",
                "![Differences, ours beside the paper's](differences.png)",
            ]
        parts += [
            "## Every run",
            "Dots are runs, thin lines connect those of a seed; beside them the mean and, from three seeds on, its "
            "95 % interval.",
            "![Test accuracy of every run](accuracies.png)",
            "## Learning curves",
            "Lines are means over seeds, bands reach from the least to the greatest.",
            "![Test error and training loss over epochs](curves.png)",
            "## Made with",
            made_with(self.command_line(), self.seconds, self.grid),
        ]
        return "\n\n".join(parts) + "\n"

    def command_line(self) -> str:
        """Return a command that makes this table."""
        return f"calibnorm table {self.table.name} --scale {self.scale} --seeds {len(self.grid.seeds)}"

    def show(self, console: Console) -> None:
        """Print the table, what it means, and where the rest is."""
        console.print()
        texts.show(console, self.title(), self.header(), self.rows(least=3), left=2)
        for part in further(self.table, self.lines):
            texts.show(console, part.title, part.header, part.rows, left=2)
        console.print(self.verdict(), highlight=False)
        for sentence in self.limits():
            console.print(f"- {sentence}", highlight=False)
        for complaint in self.complaints:
            console.print(complaint, style="red", highlight=False)
        console.print(
            f"\nReport and pictures: {self.grid.root / 'report.md'}   ({self.seconds:.0f} s)", highlight=False
        )


def absent(left_out: Mapping[str, str]) -> list[str]:
    """Return a sentence for every row that is left out; said before anything else."""
    return [f"{row}: left out. {why[0].upper()}{why[1:]}." for row, why in left_out.items()]
