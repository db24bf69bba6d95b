"""Times this library's layers against nn.BatchNorm2d on shapes of ResNets: `make bench`.

The layers take turns, so that what else the machine does falls on all alike. Ratios travel between machines,
absolute times do not. Writes benchmarks/results/layer.csv and prints the ratios.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import itertools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import calibnorm as cn

HERE = Path(__file__).resolve().parent
# A fresh output costs page faults that hide everything else, for all layers; glibc reads these when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "nn.BatchNorm2d": nn.BatchNorm2d,
    "cn.BN2d": cn.BN2d,
    "cn.IEBN2d": cn.IEBN2d,
    "cn.RBN2d": cn.RBN2d,
}
# CIFAR ResNets' three stages at batch 128, then the first and the last stage of an ImageNet ResNet at batch 32.
SHAPES = ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (32, 64, 56, 56), (32, 512, 7, 7))
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# Tensors read or written, in units of the input, by a layer that reads and writes no more than it must (docs of the
# design: 3 forward, 5 backward). The column gb_per_s divides them by the time: it is the useful bandwidth.
PASSES = {"forward": 3, "forward+backward": 8}
COLUMNS = [
    "op",
    "impl",
    "mode",
    "shape",
    "dtype",
    "layout",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "gb_per_s",
    "ratio_to_bn",
    "peak_mib",
    "device",
    "torch",
    "triton",
    "threads",
    "commit",
    "date",
]


def check_values(layer: nn.Module, x: Tensor) -> None:
    """Raise AssertionError unless a new layer computes what its paper says: BN times a constant gate.

    New, g_hat, w_m and w_v are 0 and the gates are sigmoid(-1) and sigmoid(1). The tests check all other values.
    """
    gate = {cn.IEBN2d: -1.0, cn.RBN2d: 1.0}.get(type(layer))
    scale = 1.0 if gate is None else 1 / (1 + math.exp(-gate))
    double = x.double()
    expected = scale * nn.functional.batch_norm(double, None, None, training=True)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def step(layer: nn.Module, x: Tensor, dy: Tensor, mode: str) -> float:
    """Return the milliseconds of one pass in training mode."""
    x.grad = None
    start = time.perf_counter()
    if mode == "forward":
        with torch.no_grad():
            layer(x)
    else:
        layer(x).backward(dy)
    return 1e3 * (time.perf_counter() - start)


def measure(shape: tuple[int, ...], layout: str, mode: str, warmup: int, repeats: int) -> dict[str, list[float]]:
    """Return the times of every layer, taken in turns."""
    torch.manual_seed(0)
    x, dy = (torch.randn(shape).to(memory_format=LAYOUTS[layout]) for _ in range(2))
    x.requires_grad_()
    layers = {name: make(shape[1]) for name, make in LAYERS.items()}
    for layer in layers.values():
        check_values(layer, x.detach())
    times: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(warmup + repeats):
        for name, layer in layers.items():
            elapsed = step(layer, x, dy, mode)
            if repeat >= warmup:
                times[name].append(elapsed)
    return times


def row(name: str, layout: str, mode: str, shape: tuple[int, ...], times: dict[str, list[float]]) -> dict[str, object]:
    """Return a line of the table."""
    p20, p50, p80 = (statistics.quantiles(times[name], n=10)[decile] for decile in (1, 4, 7))
    gigabytes = PASSES[mode] * math.prod(shape) * 4 / 1e9
    values = (
        "norm",
        name,
        mode,
        "x".join(map(str, shape)),
        "float32",
        layout,
        f"{p20:.4f}",
        f"{p50:.4f}",
        f"{p80:.4f}",
        f"{gigabytes / (p50 / 1e3):.2f}",
        f"{p50 / statistics.median(times['nn.BatchNorm2d']):.3f}",
        "",  # a CPU's allocator does not tell the peak of one layer
        f"cpu {platform.machine()}",
        torch.__version__,
        "installed" if find_spec("triton") else "",
        torch.get_num_threads(),
        commit(),
        datetime.date.today().isoformat(),
    )
    return dict(zip(COLUMNS, values, strict=True))


@functools.cache
def commit() -> str:
    """Return the short commit of this checkout, or an empty string."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Measure all shapes, print the ratios and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="timed passes of each layer, at least 20")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "layer.csv")
    arguments = parser.parse_args()
    if arguments.repeats < 20:
        parser.error(f"--repeats {arguments.repeats}: a median with p20 and p80 wants at least 20")
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows = []
    unsteady = 0
    print(f"{'shape':>16} {'layout':>13} {'mode':>16} {'layer':>14} {'p50 ms':>9} {'p20-p80':>17} {'of BN':>6}")
    for shape, layout, mode in itertools.product(SHAPES, LAYOUTS, PASSES):
        times = measure(shape, layout, mode, warmup=5, repeats=arguments.repeats)
        for name in LAYERS:
            r = row(name, layout, mode, shape, times)
            rows.append(r)
            unsteady += float(str(r["p80_ms"])) > 1.5 * float(str(r["p20_ms"]))
            spread = f"{r['p20_ms']}-{r['p80_ms']}"
            what = f"{r['shape']:>16} {layout:>13} {mode:>16} {name:>14}"
            print(f"{what} {r['p50_ms']:>9} {spread:>17} {r['ratio_to_bn']:>6}")
    if unsteady:
        print(f"{unsteady} of {len(rows)} rows have p80 over 1.5 times p20: the machine is busy, do not quote these.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {os.path.relpath(arguments.out)}")


if __name__ == "__main__":
    main()
