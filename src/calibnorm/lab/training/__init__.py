"""Training one recipe into one folder, so that it can be killed at any moment and resumed to the same result.

Read in this order: seeds, schedule, state, trainee, loop, checkpoints, folder, running; beside these inputs, processes,
clock, interruption, watching; command is the command line.
"""

from calibnorm.lab.training.folder import Result
from calibnorm.lab.training.running import train

__all__ = ["Result", "train"]
