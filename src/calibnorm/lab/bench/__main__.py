"""``python -m calibnorm.lab.bench``: `calibnorm bench` where only torch is installed."""

from __future__ import annotations

import sys

from calibnorm.lab.bench.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
