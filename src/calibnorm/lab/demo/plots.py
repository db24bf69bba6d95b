"""The two pictures of a demo run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calibnorm.lab.demo.config import CONDITIONS, IEBN_INITIAL_GATE, VARIANTS, Condition, DemoConfig, NormName
from calibnorm.lab.demo.gates import GATE, GateRow
from calibnorm.lab.demo.training import Epoch
from calibnorm.lab.pictures import save, tidy

# Okabe and Ito's colours, which colour-blind readers can tell apart; marks and dashes serve where colour is missing.
STYLES: dict[NormName, dict[str, str]] = {
    "bn": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "iebn": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "rbn": {"color": "#0072B2", "marker": "^", "linestyle": "-"},
    "bn-gate": {"color": "#CC79A7", "marker": "v", "linestyle": ":"},
}
CONDITION_STYLES: dict[Condition, dict[str, str]] = {
    "clean": {"color": "#009E73", "marker": "o"},
    "noise": {"color": "#AA4499", "marker": "s"},
}
# What each quantity is called in the papers, where it starts, and its norm.
QUANTITIES: dict[str, tuple[str, float, NormName]] = {
    "gate_weight": (r"gate_weight  $\hat{g}$", 0.0, "iebn"),
    "gate_bias": (r"gate_bias  $\hat{b}$", -1.0, "iebn"),
    GATE: (r"gate  $\sigma(\hat{g}\,m+\hat{b})$", IEBN_INITIAL_GATE, "iebn"),
    "center_weight": ("center_weight  $w_m$", 0.0, "rbn"),
    "scale_weight": ("scale_weight  $w_v$", 0.0, "rbn"),
    "scale_bias": ("scale_bias  $w_b$", 1.0, "rbn"),
}


def title(condition: Condition, config: DemoConfig) -> str:
    """Return how pictures call a condition."""
    n_a, n_b = config.noise
    return "clean" if condition == "clean" else f"constant noise attack ({n_a:g}, {n_b:g})"


def draw_curves(history: Sequence[Epoch], config: DemoConfig, test_images: int, path: Path) -> None:
    """Draw test error and training loss over epochs: lines are means over seeds, bands reach from least to greatest."""
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    grid = figure.subplots(2, len(CONDITIONS), sharex=True, sharey="row")
    for column, condition in enumerate(CONDITIONS):
        for norm in config.norms:
            runs = [e for e in history if e.condition == condition and e.norm == norm]
            epochs = range(1, config.epochs + 1)
            for axes, values in (
                # Accuracies crowd below 100 %; the error on a logarithmic scale spreads them. Such a scale cannot show
                # a perfect score, so that is drawn as half an image wrong.
                (grid[0][column], [[error(e, test_images) for e in runs if e.epoch == n] for n in epochs]),
                (grid[1][column], [[e.train_loss for e in runs if e.epoch == n] for n in epochs]),
            ):
                style = STYLES[norm]
                middle = [mean(at_epoch) for at_epoch in values]
                axes.plot(epochs, middle, **style, markersize=5, linewidth=1.8, label=VARIANTS[norm].label)
                low, high = [min(at_epoch) for at_epoch in values], [max(at_epoch) for at_epoch in values]
                axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        grid[0][column].set_title(title(condition, config))
        grid[1][column].set_xlabel("epoch")
    for axes, label in zip(grid[:, 0], ("test error (%)", "training loss"), strict=True):
        axes.set_ylabel(label)
    for axes in grid.flat:
        # A logarithmic axis cannot be drawn where every run diverged and no loss is a number.
        if any(math.isfinite(value) for line in axes.get_lines() for value in line.get_ydata()):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter("{x:g}")
        tidy(axes)
    figure.align_ylabels()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, path)


def error(epoch: Epoch, test_images: int) -> float:
    """Return the test error in percent, at least that of half an image."""
    return max(100 - epoch.test_accuracy, 100 * 0.5 / test_images)


def draw_gates(rows: Sequence[GateRow], config: DemoConfig, path: Path) -> None:
    """Draw the learned quantities by layer: lines are means over channels, bands hold eight tenths of the channels."""
    norms = [norm for norm in config.norms if any(row.norm == norm for row in rows)]
    figure = Figure(figsize=(max(6.4, 4.8 * len(norms)), 7.4), layout="constrained")
    grid = figure.subplots(3, len(norms), sharex=True, squeeze=False)
    for column, norm in enumerate(norms):
        names = [quantity for quantity, (_, _, owner) in QUANTITIES.items() if owner == norm]
        for axes, quantity in zip(grid[:, column], names, strict=True):
            name, start, _ = QUANTITIES[quantity]
            axes.axhline(start, color="#666666", linestyle=":", linewidth=1.4, label="initial value")
            for condition in CONDITIONS:
                of = [r for r in rows if (r.norm, r.quantity, r.condition) == (norm, quantity, condition)]
                depth, style, label = [r.depth for r in of], CONDITION_STYLES[condition], title(condition, config)
                axes.plot(depth, [r.mean for r in of], **style, markersize=4, linewidth=1.6, label=label)
                low, high = [r.p10 for r in of], [r.p90 for r in of]
                axes.fill_between(depth, low, high, color=style["color"], alpha=0.18, linewidth=0)
            axes.set_ylabel(name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            tidy(axes)
        grid[0][column].set_title(VARIANTS[norm].label)
        grid[-1][column].set_xlabel("norm layer, from input to output")
    figure.align_ylabels()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, path)
