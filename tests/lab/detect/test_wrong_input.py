"""What is wrong with a folder or a setting is named, with status 2, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lab.calling import main
from lab.detect.small import CPU, changed, words

INSTANCES, PANOPTIC = "instances_train2017", "panoptic_val2017"


def first(content: Any) -> Any:
    return content["annotations"][0]


def drop(name: str) -> Callable[[Any], object]:
    return lambda content: content.pop(name)


def put(**values: Any) -> Callable[[Any], object]:
    return lambda content: first(content).update(values)


def twice(name: str) -> Callable[[Any], object]:
    return lambda content: content[name].append(content[name][0])


WRONG: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "no list of pictures": (INSTANCES, drop("images"), "has no list of images"),
    "no list of categories": (INSTANCES, drop("categories"), "has no list of categories"),
    "no picture": (INSTANCES, lambda c: c.update(images=[], annotations=[]), "lists no picture"),
    "no category": (INSTANCES, lambda c: c.update(categories=[], annotations=[]), "has no category"),
    "no object": (INSTANCES, lambda c: c.update(annotations=[]), "no picture has an object that is no crowd"),
    "a picture twice": (INSTANCES, twice("images"), "picture 1 is there twice"),
    "a category twice": (INSTANCES, twice("categories"), "category 1 is there twice"),
    "an annotation twice": (INSTANCES, twice("annotations"), "annotation 1 is there twice"),
    "a picture without a name": (INSTANCES, lambda c: c["images"][0].pop("file_name"), "file_name is missing"),
    "a picture without pixels": (INSTANCES, lambda c: c["images"][0].update(width=0), "has no pixels (96 x 0)"),
    "a missing picture": (INSTANCES, lambda c: c["images"][1].update(file_name="x.png"), "2017/x.png: is missing, and"),
    "of no picture": (INSTANCES, put(image_id=99), "annotation 1: its picture 99 is not listed"),
    "of no category": (INSTANCES, put(category_id=7), "annotation 1: its category 7 is not listed"),
    "a box of three": (INSTANCES, put(bbox=[1, 2, 3]), "annotation 1: bbox [1, 2, 3] must be four finite numbers"),
    "a box of NaN": (INSTANCES, put(bbox=[1, 2, float("nan"), 4]), "must be four finite numbers"),
    "a box that is none": (INSTANCES, put(bbox=None), "annotation 1: bbox None cannot be used"),
    "half a crowd": (INSTANCES, put(iscrowd=2), "annotation 1: iscrowd 2 must be 0 or 1"),
    "half a polygon": (INSTANCES, put(segmentation=[[1, 2, 3]]), "annotation 1: its segmentation a polygon needs"),
    "a code of another size": (
        INSTANCES, put(segmentation={"size": [5, 5], "counts": [25]}), "is a code of [5, 5] pixels in a picture of",
    ),
    "other things in the validation": (
        INSTANCES, lambda c: c["categories"][0].update(name="null"), "(null) is not the same in train2017 and val2017",
    ),
    "another order in the validation": (
        INSTANCES, lambda c: c["categories"].reverse(), "train2017 and val2017 have another order",
    ),
    "other things in the maps": (
        PANOPTIC, lambda c: c["categories"][0].update(isthing=0), "thing category 1 is not the same as in the",
    ),
    "neither thing nor stuff": (
        PANOPTIC, lambda c: c["categories"][0].pop("isthing"), "category 1: isthing must be 0 or 1",
    ),
    "no stuff": (
        PANOPTIC, lambda c: c.update(categories=c["categories"][:10], annotations=[]), "has no category of stuff",
    ),
    "no map of a picture": (PANOPTIC, lambda c: c["annotations"].pop(0), "has no map of picture 1"),
    "a segment of no category": (
        PANOPTIC, lambda c: first(c)["segments_info"][0].update(category_id=7), "its category 7 is not listed",
    ),
    "a missing map": (PANOPTIC, put(file_name="x.png"), "panoptic_val2017/x.png: is missing, and"),
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], run: Path, *given: str) -> str:
    assert main(["detect", "train", *given, "--out", str(run), *CPU]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not run.exists()
    return said


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_named(what: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, said = WRONG[what]
    folder = changed(mini, tmp_path / "data", name, change)
    error = refused(capsys, tmp_path / "run", *words("panoptic", folder))
    assert said in error
    assert error.startswith(f"calibnorm: {folder}")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("annotations/instances_val2017.json", "is missing; unpack COCO's archive annotations_trainval2017, or name"),
        ("annotations/panoptic_train2017.json", "is missing; unpack COCO's archive panoptic_annotations_trainval2017"),
        ("train2017", "cannot be read (No such file or directory); instances_train2017.json lists its pictures"),
        ("annotations/panoptic_val2017", "cannot be read (No such file or directory); panoptic_val2017.json lists"),
    ],
)
def test_what_is_missing_is_named(
    gone: str, said: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(mini, tmp_path / "data")
    path = tmp_path / "data" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    error = refused(capsys, tmp_path / "run", *words("panoptic", tmp_path / "data"))
    assert error.startswith(f"calibnorm: {path}: {said}")


@pytest.mark.parametrize(
    ("content", "said"), [("{", "is damaged or cut off"), ("[]", "holds no annotations of COCO's")]
)
def test_a_damaged_file_is_named(
    content: str, said: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(mini, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_train2017.json"
    path.write_text(content)
    assert f"{path}: {said}" in refused(capsys, tmp_path / "run", *words("box", tmp_path / "data"))


def test_a_folder_of_the_miniatures_name_is_not_passed_over(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mini, tmp_path / "mini")
    said = refused(capsys, tmp_path / "run", *words("box", Path("mini")))
    assert said.startswith("calibnorm: --data mini: means the miniature that the lab makes, and mini is a folder")
    assert "; write ./mini for that one" in said
    assert main(["detect", "train", *words("box", Path("mini")), "--data", "./mini", "--out", "run", *CPU]) == 0


def test_degenerate_boxes_are_left_out_and_said(mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(content: Any) -> None:
        content["annotations"][0]["bbox"][2] = 0
        content["annotations"][1]["bbox"] = [200, 5, 10, 10]

    folder = changed(mini, tmp_path / "data", INSTANCES, change)
    options = words("box", folder, epochs=1, warmup_steps=0)
    assert main(["detect", "train", *options, "--out", str(tmp_path / "run"), *CPU]) == 0
    said = capsys.readouterr().out
    left_out = "1 boxes of no area (such as annotation 1), 1 boxes outside their picture (such as annotation 2)"
    assert f"{folder}: not used: {left_out}" in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"no picture"), "no picture that can be read"),
        (lambda path: Image.new("RGB", (96, 95)).save(path), "has 95 x 96 pixels, not 96 x 96 as its annotations say"),
    ],
)
def test_a_picture_that_cannot_be_used_ends_the_run_with_its_name(
    spoil: Callable[[Path], object], said: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(mini, tmp_path / "data")
    path = tmp_path / "data" / "val2017" / f"{1:012}.png"
    spoil(path)
    options = words("box", tmp_path / "data")
    assert main(["detect", "train", *options, "--out", str(tmp_path / "run"), *CPU]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"calibnorm: {path}: ")
    assert said in error


def test_a_map_that_its_annotations_do_not_fit_ends_the_run_with_its_name(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(content: Any) -> None:
        content["annotations"][0]["segments_info"].pop()

    def lacking(content: Any) -> None:
        content["annotations"][0]["segments_info"].append({"id": 4000, "category_id": 92})

    for change, said in ((unknown, "that its annotations do not know"), (lacking, "has no pixel of segment 4000")):
        folder = changed(mini, tmp_path / change.__name__, PANOPTIC, change)
        assert main(["detect", "train", *words("panoptic", folder), "--out", str(tmp_path / "run"), *CPU]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("box", ["--data", "nowhere"], "--data nowhere: is no folder; name one in COCO's layout, or mini"),
        ("box", ["--batch-size", "11"], "--batch-size 11: choose between 1 and the 10 training images"),
        ("box", ["--train-images", "0"], "--train-images 0: must be at least 1"),
        ("box", ["--image-size", "8"], "--image-size 8: must be at least 32"),
        ("box", ["--longest-side", "40"], "--longest-side 40: must not be less than --image-size 64"),
        ("box", ["--backbone", "vgg16"], "--backbone vgg16: must be resnet18 or "),
        ("box", ["--model", "yolo"], "--model yolo: is not known here; it is faster_rcnn, with a --backbone"),
        ("mask", ["--stages", "stage1"], "--stages stage1: all norms of a detector are replaced; choose all"),
        ("box", ["--compile"], "--compile: torchvision's detectors cannot be compiled; leave it out"),
        ("box", ["--norm", "se", "--noise", "0.5,0.2"], "--noise 0.5,0.2: reaches no norm of pyramid and heads"),
        ("box", ["--norm", "xbn"], "--norm xbn: is not known"),
        ("box", ["--backbone-weights", "no.pt"], "--backbone-weights no.pt: is no file; name one, torchvision or none"),
        ("box", ["--frozen-batchnorm"], "freezes what nobody has trained; name --backbone-weights"),
        ("box", ["--trained-stages", "3"], "--trained-stages 3: leaves random weights; name --backbone-weights"),
        ("box", ["--trained-stages", "6"], "--trained-stages 6: must be from 0 to 5"),
        ("box", ["--warmup-epochs", "1"], "--warmup-steps 1: is one warm-up, and --warmup-epochs another"),
        ("panoptic", ["--semantic-weight", "0"], "--semantic-weight 0.0: must be a positive number"),
        ("panoptic", ["--least-score", "2"], "--least-score 2.0: must be from 0 to 1"),
        ("box", ["--semantic-weight", "1"], "--semantic-weight 1: is not known"),
        ("box", ["--rois", "0"], "--rois 0: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(
    task: str, settings: list[str], said: str, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(task, mini)
    if settings[0] in given and len(settings) > 1:
        place = given.index(settings[0])
        del given[place : place + 2]
    assert said in refused(capsys, tmp_path / "run", *given, *settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--task", "keypoints"], "--task keypoints: must be box or mask or panoptic"),
        (["--task"], "--task: a value is missing; must be box or mask or panoptic"),
        (["box-mini", "--task", "mask"], "--task mask: is said by the recipe, box-mini; leave one of them out"),
        (
            ["digits-tiny"],
            "detect train digits-tiny: is no recipe of detection; try box-mini, mask-mini or panoptic-mini",
        ),
        (["--data", "mini", "folder"], "folder: belongs to no option"),
    ],
)
def test_a_wrong_word_is_named(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, tmp_path / "run", *given)


def test_weights_of_another_backbone_are_named(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import resnet18, resnet34, resnet50

    for network, said in (
        (resnet34(), "weights.pt has an unknown layer1.2.bn1.bias; these are not a resnet18's with BatchNorm"),
        (resnet50(), "weights.pt has an unknown layer1.0.bn3.bias"),
        (torch.nn.Linear(2, 2), "weights.pt has no bn1.bias and 99 more; these are not a resnet18's"),
    ):
        path = tmp_path / "weights.pt"
        torch.save(network.state_dict(), path)
        assert said in refused(capsys, tmp_path / "run", *words("box", mini, backbone_weights=str(path)))
    grey = resnet18()
    grey.conv1 = torch.nn.Conv2d(1, 64, 7)
    torch.save(grey.state_dict(), path)
    error = refused(capsys, tmp_path / "run", *words("box", mini, backbone_weights=str(path)))
    assert "weights.pt has another shape of conv1.weight; these are not a resnet18's" in error
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    error = refused(capsys, tmp_path / "run", *words("box", mini, backbone_weights="torchvision"))
    assert "is missing, and nothing is downloaded: put https://download.pytorch.org/models/resnet18-" in error
