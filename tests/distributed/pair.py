"""Two gloo processes that live as long as a test module and run one check after the other, each bounded in time."""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds that a check may take, generous: a busy machine must not fail it, a deadlock must."""
START = 120.0
"""Seconds that two processes may take to import torch and to find each other."""


class Pair:
    """Ranks 0 and 1. After a check that failed or hung both are replaced, since one may wait for the other forever."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, 0
        self.processes: list[Any] = []
        self.ends: list[Connection] = []

    def __call__(self, check: str, *arguments: Any, patience: float = PATIENCE) -> list[Any]:
        """Run a check, of this name, on both with their rank first; return what they return, or fail with both."""
        if not self.processes:
            self._start()
        for end in self.ends:
            end.send((check, arguments))
        results = self._receive(patience, check)
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(results) if not ok]
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))
        return [value for _, value in results]

    def _start(self) -> None:
        self.starts += 1
        context = multiprocessing.get_context("spawn")
        # What this process does with any warning the others do: errors, but for older versions of torch.
        action = next(
            found for found, message, category, *_ in warnings.filters if (message, category) == (None, Warning)
        )
        for rank in range(2):
            ours, theirs = context.Pipe()
            store = str(self.folder / f"store{self.starts}")
            process = context.Process(target=_serve, args=(rank, store, theirs, action), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.ends.append(ours)
        self._receive(START, "start")

    def _receive(self, patience: float, what: str) -> list[tuple[bool, Any]]:
        results: list[tuple[bool, Any]] = []
        for rank, end in enumerate(self.ends):
            if not wait([end], patience):
                results.append((False, f"{what} did not end within {patience} seconds"))
                continue
            try:
                results.append(end.recv())
            except EOFError:
                self.processes[rank].join(10)
                results.append((False, f"the process ended with {self.processes[rank].exitcode}"))
        return results

    def stop(self) -> None:
        """End both, by request where they listen."""
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(10 if process.is_alive() else 0)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes, self.ends = [], []


def _serve(rank: int, store: str, end: Connection, action: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter(action)
    checks = importlib.import_module("distributed.checks")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE / 2)
    )
    end.send((True, None))
    while True:
        try:
            check, arguments = end.recv()
        except EOFError:
            break
        try:
            # The other module imports much: only where it is asked for.
            module = checks if hasattr(checks, check) else importlib.import_module("distributed.network_checks")
            end.send((True, getattr(module, check)(rank, *arguments)))
        except BaseException:
            end.send((False, traceback.format_exc()))
    dist.destroy_process_group()
