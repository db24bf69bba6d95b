"""Runs are compared bit for bit here, too."""

from lab.training.conftest import one_thread

__all__ = ["one_thread"]
