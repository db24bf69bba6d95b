"""What the tests of several commands share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from lab.training import children


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Put the environment back after each test: with LOCAL_RANK left there, the next would wait for other processes."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a command's own worker processes from the server that has imported everything, instead of by "spawn".

    Each then takes a tenth of a second where imports take 6 s. The commands' nightly tests start them as users do.
    """
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: children.context())
