"""How much of a trained network's accuracy hangs on its gates following the image.

    python -m calibnorm.lab.experiments.average_gates runs/compare/NAME [--data-root data]

Every finished run of a comparison whose norm has gates is tested twice: as it was trained, and as the plain BatchNorm
that ``calibnorm.revert(network, lossy=True)`` makes of it. What the second loses is what the trained gates took from
each image; it says nothing of what they did during training. m is the mean of an image's channel, and running
statistics, noise, gamma and beta stay as they are. Held constant is, in every layer,

- IEBN: the gate, at its value for m = running mean (the gate of the average m, not the average of the gates);
- SE after BN: the gate, at its value for the average of BN's output, beta (gamma N_b + beta under noise);
- RBN's scaling calibration: the gate, at its value for the average K_s of a standardized feature, which is 0 for the
  mean (N_b under noise) and, not quite an average, 1 for the standard deviation (``|N_a|``);
- RBN's centering calibration: the shift w_m m, at w_m times the average m, which is the running mean divided by
  1 + w_m. That is exact for the mean statistic. With any other K_m (``center_stat=``) the shift is left out and the
  running mean stays, so part of what is lost is a wrong mean.

Not held: the running variance. It stays that of the feature whose centre moves: the variance inside images, plus
(1 + w_m)^2 times that of m over images; with the centre held, it would be without the factor. It is the same for every
image, so nothing that the gates take from one remains, but statistics were not estimated anew, and RBN's loss also has
what that costs. So RBN with both calibrations has a third test: the scaling gate alone is held, the centre moves as in
training, and the variance is its own.
"""

from __future__ import annotations

import argparse
import csv
import pickle
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab import data, models, tasks
from calibnorm.lab.experiments.grid import condition_name
from calibnorm.lab.training.folder import CONFIG, LAST, RESULT, read_recipe
from calibnorm.lab.training.learner import initial_network
from calibnorm.methods import IEBN, RBN
from calibnorm.nn import CalibratedNorm

TABLE = "average_gates.csv"


@dataclass(frozen=True)
class Row:
    """One line of average_gates.csv.

    Args:
        condition: "clean" or the noise.
        norm: The run's norm.
        seed: The run's seed.
        accuracy: Test accuracy as trained, percent.
        average_gates: Test accuracy with every gate the constant of an average input, percent.
        lost: The first minus the second.
        spread: For IEBN: the standard deviation of a gate over the test images divided by its mean, averaged over all
            channels and layers; else empty.
        average_scale: For RBN with both calibrations: test accuracy with the scaling gate alone held; else empty.
    """

    condition: str
    norm: str
    seed: int
    accuracy: float
    average_gates: float
    lost: float
    spread: float | None
    average_scale: float | None


def measure(folder: Path, data_root: Path) -> Row:
    """Test a finished run with its gates and without.

    Args:
        folder: The run's.
        data_root: Where data sets lie.

    Raises:
        UsageError: The run's files are not there or not whole, its images are missing, or it has SE without BatchNorm.
    """
    recipe = read_recipe(folder)
    if recipe is None:
        raise UsageError(f"{folder}: holds no run")
    task = tasks.of(recipe)
    images = task.feeds(data_root, tasks.Place(device=torch.device("cpu"), rank=0, world=1), None)
    network = initial_network(task, images)
    try:
        network.load_state_dict(torch.load(folder / LAST, map_location="cpu", weights_only=True)["network"])
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{folder / LAST}: is missing or damaged, so the run cannot be tested; train it again"
        ) from error
    with GateSpread(network) as spread:
        trained = accuracy(network, images.test)
    scale = accuracy(network, images.test) if hold_scale(network) else None
    cn.revert(network, lossy=True)
    if any(isinstance(module, CalibratedNorm) and module.gates() for module in network.modules()):
        raise UsageError(f"{folder}: {recipe.model} has SE without BatchNorm, whose gates cannot be held; leave it out")
    averaged = accuracy(network, images.test)
    images.close()
    condition = condition_name(recipe.noise)
    lost = trained - averaged
    return Row(condition, recipe.norm, recipe.seed, trained, averaged, lost, spread.value(), scale)


@torch.no_grad()
def hold_scale(network: nn.Module) -> bool:
    """Give RBN's scaling gates the value that `calibnorm.revert` would, in place; return whether one has a centre."""
    layers = [m for m in network.modules() if isinstance(m, cn.RBN2d) and "scale_weight" in m.gates()]
    for layer in layers:
        assert isinstance(layer.method, RBN)
        n_a, n_b = layer.noise if layer.noise is not None and layer.noise_in == "always" else (1.0, 0.0)
        average = n_b if layer.method.scale_stat.endswith("mean") else abs(n_a)
        gates = layer.gates()
        gates["scale_bias"].add_(average * gates["scale_weight"])
        gates["scale_weight"].zero_()
    return any("center_weight" in layer.gates() for layer in layers)


@torch.no_grad()
def accuracy(network: nn.Module, feed: data.Feed[data.ImageBatch]) -> float:
    """Return the share of the feed's images, in percent, that the network gets right."""
    network.eval()
    hits = images = 0
    for batch, labels in feed:
        hits += int((network(batch).argmax(1) == labels).sum())
        images += len(labels)
    return 100 * hits / images


class GateSpread:
    """Watches the gates of a network's IEBN layers while the context is open.

    Args:
        network: Whose layers; others than IEBN with the linear operator are passed over.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = [m for m in network.modules() if isinstance(m, cn.IEBN2d) and "gate_weight" in m.gates()]
        self._gates: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in self._layers}

    def __enter__(self) -> GateSpread:
        self._hooks = [layer.register_forward_pre_hook(self._see) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, cn.IEBN2d)
        assert isinstance(layer.method, IEBN)
        self._gates[layer].append(layer.method.gate(inputs[0].mean((2, 3)), layer.gates()))

    def value(self) -> float | None:
        """Return std over images / mean, averaged over channels and layers; None where there are no gates."""
        if not self._layers:
            return None
        shares = []
        for seen in self._gates.values():
            gate_NC = torch.cat(seen)
            shares.append(gate_NC.std(0) / gate_NC.mean(0))
        return torch.cat(shares).mean().item()


def gated_runs(root: Path) -> tuple[list[Path], int]:
    """Return the folders of a comparison's finished runs whose norm is calibrated by the image, and how many are not.

    Raises:
        UsageError: There are no such runs.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: is no folder; name a comparison's, such as runs/compare/NAME")
    runs = [config.parent for config in sorted(root.glob(f"*/*/seed*/{CONFIG}"))]
    recipes = {run: recipe for run in runs if (recipe := read_recipe(run))}
    norms = {run: models.parse_norm(recipe.norm).method for run, recipe in recipes.items()}
    gated = [run for run in runs if norms[run] in ("iebn", "rbn", "se")]
    finished = [run for run in gated if (run / RESULT).exists()]
    if not finished:
        found = (
            f"it has {len(gated)} unfinished" if gated else f"its runs are of {', '.join(sorted({*norms.values()}))}"
        )
        reason = found if runs else "name a comparison's folder"
        raise UsageError(f"{root}: holds no finished run of iebn, rbn or se; {reason}")
    return finished, len(gated) - len(finished)


def main(args: Sequence[str]) -> int:
    """Measure a comparison's runs, print a line each and write the table into its folder."""
    parser = argparse.ArgumentParser(description="Test trained networks with every gate that of an average input.")
    parser.add_argument("comparison", type=Path, help="folder of a comparison, such as runs/compare/fashion-study")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets")
    options = parser.parse_args(args)
    console = Console()
    try:
        runs, unfinished = gated_runs(options.comparison)
        rows = [measure(run, options.data_root) for run in track(runs, "testing", console=console)]
    except UsageError as error:
        print(f"average_gates: {error}", file=sys.stderr)
        return 2
    if unfinished:
        console.print(f"{unfinished} unfinished runs are left out", style="yellow", highlight=False)
    for row in rows:
        spread = "" if row.spread is None else f"   gates vary by {100 * row.spread:.3g} % of their mean"
        scale = "" if row.average_scale is None else f"   {row.average_scale:.2f} % where the centre moves"
        console.print(
            f"{row.condition}  {row.norm}  seed {row.seed}: {row.accuracy:.2f} %, {row.average_gates:.2f} % with "
            f"average gates{spread}{scale}",
            highlight=False,
        )
    try:
        with (options.comparison / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(Row))
            writer.writerows(astuple(row) for row in rows)
    except OSError as error:  # what was measured has been printed
        print(f"average_gates: {options.comparison / TABLE}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
