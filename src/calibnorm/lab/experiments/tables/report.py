"""What is said of a table of a paper, with ours beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from calibnorm.lab import tasks
from calibnorm.lab.experiments import plots, texts
from calibnorm.lab.experiments.config import Common, Scale, data_words
from calibnorm.lab.experiments.report import Report
from calibnorm.lab.experiments.statistics import Sample
from calibnorm.lab.experiments.summary import Line
from calibnorm.lab.experiments.tables.definitions import Table
from calibnorm.lab.experiments.tables.published import PAPERS, Printed
from calibnorm.lab.recipes import Classification
from calibnorm.report import document, pictures
from calibnorm.report.document import Bullets, Column, Paragraph, Picture, Section
from calibnorm.report.pictures import Drawing

NOT_PRINTED = Printed(math.nan)


@dataclass(frozen=True, kw_only=True)
class TableReport(Report):
    """What is said of a table.

    Args:
        table: The table.
        scale: "tiny", "small" or "paper".
        left_out: Why entries are not there, by row.
        data_root: Where the data sets are.
    """

    table: Table
    scale: Scale
    left_out: Mapping[str, str] = field(default_factory=dict)
    data_root: Path = Common.data_root

    @property
    def title(self) -> str:
        """The table's name, place and subject."""
        t = self.table
        return f"{t.name} at scale {self.scale}: {t.paper.upper()}'s {t.place}, {t.title}"

    @cached_property
    def shown(self) -> list[Line]:
        """The lines as the paper shows them: with errors, where it has errors."""
        return [line.as_error() if self.table.shows == "error" else line for line in self.lines]

    @cached_property
    def printed(self) -> dict[tuple[str, str], Printed]:
        """The paper's numbers by row and column."""
        return {(entry.row, entry.column): entry.printed or NOT_PRINTED for entry in self.table.entries}

    def of_paper(self, line: Line) -> Printed:
        """Return what the paper prints where the line stands."""
        return self.printed[line.cell.row, line.cell.column]

    def gap(self, line: Line) -> float:
        """Return what the paper's numbers say of a column minus the row's baseline; NaN where they say nothing."""
        if line.cell.column == self.table.baseline:
            return math.nan
        return self.of_paper(line).value - self.printed.get((line.cell.row, self.table.baseline), NOT_PRINTED).value

    def findings(self) -> list[Section]:
        """Return what is left out, the table and what else the paper prints."""
        paper = Paragraph(f"{PAPERS[self.table.paper]}, {self.table.place}.", on="file")
        verdict = Paragraph(self.verdict(), on="file")
        absent_rows = Bullets(absent(self.left_out), on="file")
        return [
            Section("", [verdict, paper, absent_rows, self.main_table(), replace(verdict, on="screen")]),
            *(Section(title, [table]) for title, table in self.parts()),
        ]

    def main_table(self) -> document.Table:
        """Return the table; a row's name stands in its first line alone."""
        rows: list[list[str]] = []
        previous = None
        for line in self.shown:
            paper, gap = self.of_paper(line), self.gap(line)
            rows.append(
                [
                    "" if line.cell.row == previous else line.cell.row,
                    line.cell.column,
                    texts.average(line),
                    texts.spread(paper.value, paper.std),
                    texts.difference(line),
                    texts.difference(line, least=3),
                    texts.signed(gap),
                    texts.of_runs(line.failed + line.at_chance, line),
                ]
            )
            previous = line.cell.row
        minus = f"minus {self.table.baseline}"
        differences = (Column(minus, on="file"), Column(minus, on="screen"))
        columns = ["", self.table.shows, "ours (%)", "paper (%)", *differences, "paper", "failed"]
        return document.Table(columns, rows, left=2)

    def parts(self) -> list[tuple[str, document.Table]]:
        """Return what else the paper prints, ours beside it: parameters, top-5 errors, losses by an attack."""
        millions, top5, losses = [], [], []
        undisturbed = {line.cell.column: line.own for line in self.lines if line.cell.row == self.table.undisturbed}
        for line in self.lines:
            row, column, paper = line.cell.row, line.cell.column, self.of_paper(line)
            if paper.parameters is not None:
                ours = f"{line.parameters / 1e6:.2f}" if line.parameters else texts.NOTHING
                millions.append([row, column, line.cell.recipe.model, ours, f"{paper.parameters:.2f}"])
            if paper.top5 is not None:
                errors = {s: 100 - o.result.figures["test_top5"] for s, o in line.outcomes.items() if o.result}
                sample = Sample(errors)
                top5.append([row, column, texts.spread(sample.mean, sample.std), f"{paper.top5:.2f}"])
            if column in undisturbed and row != self.table.undisturbed:
                loss = paper.value - self.printed[str(self.table.undisturbed), column].value
                losses.append([row, column, texts.signed(line.own.minus(undisturbed[column]).mean), texts.signed(loss)])
        parts = [
            ("Parameters, millions", ["", "norm", "our network", "ours", "paper"], millions),
            ("Top-5 error", ["", "norm", "ours (%)", "paper (%)"], top5),
            (f"Accuracy minus that of {self.table.undisturbed}", ["", "norm", "ours", "paper"], losses),
        ]
        return self.figures() + [(title, document.Table(header, rows, left=2)) for title, header, rows in parts]

    def figures(self) -> list[tuple[str, document.Table]]:
        """Return what the paper prints of detectors, below ours: a table of boxes, of masks, or of both with PQ."""
        names = [name for name, _ in self.of_paper(self.lines[0]).figures]
        labels = {measure.name: measure.label for measure in tasks.of(self.lines[0].cell.recipe).measures}
        found: list[tuple[str, document.Table]] = []
        kinds = {"": "All figures"} if "test_pq" in names else {"box": "Boxes", "mask": "Masks"}
        for kind, title in kinds.items():
            own, rows = [name for name in names if kind in name], list[list[str]]()
            for line in self.lines:
                results = {s: o.result.figures for s, o in line.outcomes.items() if o.result}
                samples = [Sample({s: figures[name] for s, figures in results.items()}) for name in own]
                ours = [texts.spread(sample.mean, sample.std) for sample in samples]
                printed = dict(self.of_paper(line).figures)
                rows.append([line.cell.row, line.cell.column, "ours", *ours])
                rows.append(["", "", "paper", *(f"{printed[name]:.1f}" for name in own)])
            heads = [labels[name].removeprefix("test ") for name in own]
            found += [(title, document.Table(["", "norm", "", *heads], rows, left=3))] if own else []
        return found

    def verdict(self) -> str:
        """Return in a sentence how often our differences have the paper's sign."""
        differences = [(line.against, self.gap(line)) for line in self.shown]
        # A difference of 0 in the paper has no sign.
        pairs = [(of.mean, gap) for of, gap in differences if of and of.values and gap and not math.isnan(gap)]
        if not pairs:
            return "No difference of the paper has one of ours beside it."
        same = sum(ours * paper > 0 for ours, paper in pairs)
        return f"{same} of {len(pairs)} differences have the sign that they have in the paper."

    def limits(self) -> Section:
        """Return what the numbers mean and what they leave open."""
        sentences = []
        if self.scale != "paper":
            sentences.append(
                f"Scale {self.scale}: {self.stand_ins()} The "
                "levels of the numbers cannot be compared with the paper's. Differences from the baseline can be "
                "looked at beside the paper's, and at this scale they are hints at most."
            )
        seeds = len(self.grid.seeds)
        worse = " Less is better: a negative difference is a gain." if self.table.shows == "error" else ""
        sentences.append(
            f"Ours are those after the last epoch, mean ± sample standard deviation over "
            f"{seeds} seed{'s' if seeds != 1 else ''}; differences are paired by seed, with 95 % intervals of "
            f"Student's t.{worse} The paper's are as printed, with ± the standard deviation where it prints one."
        )
        sentences.append(
            '"Failed" counts runs whose loss stopped being finite, that ended with an error, or that finished at '
            f"{self.lines[0].measure.chance_means} or less."
        )
        sentences += self.table.notes
        if shared := self.shared():
            sentences.append(f"At this scale the same runs stand for several rows: {'; '.join(shared)}.")
        return Section("How to read it", [Bullets(sentences)])

    def stand_ins(self) -> str:
        """Return what is trained on and which networks stand for the paper's, as the runs' own recipes have it."""
        models = {(entry.row, entry.column): entry.model for entry in self.table.entries}
        pairs = dict.fromkeys((models[c.row, c.column], c.recipe.network) for c in self.grid.cells)
        others = [f"{ours} stands for the paper's {paper}" for paper, ours in pairs if ours != paper]
        own = [paper for paper, ours in pairs if ours == paper]
        if own:
            others.append(f"{' and '.join(own)} {'are' if len(own) > 1 else 'is'} as in the paper")
        trained: dict[str, None] = {}
        for recipe in (cell.recipe for cell in self.grid.cells):
            epochs = f"{recipe.epochs} epoch{'s' if recipe.epochs != 1 else ''}"
            alone = replace(recipe, mix=None) if isinstance(recipe, Classification) else recipe
            trained[f"{alone.images_in_words()} for {epochs}"] = None
        return f"trained on {'; on '.join(trained)}. {'; '.join(others)}."

    def shared(self) -> list[str]:
        """Return the rows that are made of the same runs."""
        by_runs: dict[tuple[str, ...], list[str]] = {}
        for row in self.grid.rows:
            key = tuple(str(self.grid.run(line.cell, 0).folder) for line in self.of(row))
            by_runs.setdefault(key, []).append(row)
        return [" = ".join(rows) for rows in by_runs.values() if len(rows) > 1]

    def trained(self) -> list[str]:
        """Return how each row is trained: one sentence where all rows are alike."""
        by_setting: dict[str, list[str]] = {}
        for row in self.grid.rows:
            by_setting.setdefault(self.of(row)[0].cell.recipe.in_words(), []).append(row)
        if len(by_setting) == 1:
            return list(by_setting)
        return [f"{', '.join(rows)}: {setting}" for setting, rows in by_setting.items()]

    def more_sections(self) -> list[Section]:
        """Return how the runs were trained, and every difference from the baseline, ours beside the paper's."""
        trained = Section("How it was trained", [Bullets(self.trained())], on="file")
        lines = [line for line in self.shown if line.against is not None and line.against.values]
        if not lines:
            return [trained]
        dots = Paragraph("Small dots are seeds, large ones their mean, with the 95 % interval from three seeds on.")
        picture = Picture("differences.png", "Differences, ours beside the paper's", partial(self.draw, lines))
        return [trained, Section("Differences", [dots, picture], on="file")]

    def draw(self, lines: Sequence[Line]) -> Drawing:
        """Draw the differences of lines from their baselines, ours beside the paper's."""
        one_row = len(self.grid.rows) == 1
        differences = {}
        for line in lines:
            name = line.cell.column if one_row else f"{line.cell.row}: {line.cell.column}"
            gap = self.gap(line)
            differences[name] = plots.seeds(line.against or Sample({}), printed=None if math.isnan(gap) else gap)
        better = "more is better" if lines[0].measure.higher_is_better else "less is better"
        return pictures.differences(
            differences, f"{self.table.shows} minus that of {self.table.baseline}, points ({better})"
        )

    def more_columns(self, line: Line) -> dict[str, str]:
        """Return what summary.csv says of the paper."""
        paper, gap = self.of_paper(line), self.gap(line)
        numbers = (paper.value, paper.std, paper.top5, paper.parameters)
        value, std, top5, parameters = ("" if n is None or math.isnan(n) else f"{n:g}" for n in numbers)
        return {
            "paper": value,
            "paper_std": std,
            "paper_difference": "" if math.isnan(gap) else f"{gap:.2f}",
            "paper_top5_error": top5,
            "paper_parameters_millions": parameters,
            "measure": self.table.shows,
            "model": line.cell.recipe.network,
            "data": line.cell.recipe.data,
            "norm": line.cell.recipe.norm,
        }

    def command_line(self) -> str:
        """Return a command that makes this table."""
        words = ["calibnorm", "table", self.table.name, "--scale", self.scale, "--seeds", str(len(self.grid.seeds))]
        return shlex.join([*words, *data_words(self.data_root)])


def absent(left_out: Mapping[str, str]) -> list[str]:
    """Return a sentence for every row that is left out; said before anything else."""
    return [f"{row}: left out. {texts.beginning(why)}." for row, why in left_out.items()]
