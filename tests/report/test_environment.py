"""The environment that results write down."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

import calibnorm
from calibnorm.report import environment


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
