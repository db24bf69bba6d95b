"""Training one recipe into one folder, so that it can be killed at any moment and resumed to the same result.

Nothing here says what is learned: that is the task's (`calibnorm.lab.tasks`). Read in this order: seeds, schedule,
progress, average, learner, loop, checkpoints, folder, run; beside these machine, processes, meetings, ending, clock,
interruption, watchers, noise; command is the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibnorm.lab.training.folder import Result
    from calibnorm.lab.training.run import train

__all__ = ["Result", "train"]


def __getattr__(name: str) -> Any:
    """Import when asked for: Lightning takes seconds, and `calibnorm train --help` passes through here."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'run' if name == 'train' else 'folder'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
