"""Errors that are the user's to mend: the command prints them in one line and exits with status 2."""

from __future__ import annotations


class UsageError(Exception):
    """An option or a place that cannot be used; the message names it, what came, and what to do.

    No ValueError: tyro catches those of a subcommand's settings and draws a box around them.

    Attributes:
        shared: Whether every process of a run has this error, so that process 0 alone says it.
    """

    shared = False


class RunFailed(Exception):
    """A run that cannot go on, by no mistake in its settings: the disk is full, the loss is NaN.

    The command prints the message in one line and exits with status 1; what was saved before stays.

    Attributes:
        shared: As that of UsageError.
    """

    shared = False


class Diverged(RunFailed):
    """A run whose loss or weights are NaN or infinite: it comes there again with the same settings.

    The processes look for it together.
    """

    shared = True


class Stopped(Exception):
    """A run that a signal ended after it saved where it was; exit status 128 + the signal's number.

    Args:
        number: Of the signal.
        message: Where it stopped.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.number, self.message = number, message

    def __str__(self) -> str:
        return self.message
