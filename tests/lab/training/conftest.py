"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.training.tiny import RICH, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RICH that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(RICH, folder)
    return folder
