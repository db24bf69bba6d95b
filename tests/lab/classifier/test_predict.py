"""`calibnorm predict`: the answers are those of the run's test; what cannot be read is named and left out."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from calibnorm.lab.classifier.opening import opened
from calibnorm.lab.training.folder import read_result
from calibnorm.lab.training.trained import trained
from calibnorm.report.files import read_csv
from lab.calling import main
from lab.classifier.conftest import Left
from lab.training.tiny import TINY, run


def test_the_answers_are_those_of_the_test(left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "answers.csv"
    assert main(["predict", str(left.run), str(left.test), "--out", str(out), "--batch-size", "4", "--top", "9"]) == 0
    assert capsys.readouterr().out == (
        f"{out}: 6 of 6 pictures; resnet11, norm iebn, 3 classes, pictures of 16 x 16 pixels\n"
    )
    rows = read_csv(out)
    assert list(rows[0]) == ["picture", *(f"{of}_{n}" for n in (1, 2, 3) for of in ("class", "probability"))]
    with trained(left.run, left.root) as of:
        expected = torch.cat([of.network(images).softmax(1) for images, _ in of.feeds.test]).detach()
        names = of.outputs
    right = 0
    for answer, row in zip(expected, rows, strict=True):
        found = {row[f"class_{n}"]: float(row[f"probability_{n}"]) for n in (1, 2, 3)}
        assert [found[name] for name in names] == pytest.approx(answer.tolist(), abs=2e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        right += row["class_1"] == Path(row["picture"]).parent.name
    result = read_result(left.run)
    assert result is not None
    assert 100 * right / 6 == pytest.approx(result.test_accuracy)


def test_pictures_are_files_and_folders_and_broken_ones_are_left_out(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(left.test / "cat", "more")
    Path("more", "1.png").write_bytes(b"no picture")
    assert main(["predict", str(left.run / "best.pt"), "more", str(left.test / "owl" / "0.png"), "--top", "1"]) == 1
    said, wrong = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.splitlines()] == ["more/0.png", str(left.test / "owl" / "0.png")]
    assert all(line.endswith(" %") for line in said.splitlines())
    assert wrong.startswith("calibnorm: left out: more/1.png: no picture that can be read (UnidentifiedImageError")
    assert main(["predict", str(left.run), "more/1.png", "--out", "none.csv"]) == 1
    with open("none.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 1


def test_a_network_of_small_gray_images_takes_pictures_too(left: Left, tmp_path: Path) -> None:
    run(TINY, tmp_path / "run")
    classifier = opened(tmp_path / "run")
    assert (classifier.classes, classifier.pixels.channels, classifier.pixels.size) == (tuple("0123456789"), 1, 8)
    out = tmp_path / "digits.csv"
    assert main(["predict", str(tmp_path / "run"), str(left.test), "--out", str(out)]) == 0
    assert {row["class_1"] for row in read_csv(out)} <= set(classifier.classes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict"], "predict: needs a run: calibnorm predict RUN PICTURE ... --out FILE.csv"),
        (["predict", "RUN"], "predict: needs pictures: calibnorm predict RUN PICTURE ... --out FILE.csv"),
        (["predict", "RUN", "nothing.png"], "nothing.png: is not there"),
        (["predict", "RUN", "TEST", "--top", "0"], "--top 0: must be at least 1"),
        (["predict", "RUN", "TEST", "--out", "."], "--out .: is a folder; name a file, such as answers.csv"),
        (["predict", "TEST", "TEST"], "holds no last.pt, as a run has after its first epoch; name the folder of a run"),
        (["predict", "nowhere", "TEST"], "run nowhere: is not there; name the folder of a run of calibnorm train"),
        (["predict", "RUN", "EMPTY"], "empty: holds no picture"),
        (["predict", "nowhere", "TEST", "--out", "FILE/a.csv"], "file: is a file; name a folder"),
        (["export", "nowhere", "--out", "FILE/a.onnx"], "file: is a file; name a folder"),
        (["export", "nowhere", "--out", "FOLDER.pt2"], "folder.pt2: is a folder; name a file, such as "),
        (["export", "RUN", "--fold", "TEST", "--out", "x.safetensors"], "as it was trained, which a folded one is not"),
        (["export", "RUN", "--fold", "TEST", "--tolerance", "-1"], "--tolerance -1.0: must be 0 or a positive number"),
        (["export", "RUN", "--fold", "nowhere"], "nowhere: is not there"),
        (["export", "RUN", "--fold", "ONE"], "images holds 1 images, and it takes 4 or more"),
        (["export", "RUN", "--fold", "BROKEN"], "broken.png: no picture that can be read"),
        (["export"], "export: needs a run: calibnorm export RUN --out classifier.onnx"),
        (["export", "RUN", "--out", "x.pb"], "--out x.pb: must end in .onnx or .pt2 or .safetensors"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    left: Left, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "broken.png").touch()
    (tmp_path / "file").touch()
    places = {"RUN": left.run, "TEST": left.test, "EMPTY": tmp_path / "empty", "FOLDER.pt2": tmp_path / "folder.pt2"}
    places |= {"ONE": next(left.test.rglob("*.png")), "BROKEN": tmp_path / "broken.png"}
    places |= {f"FILE/a.{ending}": tmp_path / "file" / f"a.{ending}" for ending in ("csv", "onnx")}
    assert main([str(places.get(word, word)) for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_weights_of_another_version_or_another_task_are_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(left.run / "last.pt", weights_only=True)
    styled = {"task": "stylization", "model": "transformation-4", "data": "photographs", "epochs": 1}
    changes = [
        ({"pixels": None}, "does not say which pixels its network takes, as runs of calibnorm 0.1 do not"),
        ({"pixels": {"size": "x"}}, "does not fit its recipe"),
        ({"classes": ["one"]}, "does not fit its recipe"),
        ({"recipe": styled}, "has a network of stylization, which calibnorm stylize apply and calibnorm stylize"),
    ]
    for change, message in changes:
        torch.save({n: v for n, v in (content | change).items() if v is not None}, tmp_path / "last.pt")
        assert main(["predict", str(tmp_path / "last.pt"), str(left.test)]) == 2
        assert message in capsys.readouterr().err
