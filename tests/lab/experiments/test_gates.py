"""Trained networks tested again with every gate that of an average input."""

from __future__ import annotations

import csv
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

import calibnorm as cn
from calibnorm.lab import data
from calibnorm.lab.experiments import gates
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training import train
from calibnorm.lab.training.folder import LAST, read_result
from lab.calling import main
from lab.training import tiny


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Three runs of an epoch, laid out as a comparison does."""
    root = tmp_path_factory.mktemp("comparison")
    for norm, noise in (("bn", None), ("iebn", (0.8, 0.5)), ("rbn", None)):
        recipe = Classification(model="resnet11", data="digits", epochs=1, norm=norm, noise=noise, train_images=640)
        where = root / ("clean" if noise is None else "noise_0.8,0.5") / norm / "seed0"
        train(recipe, where, data_root=Path("data"), accelerator="cpu")
    return root


def test_table(comparison, capsys):
    assert main(["inspect", "gates", str(comparison)]) == 0
    with (comparison / gates.TABLE).open(newline="", encoding="utf-8") as file:
        rows = {(row["condition"], row["norm"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {("clean", "rbn"), ("noise 0.8,0.5", "iebn")}
    for (condition, norm), row in rows.items():
        folder = comparison / condition.replace(" ", "_") / norm / "seed0"
        assert float(row["as_trained"]) == pytest.approx(read_result(folder).test_accuracy, abs=1e-9)
        assert float(row["lost"]) == pytest.approx(float(row["as_trained"]) - float(row["average_gates"]))
        assert float(row["spread"]) > 0
        assert (row["average_scale"] == "") == (norm != "rbn")
        assert 0 <= float(row["instance_share"]) <= 1
    assert "Trained gates, held constant" in capsys.readouterr().out


def test_spread_and_figure(comparison):
    """Against gates computed one by one."""
    folder = comparison / "noise_0.8,0.5" / "iebn" / "seed0"
    recipe = Classification(model="resnet11", data="digits", epochs=1, norm="iebn", noise=(0.8, 0.5), train_images=640)
    network = tiny.network(recipe)
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
            gate = torch.sigmoid(layer.gate_weight * x.double().mean((2, 3)) + layer.gate_bias)
            shares += (gate.std(0) / gate.mean(0)).tolist()
    row, measure = gates.measure(folder, Path("data"))
    assert measure.name == "test_accuracy"
    assert row.as_trained == pytest.approx(100 * (scores.argmax(1) == labels).double().mean().item())
    assert row.spread == pytest.approx(math.fsum(shares) / len(shares), rel=1e-3)


def copied(comparison, root, norm, *, unfinished=False):
    folder = root / "clean" / norm / "seed0"
    shutil.copytree(comparison / "clean" / norm / "seed0", folder)
    if unfinished:
        (folder / "result.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda comparison, root: root.rmdir(), "is no folder; name a comparison's"),
        (lambda comparison, root: copied(comparison, root, "bn"), "of iebn, rbn or se; its runs are of bn"),
        (lambda comparison, root: copied(comparison, root, "rbn", unfinished=True), "or se; it has 1 unfinished"),
    ],
)
def test_what_cannot_be_tested_is_said_in_a_line(comparison, tmp_path, capsys, spoil, said):
    root = tmp_path / "given"
    root.mkdir()
    spoil(comparison, root)
    assert main(["inspect", "gates", str(root)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_settings_of_another_version_are_named_with_their_run(comparison, tmp_path, capsys):
    copied(comparison, tmp_path, "rbn")
    (tmp_path / "clean" / "rbn" / "seed0" / "config.json").write_text('{"speed": 3}')
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    assert f"{tmp_path}/clean/rbn/seed0/config.json: speed is no setting" in capsys.readouterr().err


def test_unfinished_runs_and_a_folder_that_cannot_be_written_are_said(comparison, tmp_path, capsys):
    copied(comparison, tmp_path, "rbn")
    shutil.copytree(tmp_path / "clean" / "rbn" / "seed0", tmp_path / "clean" / "rbn" / "seed1")
    (tmp_path / "clean" / "rbn" / "seed1" / "result.json").unlink()
    (tmp_path / gates.TABLE).mkdir()
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "1 unfinished runs are left out" in said.out
    assert f"{tmp_path}: cannot be written (Is a directory); make room, or choose another" in said.err


def test_gates_that_cannot_be_held_are_not_taken_for_nothing(tmp_path, capsys):
    """SE alone in the branches of a PreResNet: there is no BatchNorm to go back to."""
    recipe = Classification(model="preresnet11", data="digits", epochs=1, norm="se", train_images=128)
    train(recipe, tmp_path / "clean" / "se" / "seed0", data_root=Path("data"), accelerator="cpu")
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    assert "preresnet11 has SE without BatchNorm" in capsys.readouterr().err


def test_nothing_to_test(tmp_path, capsys):
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    assert "holds no finished run of iebn, rbn or se" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["config.json", "last.pt", None])
def test_a_run_that_is_not_whole(comparison, tmp_path, capsys, damaged):
    folder = tmp_path / "clean" / "iebn" / "seed0"
    folder.mkdir(parents=True)
    for name in ("config.json", "result.json"):
        (folder / name).write_bytes((comparison / "clean" / "rbn" / "seed0" / name).read_bytes())
    if damaged is not None:
        (folder / damaged).write_text("{")
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert re.search(rf"{damaged or 'last.pt'}: is (missing or )?damaged", message)
    assert message.count("\n") == 1
