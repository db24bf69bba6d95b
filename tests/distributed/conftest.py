"""The two processes of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distributed.pair import Pair


@pytest.fixture(scope="package")  # gone when this folder is done: other tests count child processes
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes, started at the first check."""
    both = Pair(tmp_path_factory.mktemp("pair"))
    yield both
    both.stop()
