"""What ends all processes of a run soon when one of them cannot go on.

A process that waits in a collective learns nothing of that: NCCL waits half an hour for one that is gone, and no signal
handler of Python runs meanwhile. So each has a thread beside, and a key of the rendezvous store says who failed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric import Fabric

from calibnorm.errors import RunFailed, Stopped, exit_status
from calibnorm.lab.training.companions import AGAIN, killed

POLL_S = 1.0
SEEN_S = 10.0
"""How long the one that failed waits until the others have seen it: the store is process 0's, but for torchrun."""
LOST_S = 5.0
"""How long the store may be gone before a process ends: at the end of a run, process 0 may be the first to leave."""
OBEY_S = 25.0
"""How long after a signal a process is still there: torchrun kills after 30 s, and a run is resumable at any time."""


@contextmanager
def end_together(fabric: Fabric, stop: Callable[[], int], close: Callable[[], object]) -> Iterator[None]:
    """End this process when another has failed inside this context; tell the others when this one fails.

    The one that fails raises its error, and so says it; the others end without a word, with the exit status that it
    will have. Errors that all processes raise together are passed on. With one process nothing is done.

    Args:
        fabric: The processes.
        stop: Returns the number of the signal that came, or 0.
        close: Called before this process is ended, to leave the terminal in order.

    Raises:
        RunFailed: In place of a collective's error: another process is gone without a word.
    """
    if fabric.world_size == 1:
        yield
        return
    ending = _Ending(fabric, stop, close)
    ending.start()
    try:
        yield
    except BaseException as error:
        ours = ending.told(error)
        if ours is error:
            raise
        raise ours from error
    finally:
        ending.rest()


class _Ending(threading.Thread):
    def __init__(self, fabric: Fabric, stop: Callable[[], int], close: Callable[[], object]) -> None:
        super().__init__(daemon=True, name="ending")
        self._rank, self._others = fabric.global_rank, fabric.world_size - 1
        self._asked, self._close = stop, close
        # torchrun's store outlives the processes that it starts again, and what they said.
        self._failed = f"calibnorm/{fabric.broadcast(uuid.uuid4().hex)}/failed"
        self._seen = f"{self._failed}/seen"
        # A connection of its own: the collectives' may be in use, and is locked while it waits.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=30)
        self._store = dist.TCPStore(address, port, wait_for_workers=False, timeout=timeout)  # type: ignore[attr-defined]
        self._over = threading.Event()

    def rest(self) -> None:
        self._over.set()

    def run(self) -> None:
        asked = 0.0
        while not self._over.wait(POLL_S):
            try:
                if self._store.check([self._failed]):
                    rank, status = self._first()
                    if rank != self._rank:
                        self._end(status)
                    return
            except RuntimeError:
                if not self._over.wait(LOST_S):
                    self._end(1, f"another process is gone; {AGAIN}")
                return
            if number := self._asked():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > OBEY_S and not self._over.is_set():
                    self._end(128 + number, f"asked to stop, and the others do not answer; {AGAIN}")

    def told(self, error: BaseException) -> BaseException:
        """Tell the others of an error, unless they have it, too; return it, or a better one."""
        if isinstance(error, Stopped) or getattr(error, "shared", False):
            return error
        lost = is_of_a_collective(error)
        try:
            self._store.compare_set(self._failed, "", f"{self._rank} {exit_status(error)}")
            rank, status = self._first()
            if rank != self._rank and not isinstance(error, KeyboardInterrupt):  # a Ctrl-C comes to all
                self._end(status)
            if rank == self._rank and not lost:  # else the others have it, too, or are gone
                self._await_others()
        except RuntimeError:
            pass  # the store is gone, and process 0 with it
        if not lost:
            return error
        return RunFailed(f"{killed(POLL_S) or f'another process is gone ({str(error).splitlines()[0]})'}; {AGAIN}")

    def _first(self) -> tuple[int, int]:
        """Return the process that failed first, and its exit status."""
        rank, status = self._store.get(self._failed).decode().split()
        return int(rank), int(status)

    def _await_others(self) -> None:
        until = time.monotonic() + SEEN_S
        while self._store.add(self._seen, 0) < self._others and time.monotonic() < until:
            time.sleep(POLL_S / 20)

    def _end(self, status: int, text: str = "") -> None:
        """End this process, whatever its main thread waits for."""
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(2 * POLL_S)
        if text:
            os.write(2, f"calibnorm: process {self._rank}: {text}\n".encode())
        else:
            self._store.add(self._seen, 1)
            time.sleep(POLL_S / 2)  # the store goes with process 0: not before the one that waits for us has looked
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(status)


def is_of_a_collective(error: BaseException) -> bool:
    """Return whether a collective failed, as it does when another process is gone; gloo has no class for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
