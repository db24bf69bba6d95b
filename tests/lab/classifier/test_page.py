"""What the page of a run says of its classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from calibnorm.lab.tasks import confusion
from calibnorm.report.document import Document
from calibnorm.report.files import read_csv
from calibnorm.report.writing import write
from lab.calling import main
from lab.classifier.conftest import Left

NAMES = ("cat", "dog", "owl")
COUNTS = torch.tensor([[4, 1, 0], [2, 3, 0], [0, 0, 0]])


def test_counts_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(n, 3), torch.randint(3, (n,))) for n in (7, 5)]
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            expected[label, image.argmax()] += 1
    assert torch.equal(confusion.counted(nn.Identity(), batches, 3), expected)


def test_lines_of_classes_and_pairs() -> None:
    cat, dog, owl = confusion.by_class(COUNTS, NAMES)
    assert (cat["accuracy"], cat["precision"], cat["most confused with"]) == (80.0, pytest.approx(400 / 6), "dog")
    assert (dog["right"], dog["images"], owl["accuracy"], owl["precision"]) == (3, 5, None, None)
    assert confusion.pairs(COUNTS, NAMES) == [
        {"class": "dog", "taken for": "cat", "images": "2 of 5"},
        {"class": "cat", "taken for": "dog", "images": "1 of 5"},
    ]
    assert len(confusion.sections(torch.eye(3, dtype=torch.int64), NAMES)) == 1  # nothing is confused


def test_many_classes_are_folded_and_not_drawn(tmp_path: Path) -> None:
    counts, names = torch.ones(41, 41, dtype=torch.int64), [f"class {n}" for n in range(41)]
    of_classes, confused = confusion.sections(counts, names)
    assert of_classes.folded
    assert len(confused.blocks) == 1
    few = confusion.sections(COUNTS, NAMES)[1]
    write(Document("", [of_classes, confused, few], confusion.tables(counts, names)), tmp_path)
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert len(read_csv(tmp_path / "confusion.csv")) == len(read_csv(tmp_path / "classes.csv")) == 41


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_run_s_page_has_them(left: Left, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "page"
    shutil.copytree(left.run, run)
    more = ["--out", str(out)] if command == "report" else []
    assert main([command, str(run), "--data-root", str(left.root), *more]) == 0
    assert "Accuracy by class" in capsys.readouterr().out
    folder = out if command == "report" else run
    lines = read_csv(folder / "confusion.csv")
    assert [line["class of the image"] for line in lines] == list(NAMES)
    assert all(sum(int(line[name]) for name in NAMES) == 2 for line in lines)
    assert [line["class"] for line in read_csv(folder / "classes.csv")] == list(NAMES)
    assert "Accuracy by class" in (folder / "report.html").read_text(encoding="utf-8")
