"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.training.tiny import RICH, run


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
    """Three classes of six training pictures and two test pictures each."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / "sets" / "folders" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(60 * label, 60 * label + 100, (24, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "sets"
