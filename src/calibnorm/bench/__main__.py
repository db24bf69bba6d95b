"""``python -m calibnorm.bench``: `calibnorm bench` where only torch is installed."""

from __future__ import annotations

import sys

from calibnorm.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
