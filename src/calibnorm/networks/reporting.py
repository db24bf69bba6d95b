"""How a function that changes a network tells what it did: to the log, and to the ``report`` that its caller gives."""

from __future__ import annotations

import logging
from collections.abc import Callable

Report = Callable[[str], object] | None

log = logging.getLogger("calibnorm")


def check_report(report: Report) -> None:
    """Refuse what cannot be called with a text."""
    if report is not None and not callable(report):
        raise TypeError(f"report={report!r} must be a function of a text, such as print")


def tell(text: str, report: Report) -> None:
    """Log the text, and hand it to the caller's function."""
    log.info("%s", text)
    if report is not None:
        report(text)
