"""``python -m calibnorm``: the command ``calibnorm``."""

from __future__ import annotations

import sys

from calibnorm.lab.entry import main

if __name__ == "__main__":
    sys.exit(main())
