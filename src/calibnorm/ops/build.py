"""The command ``python -m calibnorm.ops.build``: build the CPU kernels beside their sources, or say why that fails."""

from __future__ import annotations

import sys

from calibnorm.ops.cpu.build import SOURCES, BuildError, build

if __name__ == "__main__":
    try:
        print(f"calibnorm: built {build(SOURCES)}")
    except BuildError as error:
        sys.exit(f"calibnorm: {error}")
