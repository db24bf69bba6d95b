"""What the demo concludes from made-up figures, and the environment that it writes down."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

import calibnorm
from calibnorm.lab.demo.config import DemoConfig
from calibnorm.lab.demo.gates import GATE, GateRow
from calibnorm.lab.demo.report import CONSTANT, Report
from calibnorm.lab.demo.results import Row, half_interval, summarize
from calibnorm.lab.demo.training import Epoch
from calibnorm.report import environment


def report(iebn: list[float], gate_std: float = 0.0) -> Report:
    """Return a report in which BN has 90 % with every seed."""
    history = [
        Epoch("clean", norm, seed, 1, 0.1, value, 5.0)
        for norm, values in (("bn", [90.0] * len(iebn)), ("iebn", iebn))
        for seed, value in enumerate(values)
    ]
    rows = summarize(history, {"bn": 1, "iebn": 2}, conditions=("clean",))
    gates = [GateRow("clean", "iebn", 1, "bn1", GATE, 0.3, 0.2, 0.4, gate_std)]
    return Report(DemoConfig(seeds=len(iebn)), {}, rows, gates, 1000, 600, 1.0)


@pytest.mark.parametrize(
    ("iebn", "shown"),
    [
        ([96.0, 97.0, 98.0], True),
        ([80.0, 81.0, 82.0], True),
        ([92.0, 92.0, 92.0], False),  # inside the chance of 600 test images
        ([99.0, 99.0, 89.0], False),  # one seed says otherwise
    ],
)
def test_only_a_clear_difference_is_called_one(iebn: list[float], shown: bool) -> None:
    text = report(iebn).verdict("clean")
    assert ("no difference" not in text) == shown
    assert (f"{sum(iebn) / 3 - 90:+.2f} points" in text) == shown


def test_a_constant_gate_is_called_one() -> None:
    assert CONSTANT in report([90.0, 90.0], gate_std=0.0029).gate_finding()[0]
    assert CONSTANT not in report([90.0, 90.0], gate_std=0.0031).gate_finding()[0]


def test_wilson_interval() -> None:
    # No success in 10 trials: the 95 % score interval is 0 to z^2 / (10 + z^2) = 0.2775.
    assert half_interval(0, 10) == pytest.approx(100 * 0.2775 / 2, abs=0.01)


def test_rows_pair_by_seed_and_take_the_last_epoch() -> None:
    history = [
        Epoch("clean", "bn", 1, 1, 1.0, 50.0, 4.0),
        Epoch("clean", "bn", 1, 2, 1.0, 80.0, 6.0),
        Epoch("clean", "bn", 0, 1, 1.0, 70.0, float("nan")),
        Epoch("clean", "rbn", 0, 1, float("inf"), 75.0, 10.0),
        Epoch("clean", "rbn", 1, 1, 1.0, 90.0, 10.0),
    ]
    bn, rbn = summarize(history, {"bn": 3, "rbn": 4}, conditions=("clean",))
    assert bn == Row("clean", "bn", (70.0, 80.0), (), 5.0, 1.0, 3, 0)
    assert rbn == Row("clean", "rbn", (75.0, 90.0), (5.0, 10.0), 10.0, 2.0, 4, 1)


def test_commit_is_that_of_calibnorms_own_checkout(tmp_path: Path) -> None:
    package = tmp_path / "src" / "calibnorm"
    package.mkdir(parents=True)
    assert environment.git_commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert environment.git_commit(package) is None  # no commit yet
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    head = environment.git_commit(package)
    assert head is not None
    assert len(head) == 40
    (package / "new.py").write_text("")
    assert environment.git_commit(package) == f"{head}+changes"
    elsewhere = tmp_path / "lib" / "site-packages" / "calibnorm"  # installed inside somebody else's checkout
    elsewhere.mkdir(parents=True)
    assert environment.git_commit(elsewhere) is None


def test_cpu_name_without_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.cpu_name()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert environment.cpu_name() == (platform.processor() or platform.machine())


def test_environment_names_the_version() -> None:
    assert environment.describe_environment()["calibnorm"] == calibnorm.__version__
