"""What sharing statistics costs, in two gloo processes of one thread each: times over those of the layer that shares none.

    python benchmarks/synchronized.py [--methods iebn rbn] [--repeats 60]

Forward and backward in float32, interleaved, both processes at once, from a barrier to the end on rank 0. ``floor`` is
the layer that shares nothing with the two exchanges of one that does, of as many numbers, beside it.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from calibnorm.bench.clock import Clock, Times, measure
from calibnorm.nn import layer_type
from calibnorm.ops import synchronized

SHAPES = ((8, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7))


def both_ways(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Run a layer forward and back."""
    layer(x).backward(dy)
    x.grad = None


def floor(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    """The same, and the exchanges that a layer with shared statistics has."""
    group = dist.group.WORLD
    assert group is not None
    y = layer(x)
    synchronized._all_gather(torch.ones(2 + 2 * x.shape[1], dtype=torch.float64), group)
    y.backward(dy)
    synchronized._all_reduce(torch.ones(2, x.shape[1], dtype=torch.float64), group)
    x.grad = None


def times(name: str, shape: tuple[int, ...], repeats: int) -> dict[str, Times]:
    """Return the times of the layer alone, with shared statistics, and of the floor."""
    own = layer_type(name, 2)(shape[1])
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(own))
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    runs: dict[str, Callable[[], None]] = {
        "own": lambda: both_ways(own, x, dy),
        "shared": lambda: both_ways(shared, x, dy),
        "floor": lambda: floor(own, x, dy),
    }
    return measure({name: (dist.barrier, run) for name, run in runs.items()}, Clock(), repeats)


def serve(rank: int, store: str, methods: list[str], repeats: int) -> None:
    """Measure in one of the two processes; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for shape in SHAPES:
        for name in methods:
            found = times(name, shape, repeats)
            if rank == 0:
                low, middle, _ = zip(*(t.quantiles for t in found.values()), strict=True)
                text = " ".join(f"{variant} {ms:6.2f} ms" for variant, ms in zip(found, middle, strict=True))
                ratios = " ".join(f"{a / low[0]:5.2f} {b / middle[0]:5.2f}" for a, b in zip(low[1:], middle[1:], strict=True))
                print(f"{name:5} {'x'.join(map(str, shape)):12} {text}  shared, floor over own (p20 p50): {ratios}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Start both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["iebn", "rbn"])
    parser.add_argument("--repeats", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(serve, (f"{folder}/store", given.methods, given.repeats), 2)


if __name__ == "__main__":
    main()
