"""What sharing statistics costs: times over those of the layer that shares none, in two gloo processes of one thread.

    python benchmarks/synchronized.py [--methods iebn rbn] [--repeats 60]

Forward and backward in float32, interleaved, both processes at once, from a barrier to the end on rank 0: the 20th
percentile and the median of wall time, and the median of the process's own time, on which other work on the machine
counts little. ``floor`` is the layer that shares nothing, with the exchanges of one that does beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn

from calibnorm.bench.clock import Clock, Run, Times, measure
from calibnorm.bench.command import ALLOCATOR
from calibnorm.nn import layer_type
from calibnorm.ops import synchronized

SHAPES = ((8, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7))


class ProcessorClock(Clock):
    """The process's own time, in all of its threads."""

    def time(self, run: Run, into: Times) -> None:
        """Time one call."""
        start = time.process_time()
        run()
        into.ms.append(1e3 * (time.process_time() - start))


def both_ways(layer: nn.Module, x: Tensor, dy: Tensor, exchange: bool = False) -> None:
    """Run a layer forward and back, with the exchanges of shared statistics beside it where asked."""
    group = dist.group.WORLD
    assert group is not None
    y = layer(x)
    if exchange:
        synchronized._all_gather(torch.ones(2 + 2 * x.shape[1], dtype=torch.float64), group)
    y.backward(dy)
    if exchange:
        synchronized._all_reduce(torch.ones(2, x.shape[1], dtype=torch.float64), group)
    x.grad = None


def serve(rank: int, store: str, methods: list[str], repeats: int) -> None:
    """Measure in one of the two processes; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for shape in SHAPES:
        for name in methods:
            own = layer_type(name, 2)(shape[1])
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(own))
            x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
            runs: dict[str, Run] = {
                "own": lambda layer=own, x=x, dy=dy: both_ways(layer, x, dy),
                "shared": lambda layer=shared, x=x, dy=dy: both_ways(layer, x, dy),
                "floor": lambda layer=own, x=x, dy=dy: both_ways(layer, x, dy, exchange=True),
            }
            variants = {variant: (dist.barrier, run) for variant, run in runs.items()}
            wall, processor = (measure(variants, clock, repeats) for clock in (Clock(), ProcessorClock()))
            if rank == 0:
                print(f"{name:5} {'x'.join(map(str, shape)):12} own {wall['own'].quantiles[1]:5.2f} ms", end="")
                for variant in ("shared", "floor"):
                    ratios = [
                        times[variant].quantiles[i] / times["own"].quantiles[i]
                        for times, i in ((wall, 0), (wall, 1), (processor, 1))
                    ]
                    print(f"  {variant} {' / '.join(f'{ratio:.2f}' for ratio in ratios)}", end="")
                print(flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Start both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["iebn", "rbn"])
    parser.add_argument("--repeats", type=int, default=60)
    given = parser.parse_args()
    os.environ.update(ALLOCATOR)  # memory that is returned and asked for again costs as much as a small layer
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(serve, (f"{folder}/store", given.methods, given.repeats), 2)


if __name__ == "__main__":
    main()
