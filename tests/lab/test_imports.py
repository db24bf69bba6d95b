"""What a command imports before it has to: lightning and torchvision take seconds, which a typo must not cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from calibnorm.lab import entry

# One process for all, because importing torch is most of each step. A step sees what those before it have imported.
STEPS = """
import json, sys
seen = {}

import calibnorm, calibnorm.lab.entry
seen["entry"] = sorted(sys.modules)

import calibnorm.lab.data
seen["data"] = sorted(sys.modules)

from calibnorm.lab import cli
try:
    cli.main(["train", "digits-tiny", "--help"])
except SystemExit:
    pass
seen["help"] = sorted(sys.modules)

import calibnorm.lab.tasks.classify
seen["task"] = sorted(sys.modules)

for wrong in ("--model=resnet12", "--data=nist", "--stages=stage9", "--norm=xbn", "--precision=float16"):
    assert cli.main(["train", "digits-tiny", "--accelerator", "cpu", wrong]) == 2
seen["typos"] = sorted(sys.modules)

with open(sys.argv[1], "w") as file:
    json.dump(seen, file)
"""


@dataclass(frozen=True)
class Done:
    modules: dict[str, set[str]]
    errors: list[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The names in sys.modules after each step, and the lines on standard error."""
    path: Path = tmp_path_factory.mktemp("imports") / "seen.json"
    ran = subprocess.run([sys.executable, "-c", STEPS, str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    return Done({step: set(names) for step, names in found.items()}, ran.stderr.splitlines())


def test_import_needs_torch_alone_and_entry_nothing_of_the_lab(done: Done) -> None:
    modules = done.modules["entry"]
    # numpy is left out: torch itself imports it where it is installed.
    assert modules & set(entry.LAB_MODULES) <= {"numpy"}
    assert {name for name in modules if name.startswith("calibnorm.lab.")} == {"calibnorm.lab.entry"}


def test_importing_the_sets_brings_no_other_library(done: Done) -> None:
    assert not {"torchvision", "sklearn", "PIL", "lightning"} & done.modules["data"]


def test_help_does_not_import_what_training_needs(done: Done) -> None:
    assert not {"lightning", "torchvision", "timm", "sklearn", "matplotlib"} & done.modules["help"]


def test_a_task_is_checked_without_lightning(done: Done) -> None:
    assert "calibnorm.lab.tasks.classify" in done.modules["task"]
    assert "lightning" not in done.modules["task"]


def test_a_typo_is_found_without_waiting_for_lightning(done: Done) -> None:
    assert "lightning" not in done.modules["typos"]
    assert len(done.errors) == 5
