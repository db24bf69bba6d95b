"""Seeds and conditions side by side: each pair of them in a process with one thread.

Two processes of one thread train these small networks about a third faster than one process of two threads, lose less
where the machine is busy with other work, and give the same numbers however many of them there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import torch
from torch import nn

from calibnorm.lab.demo import data
from calibnorm.lab.demo.config import CONDITIONS, Condition, DemoConfig, NormName
from calibnorm.lab.demo.gates import GateRow, describe
from calibnorm.lab.demo.training import Epoch, train_side_by_side


@dataclass(frozen=True)
class Outcome:
    """What one seed in one condition leaves behind.

    Args:
        history: The figures of every norm and epoch.
        gates: The learned gates of seed 0; empty for other seeds.
        parameters: How many learnable numbers the network of each norm has.
    """

    history: list[Epoch]
    gates: list[GateRow]
    parameters: dict[NormName, int]


class Stopped(Exception):
    """The parent process asked a worker to end early."""


def train_one(config: DemoConfig, condition: Condition, seed: int, on_step: Callable[[], object]) -> Outcome:
    """Train all norms with one seed in one condition; ``on_step`` is called after every network's step."""
    digits = data.load()
    history, networks = train_side_by_side(config, digits, condition, seed, on_step)
    gates = describe(networks, condition, digits.test_images) if seed == 0 else []
    return Outcome(history, gates, {norm: count(network) for norm, network in networks.items()})


def count(network: nn.Module) -> int:
    """Return how many learnable numbers a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def train_all(config: DemoConfig, on_progress: Callable[[int], object]) -> list[Outcome]:
    """Train every seed in every condition.

    Args:
        config: The demo's settings.
        on_progress: Called now and then with the number of steps that all networks together have done.

    Returns:
        The outcomes, by seed and then condition.
    """
    tasks = [(condition, seed) for seed in range(config.seeds) for condition in CONDITIONS]
    workers = min(config.workers, len(tasks), os.cpu_count() or 1)
    if workers == 1:
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            on_progress(done)

        with one_thread():
            return [train_one(config, *task, on_step) for task in tasks]

    # "spawn" because a forked copy of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    steps, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, start_worker, (steps, stop)) as pool:
        with sigint_ignored():
            futures = [pool.submit(train_in_worker, config, *task) for task in tasks]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                on_progress(steps.value)
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with a single torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def sigint_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in a block, and for good in the processes that it starts: their parent tells them to stop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# In a worker process: what it shares with its parent.
_steps: Synchronized[int]
_stop: Event


def start_worker(steps: Synchronized[int], stop: Event) -> None:
    """Prepare a worker process."""
    global _steps, _stop
    _steps, _stop = steps, stop
    torch.set_num_threads(1)


def train_in_worker(config: DemoConfig, condition: Condition, seed: int) -> Outcome:
    """Train as :func:`train_one` does, counting steps for the parent and heeding its wish to stop."""
    return train_one(config, condition, seed, step_in_worker)


def step_in_worker() -> None:
    """Count a step; end the worker where its parent wants that or is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # killed without a chance to say so; nobody else would ever end this process
    if _stop.is_set():
        raise Stopped
    with _steps.get_lock():
        _steps.value += 1
