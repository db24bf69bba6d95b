"""`calibnorm detect make-mini`: a miniature in COCO's layout."""

from __future__ import annotations

from calibnorm.lab.data.coco.folder import make_mini
from calibnorm.lab.detect.config import MiniConfig


def run(config: MiniConfig) -> int:
    """Make it, say so, and return the exit status.

    Raises:
        UsageError: It cannot be written.
    """
    make_mini(config.folder, config.train, config.val, config.seed)
    print(f"{config.folder}: {config.train} pictures to train on, {config.val} to validate on")
    return 0
