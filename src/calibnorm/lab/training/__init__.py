"""Training one recipe into one folder, so that it can be killed at any moment and resumed to the same result.

Read in this order: seeds, schedule, state, checkpoints, folder, loop.
"""

from calibnorm.lab.training.folder import Result
from calibnorm.lab.training.loop import train

__all__ = ["Result", "train"]
