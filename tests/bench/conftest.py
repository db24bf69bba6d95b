"""What the tests of `calibnorm bench` share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial

import pytest

from calibnorm.bench import clock, command, layer, model


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the command believe that its allocator is pinned, so that it does not replace this process; be quick."""
    for name, value in command.ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(layer, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(layer, "copy_bandwidth", partial(clock.copy_bandwidth, mib=1))
    gc.freeze()  # each measurement collects garbage first, a tenth of a second among pytest's and torch's objects
    yield
    gc.unfreeze()


@pytest.fixture
def no_timing(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be timed."""

    def measure(*_: object) -> None:
        raise AssertionError("timing started")

    for module, name in ((layer, "measure"), (model, "measure"), (layer, "copy_bandwidth")):
        monkeypatch.setattr(module, name, measure)
