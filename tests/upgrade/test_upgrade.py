"""What was written with an earlier release works with this one: write.py made the folders, each with its release."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import calibnorm as cn
from calibnorm.lab import cli
from calibnorm.lab.training.trained import trained
from upgrade.write import METHODS, RUN, plain

RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if path.name[0].isdigit())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_pickled_networks_say_what_they_said_and_train_on(release: Path, method: str) -> None:
    network = torch.load(release / "networks.pt", weights_only=False)[method]
    known = torch.load(release / "scores.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(network(known["images"]), known["scores"][method], rtol=1e-4, atol=1e-5)
    network.train()(known["images"]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_plans_rebuild_the_networks_that_checkpoints_fit(release: Path, method: str) -> None:
    plan = json.loads((release / "plans.json").read_text())[method]
    network = cn.convert(plain(), plan).eval()
    network.load_state_dict(torch.load(release / "states.pt", weights_only=True)[method])
    known = torch.load(release / "scores.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(network(known["images"]), known["scores"][method], rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_opened_and_tests_as_it_did(release: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(release / "finished", tmp_path / "finished")
    with trained(folder, tmp_path) as of:
        assert of.headline() == json.loads((folder / "result.json").read_text())["test_accuracy"]


def test_a_stopped_run_goes_on_to_the_end_of_the_one_that_was_not(release: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(release / "stopped", tmp_path / "stopped")
    assert cli.main(["train", *RUN, "--out", str(folder)]) == 0
    ours, theirs = (rows(path) for path in (folder / "metrics.csv", release / "finished" / "metrics.csv"))
    assert ours[0] == theirs[0]
    assert float(ours[1]["train_loss"]) == pytest.approx(float(theirs[1]["train_loss"]), rel=1e-4)
    assert len(ours) == len(theirs) == 2


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
