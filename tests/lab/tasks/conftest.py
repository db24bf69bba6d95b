"""Runs are compared bit for bit here, too."""

from lab.training.conftest import one_thread

__all__ = ["collect_ignore", "one_thread"]

collect_ignore = ["angles.py"]  # looking for doctests would import the task a second time, under another name
