"""What a table reads before it trains: each data set once, though many of its rows have it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from calibnorm.errors import UsageError
from calibnorm.lab import data
from calibnorm.lab.data import sets
from calibnorm.lab.data.image_set import Split
from calibnorm.lab.experiments import experiment
from calibnorm.lab.experiments.config import TableConfig
from calibnorm.lab.experiments.tables import run


def few_images(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 10)


def test_a_mixed_set_is_read_once_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()

    def counting(name: str, read: sets.Reader) -> sets.Reader:
        def counted(root: Path) -> tuple[Split, Split]:
            reads[name] += 1
            return read(root)

        return counted

    def absent(root: Path) -> tuple[Split, Split]:
        raise UsageError("MNIST is missing")

    readers = {"digits": sets._SETS["digits"][1], "mnist": absent}
    readers["fashion_mnist"] = lambda root: (few_images(400), few_images(20))
    for name, read in readers.items():
        assert read is not None
        monkeypatch.setitem(sets._SETS, name, (data.info(name), counting(name, read)))

    def begins(*_: object) -> None:
        raise UsageError("training begins")

    monkeypatch.setattr(experiment, "train_grid", begins)
    config = TableConfig(table="iebn-3", out=tmp_path, data_root=tmp_path, accelerator="cpu")
    with pytest.raises(UsageError, match="training begins"):
        run.run(config, Console(quiet=True))
    assert reads == {"digits": 1, "mnist": 1, "fashion_mnist": 1}
