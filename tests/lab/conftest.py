"""What the tests of several commands share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from lab.training import children

OF_PROCESSES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS")
"""What torchrun, srun and Lightning say to the processes of a run; Lightning's Trainer leaves LOCAL_RANK in its own."""


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Let no other test say that this is one of several processes, for which a run would wait; nor any the next."""
    with mock.patch.dict(os.environ):
        for name in OF_PROCESSES:
            os.environ.pop(name, None)
        yield


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a command's own worker processes from the server that has imported everything, instead of by "spawn".

    Each then takes a tenth of a second where imports take 6 s. The commands' nightly tests start them as users do.
    """
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: children.context())
