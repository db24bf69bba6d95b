"""Groups of processes that tests start."""

from __future__ import annotations

import os
import time


def is_there(group: int) -> bool:
    """Return whether a group still has a process after half a minute; init takes a moment to bury orphans."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
