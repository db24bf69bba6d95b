"""Calling the command."""

from __future__ import annotations

from collections.abc import Sequence

from calibnorm.lab import cli


def main(args: Sequence[str]) -> int | str | None:
    """Return the exit status, whether main returns it or tyro raises it."""
    try:
        return cli.main(args)
    except SystemExit as stop:
        return stop.code
