"""How one call is timed on a device: the only place that knows CPUs from CUDA.

The CUDA part could not be run where it was written.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from calibnorm.report.streams import output_to

Prepare = Callable[[], None]
Run = Callable[[], object]
WARMUP = 3


@dataclass
class Times:
    """What was measured of one variant."""

    ms: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    """Memory that one call took above what lived before it, where the device can tell."""

    @property
    def quantiles(self) -> tuple[float, float, float]:
        """p20, p50 and p80."""
        tenths = statistics.quantiles(self.ms, n=10, method="inclusive")
        return tenths[1], tenths[4], tenths[7]


class Clock:
    """Times calls on a CPU, where a call is over when it returns.

    Args:
        peaks: Whether the peak of memory is taken, too: a tenth of a second for each variant.
    """

    def __init__(self, peaks: bool = False) -> None:
        self.peaks = peaks

    def time(self, run: Run, into: Times) -> None:
        """Time one call."""
        start = time.perf_counter()
        run()
        into.ms.append(1e3 * (time.perf_counter() - start))

    def peak(self, run: Run) -> float | None:
        """Return the MiB that a call takes at most above what is allocated before it; None where none is asked for.

        Of torch's allocator alone: what the kernels and libraries in C allocate for themselves is not seen.
        """
        if not self.peaks:
            return None
        quietly = output_to(Path(os.devnull), [2])  # the profiler says when it begins and ends
        with quietly, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            run()
        events = seen.profiler.kineto_results.events()  # each change by itself: the sum of an operation has no peak
        changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
        return float(max(accumulate((event.nbytes() for event in changes), initial=0))) / 2**20


class CudaClock(Clock):  # pragma: no cover  (needs a CUDA device)
    """Events around the call, after a pause on the device in which the host runs ahead.

    Without the pause a short layer's time would be that of its launches.
    """

    PAUSE = 3_000_000  # cycles of the device

    def __init__(self, device: torch.device) -> None:
        super().__init__(peaks=True)
        self.device = device

    def time(self, run: Run, into: Times) -> None:
        """Time one call."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        torch.cuda._sleep(self.PAUSE)  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        into.ms.append(begin.elapsed_time(end))

    def peak(self, run: Run) -> float:
        """Return the MiB that a call takes at most above what is allocated before it."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return float(torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def clock_for(device: torch.device, peaks: bool = False) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else Clock(peaks)


def measure(
    variants: dict[str, tuple[Prepare, Run]], clock: Clock, repeats: int, at_least_s: float = 0.0
) -> dict[str, Times]:
    """Time all variants in turns, so that what else the machine does falls on all alike.

    Each turn has another order, the same in every run: in a fixed one, a variant would always find the caches as the
    same neighbour leaves them.

    Args:
        variants: By name, what resets the state of a variant (not timed), and the call.
        clock: The device's.
        repeats: Timed calls of each variant.
        at_least_s: Go on beyond ``repeats``, up to ten times as many, until so many seconds have passed: medians of
            short calls need more of them.

    Returns:
        The times of each variant.
    """
    times = {name: Times() for name in variants}
    order = random.Random(0)
    with no_collector():
        for _ in range(WARMUP):
            for prepare, run in variants.values():
                prepare()
                run()
        for name, (prepare, run) in variants.items():
            prepare()
            times[name].peak_mib = clock.peak(run)
        start, done = time.perf_counter(), 0
        while done < repeats or (done < 10 * repeats and time.perf_counter() - start < at_least_s):
            for name in order.sample(list(variants), len(variants)):
                prepare, run = variants[name]
                prepare()
                clock.time(run, times[name])
            done += 1
    return times


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside somebody's time."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def copy_bandwidth(device: torch.device, mib: int = 128) -> float:
    """Return the GB/s, read and written, of copying a tensor larger than caches: the device's measure for gb_per_s."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    times = measure({"copy": (lambda: None, lambda: target.copy_(source))}, clock_for(device), 20)
    return 2 * source.numel() * source.itemsize / 1e6 / times["copy"].quantiles[1]


def batch_norm_kernel(layer: nn.Module, x: Tensor, training: bool) -> str:
    """Return whose kernel nn.BatchNorm2d runs on x: "cudnn", "miopen" or "native" (torch's own)."""
    chosen = torch._C._select_batch_norm_backend(
        x, layer.weight, layer.bias, layer.running_mean, layer.running_var, training, layer.eps
    )
    return str(chosen).rpartition(".")[2].lower()
