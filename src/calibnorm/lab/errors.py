"""Errors that are the user's to mend: the command prints them in one line and exits with status 2."""

from __future__ import annotations


class UsageError(Exception):
    """An option or a place that cannot be used; the message names it, what came, and what to do.

    No ValueError: tyro catches those of a subcommand's settings and draws a box around them.
    """
