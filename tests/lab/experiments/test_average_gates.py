"""Trained networks tested again with every gate that of an average input."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

import calibnorm as cn
from calibnorm.lab import data
from calibnorm.lab.experiments import average_gates
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.training import train
from calibnorm.lab.training.folder import LAST, read_result
from calibnorm.lab.training.trainee import build


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Three runs of an epoch, laid out as a comparison does."""
    root = tmp_path_factory.mktemp("comparison")
    for norm, noise in (("bn", None), ("iebn", (0.8, 0.5)), ("rbn", None)):
        recipe = Recipe(model="resnet11", data="digits", epochs=1, norm=norm, noise=noise, train_images=640)
        where = root / ("clean" if noise is None else "noise_0.8,0.5") / norm / "seed0"
        train(recipe, where, data_root=Path("data"), accelerator="cpu")
    return root


def test_table(comparison, capsys):
    assert average_gates.main([str(comparison)]) == 0
    with (comparison / average_gates.TABLE).open(newline="", encoding="utf-8") as file:
        rows = {(row["condition"], row["norm"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {("clean", "rbn"), ("noise 0.8,0.5", "iebn")}
    for (condition, norm), row in rows.items():
        folder = comparison / condition.replace(" ", "_") / norm / "seed0"
        assert float(row["accuracy"]) == pytest.approx(read_result(folder).test_accuracy, abs=1e-9)
        assert float(row["lost"]) == pytest.approx(float(row["accuracy"]) - float(row["average_gates"]))
        assert (row["spread"] == "") == (norm == "rbn")
    assert "gates vary by" in capsys.readouterr().out


def test_spread_and_accuracy(comparison):
    """Against gates computed one by one, in a network whose gates are made to matter."""
    folder = comparison / "noise_0.8,0.5" / "iebn" / "seed0"
    recipe = Recipe(model="resnet11", data="digits", epochs=1, norm="iebn", noise=(0.8, 0.5), train_images=640)
    network = build(recipe, 10, 1)
    network.load_state_dict(torch.load(folder / LAST, weights_only=True)["network"])
    images = data.load("digits", Path("data"), train_images=640)
    feed = data.test_feed(images, batch_size=100, device="cpu")
    with torch.no_grad():
        network.eval()
        pixels, labels = (torch.cat(parts) for parts in zip(*feed, strict=True))
        layers = [layer for layer in network.modules() if isinstance(layer, cn.IEBN2d)]
        seen = {}
        hooks = [layer.register_forward_pre_hook(lambda m, x: seen.__setitem__(m, x[0])) for layer in layers]
        scores = network(pixels)
        for hook in hooks:
            hook.remove()
        shares = []
        for layer, x in seen.items():
            gate = torch.sigmoid(layer.gate_weight * x.mean((2, 3)) + layer.gate_bias)
            shares += (gate.std(0) / gate.mean(0)).tolist()
    with average_gates.GateSpread(network) as spread:
        accuracy = average_gates.accuracy(network, feed)
    assert accuracy == pytest.approx(100 * (scores.argmax(1) == labels).double().mean().item())
    assert spread.value() == pytest.approx(math.fsum(shares) / len(shares), rel=1e-4)
    assert all(not layer._forward_pre_hooks for layer in layers)


def test_nothing_to_test(tmp_path, capsys):
    assert average_gates.main([str(tmp_path)]) == 2
    assert "holds no finished run of iebn, rbn or se" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["config.json", "last.pt", None])
def test_a_run_that_is_not_whole(comparison, tmp_path, capsys, damaged):
    folder = tmp_path / "clean" / "iebn" / "seed0"
    folder.mkdir(parents=True)
    for name in ("config.json", "result.json"):
        (folder / name).write_bytes((comparison / "clean" / "rbn" / "seed0" / name).read_bytes())
    if damaged is not None:
        (folder / damaged).write_text("{")
    assert average_gates.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"{damaged or 'last.pt'}: is missing or damaged" in message
    assert message.count("\n") == 1
