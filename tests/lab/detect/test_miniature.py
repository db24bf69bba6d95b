"""The miniature: what it promises of its files, looked at by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from calibnorm.lab.data.coco import miniature
from calibnorm.lab.data.coco.folder import make_mini
from calibnorm.lab.data.coco.panoptic import colored, ids_of
from lab.calling import main


def opened(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def ids(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return ids_of(torch.from_numpy(np.array(image)).permute(2, 0, 1)).numpy()


THEIRS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""pycocotools was built for an older NumPy."""


@THEIRS
@pytest.mark.parametrize("name", ["train2017", "val2017"])
def test_boxes_masks_and_maps_agree_exactly(mini: Path, name: str) -> None:
    coco = opened(mini / "annotations" / f"instances_{name}.json")
    maps = json.loads((mini / "annotations" / f"panoptic_{name}.json").read_text())
    kinds = set()
    for each in maps["annotations"]:
        found = ids(mini / "annotations" / f"panoptic_{name}" / each["file_name"])
        assert set(np.unique(found)) == {segment["id"] for segment in each["segments_info"]}, "every pixel is of one"
        for segment in each["segments_info"]:
            mask = found == segment["id"]
            assert segment["area"] == mask.sum()
            y, x = mask.nonzero()
            assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            if segment["id"] in coco.anns:
                annotation = coco.anns[segment["id"]]
                assert annotation.items() >= segment.items()
                kinds.add((type(annotation["segmentation"]), annotation["iscrowd"]))
                assert np.array_equal(coco.annToMask(annotation), mask), "polygons and codes are exact"
    assert kinds == {(list, 0), (dict, 1)}, "there are polygons, and a crowd with a run-length code"
    assert any(not coco.getAnnIds(imgIds=[of]) for of in coco.imgs), "there is a picture without things"
    assert sorted(coco.cats) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11], "ids have a gap"


def test_a_seed_decides_every_byte_and_another_seed_makes_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        miniature.make(tmp_path / name, 2, 1, seed)

    def content(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*g"))}

    assert len(content("a")) == 2 * 3
    assert content("a") == content("again")
    assert all(content("a")[path] != content("b")[path] for path in content("a"))
    train, val = ((tmp_path / "a" / part / f"{1:012}.png").read_bytes() for part in ("train2017", "val2017"))
    assert train != val


def test_training_and_validation_share_no_part_of_a_texture() -> None:
    draw = torch.Generator().manual_seed(0)
    whole = miniature.photograph("brick")
    middle = whole.shape[2] // 2
    black = whole.clone()
    black[:, :, middle:] = 0
    halves = {"brick": black}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "photograph", halves.__getitem__)
        left, right = (miniature._texture("brick", side, draw) for side in (False, True))
    assert left.min() > 0
    assert right.max() == 0


def test_what_is_put_on_top_is_on_top_and_hides_no_more_than_it_may() -> None:
    draw = torch.Generator().manual_seed(0)
    size = miniature.SIZE
    blank = torch.full((size, size), -1)
    scene = miniature.Scene(torch.zeros(3, size, size), torch.zeros(size, size), blank, [])
    below, above = torch.zeros(2, size, size)
    below[10:30, 10:30], above[24:40, 10:40] = 1.0, 1.0
    miniature._put(scene, below, 3, draw)
    miniature._put(scene, above, 5, draw)
    assert scene.things == [(3, False), (5, False)]
    assert (scene.owner[24:30, 10:30] == 1).all()
    assert (scene.owner == 0).sum() == 14 * 20
    miniature._put(scene, torch.ones(size, size), 7, draw)
    assert scene.things == [(3, False), (5, False)], "it would have hidden both"


def test_the_command_makes_one_and_refuses_a_folder_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "mini"
    assert main(["detect", "make-mini", str(folder), "--train", "2", "--val", "1", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{folder}: 2 pictures to train on, 1 to validate on\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mini"], "nothing unfinished is left"
    miniature.make(tmp_path / "same", 2, 1, 3)
    assert (folder / "val2017" / f"{1:012}.png").read_bytes() == (
        tmp_path / "same" / "val2017" / f"{1:012}.png"
    ).read_bytes()
    assert main(["detect", "make-mini", str(folder)]) == 2
    assert "is there already; choose a new folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["detect", "make-mini", str(tmp_path / "file" / "mini"), "--train", "1"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_another_process_may_have_made_it_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "theirs").write_text("")
    make_mini(folder, 1, 1, 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["mini", "theirs"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "detect make-mini: needs a folder"),
        (["x", "--train", "0"], "--train 0: must be from 1 to 100000"),
        (["x", "--val", "-3"], "--val -3: must be from 1 to 100000"),
        (["x", "--seed", "-1"], "--seed -1: must not be negative"),
    ],
)
def test_its_options_are_looked_at(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "make-mini", *words]) == 2
    assert said in capsys.readouterr().err


def test_ids_and_colours_are_each_others_inverse() -> None:
    numbers = torch.tensor([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    assert torch.equal(ids_of(torch.from_numpy(np.array(colored(numbers))).permute(2, 0, 1)), numbers)
