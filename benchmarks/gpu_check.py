"""Everything about the GPU kernels in one command and under eight minutes: build, check, time, write.

    PYTHONPATH=src python benchmarks/gpu_check.py

needs torch 2.11 or newer, its triton, and this repository; nothing is installed. The kernels are compiled by Triton as
they are first used. Values of all of them are checked against the reference in float64; then layers are timed against
nn.BatchNorm2d and the authors' formulations, the most telling cases first, until the time is over; then the host's time
to launch a layer; then training steps of ResNet-50 and ResNet-164, the latter also in a CUDA graph.
gpu-layer.csv, .json and .md and gpu-host.csv in benchmarks/results carry the card's name.

With TRITON_INTERPRET=1 and no GPU it rehearses: the checks on tiny shapes, no times.

The exit status is 0; 1 where values are wrong; 2 where there is no GPU that the kernels run on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder for the tables (default: beside the script)")
    parser.add_argument("--seconds", type=float, default=450.0, help="stop timing after so long (default: 450)")
    options = parser.parse_args()
    from calibnorm.lab.bench.gpu import run

    return run(options.out, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
