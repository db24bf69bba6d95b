"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lab.training.tiny import RICH, make_pictures, run


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are equal bit for bit where as many threads make them: here as many as in children.py's processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def undisturbed(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RICH that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(RICH, folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with pictures."""
    return make_pictures(tmp_path / "sets")
