"""The table and the words around it, for the screen and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from calibnorm.lab.demo.config import CONDITIONS, Condition, DemoConfig
from calibnorm.lab.demo.folder import COMMAND
from calibnorm.lab.demo.gates import GATE, GateRow
from calibnorm.lab.demo.plots import title
from calibnorm.lab.demo.results import Row, half_interval

HEADER = ("norm", "accuracy (%)", "minus BN", "ms/step", "of BN's", "parameters")

CONSTANT = (
    " For practical purposes that is a constant: what IEBN gains or loses here can hardly be due to the instance."
)


@dataclass(frozen=True)
class Report:
    """Everything that the report says.

    Args:
        config: The settings that ran.
        environment: What they ran on.
        rows: The table.
        gates: What the gates of the first seed's networks look like.
        train_images: How many images were trained on.
        test_images: How many images the accuracies are measured on.
        seconds: Wall time of the whole run.
    """

    config: DemoConfig
    environment: dict[str, Any]
    rows: Sequence[Row]
    gates: Sequence[GateRow]
    train_images: int
    test_images: int
    seconds: float

    def cells(self, row: Row) -> tuple[str, ...]:
        """Return a row of the table as text."""
        spread = "" if math.isnan(row.accuracy_std) else f" ± {row.accuracy_std:.2f}"
        diverged = f" ({row.diverged} diverged)" if row.diverged else ""
        difference = "–"
        if row.differences:
            low, high = min(row.differences), max(row.differences)
            difference = f"{mean(row.differences):+.2f}"
            difference += f" [{low:+.2f}, {high:+.2f}]" if len(row.differences) > 1 else ""
        return (
            row.label,
            f"{row.accuracy:.2f}{spread}{diverged}",
            difference,
            "–" if math.isnan(row.step_ms) else f"{row.step_ms:.1f}",
            "–" if math.isnan(row.step_ratio) else f"{row.step_ratio:.2f}",
            f"{row.parameters:,}",
        )

    def rows_of(self, condition: Condition) -> list[Row]:
        """Return the table's rows for one condition."""
        return [row for row in self.rows if row.condition == condition]

    def setting(self) -> str:
        """Return one sentence about what ran."""
        c = self.config
        return (
            f"ResNet-{c.depth} of width {c.width} on {self.train_images} digits of 8 x 8 pixels, tested on "
            f"{self.test_images} others; {c.epochs} epochs of SGD, batch {c.batch_size}, "
            f"{c.seeds} seed{'s' if c.seeds > 1 else ''}, accuracy after the last epoch."
            + (" A quick run: it shows that everything works; its accuracies mean nothing." if c.quick else "")
        )

    def verdict(self, condition: Condition) -> str:
        """Return in a sentence whether accuracies in a condition differ by more than chance would make them."""
        rows = self.rows_of(condition)
        name = title(condition, self.config).capitalize()
        if not any(row.differences for row in rows):
            return f"{name}: BN and another norm were not both there, so nothing is compared."
        if self.config.seeds == 1:
            return f"{name}: a single seed can show no difference."
        bn = next(row for row in rows if row.norm == "bn")
        apart, widest = [], 0.0
        for row in rows:
            # Both accuracies are uncertain. That they share their test images can only make the true bound narrower.
            bound = math.hypot(*(half_interval(r.accuracy, self.test_images) for r in (row, bn)))
            widest = max(widest, bound) if row.differences else widest
            same_sign = row.differences and min(row.differences) * max(row.differences) > 0
            if same_sign and abs(mean(row.differences)) > bound:
                apart.append(f"{row.label} {mean(row.differences):+.2f} points (test images: ± {bound:.1f})")
        if apart:
            return f"{name}: against BN, with the same sign in every seed, {' and '.join(apart)}."
        return (
            f"{name}: no difference from BN that has one sign in every seed and is larger than what {self.test_images} "
            f"test images leave open, ± {widest:.1f} points (both accuracies' 95 % intervals; the pairing, which would "
            "narrow them, is left out)."
        )

    def limits(self) -> list[str]:
        """Return what the numbers do and do not show, one paragraph each."""
        n_a, n_b = self.config.noise
        best = max(row.accuracy for row in self.rows)
        half = half_interval(best, self.test_images)
        return [
            f"One test image is {100 / self.test_images:.2f} points. At {best:.1f} % the {self.test_images} test "
            f"images alone leave ± {half:.1f} points (95 % Wilson interval). The std over seeds leaves that out: all "
            "seeds share one test set. Norms are tested on the same images and paired by seed (same initial weights, "
            "same batches), which makes their differences steadier, but a few seeds cannot rank norms that are close. "
            "Another machine or torch version rounds differently, which training magnifies to about the seeds' spread.",
            "Images of 8 x 8 pixels, a network this small and a schedule this short say nothing about ImageNet or "
            "about fully trained networks. The recipe is the usual one for CIFAR ResNets, only shorter; it was not "
            "tuned for any norm.",
            "IEBN's gate starts at sigmoid(-1) = 0.269, so its network also starts with a smaller scale after every "
            "norm. A gain of IEBN is by itself no evidence that information about the instance helps; "
            f"`{COMMAND} --norms bn bn-gate iebn` adds BN with gamma from 0.269 as a control.",
            f"The constant noise turns the normalized x into {n_a:g} * x + {n_b:g} in every norm, in training and in "
            "testing. It is not random, and gamma and beta could undo it: BN under the attack can represent exactly "
            "what it can without. What the attack tests is how training copes with that starting point. The IEBN paper "
            "reports it for 164 layers on CIFAR-100, where BN often fails to train (its Table 2).",
            "Times are medians of forward, backward and optimizer step in one thread, the norms taking turns batch "
            "by batch. Clean BN is torch's nn.BatchNorm2d; all others, BN under noise too, are this library's layers, "
            f"here with its {self.environment['backend']} backend.",
        ]

    def gate_finding(self) -> list[str]:
        """Return how far the IEBN gates follow the image, one sentence a condition; nothing where IEBN did not run."""
        sentences = []
        for condition in CONDITIONS:
            of = [row for row in self.gates if row.quantity == GATE and row.condition == condition]
            if of:
                middle, moves = mean(row.mean for row in of), mean(row.std_over_images for row in of)
                sentences.append(
                    f"{title(condition, self.config).capitalize()}: the IEBN gate is {middle:.3f} on average over "
                    "layers and channels (it started at 0.269); from one test image to another it varies by "
                    f"{moves:.2g} (std)." + (CONSTANT if moves < 0.01 * middle and not self.config.quick else "")
                )
        return sentences

    def markdown(self) -> str:
        """Return the report as Markdown, with the pictures that lie beside it."""
        table = [f"| condition | {' | '.join(HEADER)} |", "|---|---|---:|---:|---:|---:|---:|"]
        for row in self.rows:
            table.append(f"| {title(row.condition, self.config)} | {' | '.join(self.cells(row))} |")
        parts = [
            "# calibnorm demo: BN, IEBN and RBN on handwritten digits",
            self.setting(),
            "\n".join(table),
            'Accuracies are mean ± standard deviation over seeds. "minus BN" is the difference in points with the same '
            'seed, mean and range; "of BN\'s" is the time of a training step over that of BN.',
            bullets(self.verdict(condition) for condition in CONDITIONS),
            "## What these numbers do and do not show",
            bullets(self.limits()),
            "## Learning curves",
            "Lines are means over seeds; bands reach from the least to the greatest.",
            "![Test error and training loss over epochs](curves.png)",
        ]
        if self.gates:
            parts += [
                "## Learned gates by layer",
                "Networks of seed 0. Lines are means over a layer's channels; bands hold the middle eight tenths. "
                "The IEBN gate itself is averaged over the test images.",
                "![Gates and calibration weights by layer](gates.png)",
            ]
        if finding := self.gate_finding():
            parts.append(bullets(finding))
        parts += ["## Made with", self.made_with()]
        return "\n\n".join(parts) + "\n"

    def made_with(self) -> str:
        """Return the command, the versions and the machine, and where to read more."""
        e = self.environment
        commit = f" (commit {e['commit']})" if e["commit"] else ""
        return (
            f"`{command_line(self.config)}`, {self.seconds:.0f} s, with calibnorm {e['calibnorm']}{commit}, "
            f"torch {e['torch']}, Python {e['python']}, on {e['cpu']}. "
            "Settings: config.json. Machine and versions: environment.json. Every epoch of every run: metrics.csv."
        )


def bullets(sentences: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def command_line(config: DemoConfig) -> str:
    """Return a command that runs these settings, leaving out those that have their default."""
    words = [COMMAND]
    for name, value in config.to_dict().items():
        if value == DemoConfig().to_dict()[name] or name in ("out", "quick"):
            continue
        values = value if isinstance(value, list) else [value]
        words.append(f"--{name.replace('_', '-')} " + " ".join(map(str, values)))
    return " ".join(words)
