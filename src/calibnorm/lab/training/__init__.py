"""Training one recipe into one folder, so that it can be killed at any moment and resumed to the same result.

Read in this order: seeds, schedule, state, average, trainee, loop, checkpoints, folder, running; beside these machine,
inputs, processes, clock, interruption, watching; command is the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibnorm.lab.training.folder import Result
    from calibnorm.lab.training.running import train

__all__ = ["Result", "train"]


def __getattr__(name: str) -> Any:
    """Import when asked for: Lightning takes seconds, and `calibnorm train --help` passes through here."""
    if name == "train":
        from calibnorm.lab.training.running import train

        return train
    if name == "Result":
        from calibnorm.lab.training.folder import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
