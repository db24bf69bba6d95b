"""What a result was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import calibnorm

PACKAGE = Path(calibnorm.__file__).resolve().parent


def describe_environment() -> dict[str, Any]:
    """Return versions, machine and threads, and the commit where the library runs from its git checkout."""
    return {
        "calibnorm": calibnorm.__version__,
        "commit": git_commit(),
        "backend": next(name for name, status in calibnorm.backends().items() if status.runs),
        "torch": torch.__version__,
        "numpy": package_version("numpy"),
        "scikit-learn": package_version("scikit-learn"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def named(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return an environment as a report shows it, without what is not known.

    >>> named({"cpu_count": 2, "commit": None})
    {'cpu count': '2'}
    """
    return {name.replace("_", " "): str(value) for name, value in environment.items() if value is not None}


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None: a bench runs without the lab extra."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name as well as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(package: Path = PACKAGE) -> str | None:
    """Return the commit of the checkout that holds the package as src/calibnorm, with "+changes" where files differ.

    A package in a site-packages folder that lies inside somebody else's checkout has no commit.
    """
    root = package.parent.parent
    if not (root / ".git").exists() or package != root / "src" / "calibnorm":
        return None
    try:
        head = git(root, "rev-parse", "HEAD")
        return head + ("+changes" if git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or no commit yet


def git(root: Path, *args: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()
