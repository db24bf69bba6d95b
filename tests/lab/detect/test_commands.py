"""`calibnorm detect` as a user calls it: training, evaluation, drawings; resumption, processes and variants."""

from __future__ import annotations

import csv
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab import recipes, tasks
from calibnorm.lab.data.coco import folder as folders
from calibnorm.lab.data.coco.feed import object_feeds
from calibnorm.lab.data.pictures import Damaged
from calibnorm.lab.recipes import Boxes
from calibnorm.lab.tasks.detect import Detections, PanopticDetections
from calibnorm.lab.training.schedule import learning_rate
from calibnorm.nn import CalibratedNorm
from lab.calling import main
from lab.detect.small import CPU, changed, small, words
from lab.training import children, tiny
from lab.training.test_processes import pair_of_ranks

LOSSES = ["loss", "objectness_loss", "proposals_loss", "classes_loss", "boxes_loss"]
COLUMNS = ["ap", "ap50", "ap75", "aps", "apm", "apl"]


def test_a_run_has_its_losses_and_columns_apart_and_says_what_it_reads(runs: dict[str, Path], mini: Path) -> None:
    header = (runs["panoptic"] / "metrics.csv").read_text().splitlines()[0].split(",")
    losses = [f"train_{name}" for name in [*LOSSES, "masks_loss", "semantic_loss"]]
    columns = [f"test_{kind}_{column}" for kind in ("box", "mask") for column in COLUMNS]
    qualities = [f"test_{name}{of}" for of in ("", "_things", "_stuff") for name in ("pq", "sq", "rq")]
    assert header == ["epoch", *losses, *columns, *qualities, "learning_rate"]
    data = json.loads((runs["panoptic"] / "data.json").read_text())
    assert data["stuff"] == ["brick", "grass", "gravel", "hubble", "tissue"]
    assert data["train"]["images"]["pictures"] == 10
    assert len(data["classes"]) == 1 + 10
    again = folders.Contents.from_dict(data)
    assert (again.outputs, again.news()) == ((), again.in_words())
    assert again.in_words()[0].startswith(f"{mini}: 10 pictures with")
    with (runs["box"] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[1:6] == [f"train_{name}" for name in LOSSES]
    assert all(math.isfinite(float(row["test_box_ap"])) and float(row["train_loss"]) > 0 for row in rows)
    result = json.loads((runs["box"] / "result.json").read_text())
    assert math.isnan(result["test_box_apl"]), "no digit is large"
    assert result["best_epoch"] > 0, "which is no reason to have no best epoch"


@pytest.mark.untraced
def test_killed_in_an_epoch_it_goes_on_bit_for_bit(mini: Path, tmp_path: Path) -> None:
    recipe = small("panoptic", mini, norm="rbn", image_size=(48, 64), ema=0.5)
    status = children.run(children.train_and_die, recipe, tmp_path / "killed", 0.0, "step", 4)
    assert status == -signal.SIGKILL
    assert tiny.state(tmp_path / "killed")["progress"]["step"] == 3
    for folder in ("killed", "whole"):
        tiny.run(recipe, tmp_path / folder, workers=0)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.untraced
def test_two_processes_measure_what_one_does(mini: Path, tmp_path: Path) -> None:
    """With statistics that stay and a rate of nothing they have the same network; each tests half of the pictures."""
    recipe = small("panoptic", mini, norm="bn:statistics=frozen", learning_rate=1e-30, epochs=1, warmup_steps=0)
    recipe = replace(recipe, least_score=0.0)  # type: ignore[call-arg]  # it is one of panoptic maps
    statuses, heard = pair_of_ranks(children.rank_of_recipe, recipe, tmp_path / "two")
    assert statuses == [0, 0], heard
    tiny.run(recipe, tmp_path / "one", workers=0)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")]
    two, one = ({n: v for n, v in of.items() if n.startswith("test_")} for of in results)
    assert one["test_pq_stuff"] >= 0
    tiny.assert_equal(two, one)


class Half:
    """What two processes know together, in one."""

    def __init__(self, others: list[Detections]) -> None:
        self.others = others

    def sum(self, values: Tensor) -> Tensor:
        raise AssertionError("sums of halves could differ in their last bits")

    def gather(self, value: Any) -> list[Any]:
        return [other.found for other in self.others]


def test_halves_of_the_pictures_come_to_the_same_figures_in_any_order(mini: Path) -> None:
    recipe = small("panoptic", mini, least_score=0.0, least_stuff=1)
    task, feeds = tasks.of(recipe), tiny.feeds(recipe)
    network, device = tiny.network(recipe).eval(), torch.device("cpu")
    whole, halves = task.meter(device), [task.meter(device) for _ in range(2)]
    with torch.no_grad():
        for pictures, targets in feeds.test:
            whole.add(network, (pictures, targets))
            for number, half in enumerate(halves):
                half.add(network, (pictures[number::2], targets[number::2]))
    assert isinstance(whole, PanopticDetections)
    figures = whole.figures(Half([whole]))
    tiny.assert_equal(dict(whole.figures(Half(halves[::-1]))), dict(figures))  # type: ignore[arg-type]
    assert figures["test_pq_stuff"] >= 0


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Return the lines of the tables that a command has printed, in words."""
    assert main(["detect", "eval", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line and line[0] in ("box", "mask", "all", "things", "stuff", "AP", "PQ")]


def test_eval_prints_the_columns_and_its_results_come_to_the_same(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    lines = told(capsys, str(runs["panoptic"]), "--out", str(out))
    assert [line[0] for line in lines] == ["AP", "box", "mask", "PQ", "all", "things", "stuff"]
    assert [len(line) for line in lines] == [6, 7, 7, 3, 4, 4, 4]
    result = json.loads((runs["panoptic"] / "result.json").read_text())
    assert lines[4][1:] == [f"{result[f'test_{name}']:.1f}" for name in ("pq", "sq", "rq")]
    assert lines[1][6] == "–", "no digit is large"
    assert told(capsys, str(runs["panoptic"]), "--results", str(out)) == lines
    found = json.loads((out / "instances.json").read_text())
    assert found
    assert set(found[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert 7 not in {each["category_id"] for each in found}, "category ids keep their gap"
    assert main(["detect", "eval", str(runs["panoptic"]), "--out", str(out)]) == 2
    assert "is there already; choose a new folder" in capsys.readouterr().err


def test_the_truth_as_results_is_perfect(
    runs: dict[str, Path], mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Crowds, pictures without things and category ids with gaps go through the files."""
    content = json.loads((mini / "annotations" / "instances_val2017.json").read_text())
    found = [each | {"score": 0.9} for each in content["annotations"] if not each["iscrowd"]]
    (tmp_path / "instances.json").write_text(json.dumps(found))
    maps = json.loads((mini / "annotations" / "panoptic_val2017.json").read_text())
    (tmp_path / "panoptic.json").write_text(json.dumps(maps))
    (tmp_path / "panoptic").symlink_to(mini / "annotations" / "panoptic_val2017")
    lines = told(capsys, str(runs["panoptic"]), "--results", str(tmp_path))
    assert lines[1][1:4] == lines[2][1:4] == ["100.0"] * 3
    assert [line[1:] for line in lines[4:]] == [["100.0"] * 3] * 3
    assert told(capsys, str(runs["box"]), "--results", str(tmp_path))[1][1:4] == ["100.0"] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(a=1), "is no list of results"),
        (lambda found: found["list"][0].update(image_id=99), "result 1: its picture 99 is not in the validation"),
        (lambda found: found["list"][0].update(category_id=7), "result 1: its category 7 is no thing"),
        (lambda found: found["list"][0].pop("score"), "result 1: needs a score, and a bbox of four finite numbers"),
        (lambda found: found["list"][0].update(segmentation=[]), "result 1: its segmentation has no polygon"),
    ],
)
def test_wrong_results_are_named(
    change: Any, said: str, runs: dict[str, Path], mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((mini / "annotations" / "instances_val2017.json").read_text())
    found: dict[str, Any] = {"list": [each | {"score": 0.9} for each in content["annotations"]]}
    change(found)
    (tmp_path / "instances.json").write_text(json.dumps(found if "a" in found else found["list"]))
    assert main(["detect", "eval", str(runs["panoptic"]), "--results", str(tmp_path)]) == 2
    assert f"{tmp_path / 'instances.json'}: {said}" in capsys.readouterr().err


def test_wrong_maps_are_named(
    runs: dict[str, Path], mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "instances.json").write_text("[]")
    maps = json.loads((mini / "annotations" / "panoptic_val2017.json").read_text())
    (tmp_path / "panoptic").mkdir()
    for each in maps["annotations"]:
        source = mini / "annotations" / "panoptic_val2017" / each["file_name"]
        (tmp_path / "panoptic" / each["file_name"]).write_bytes(source.read_bytes())

    def said(content: Any) -> str:
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        assert main(["detect", "eval", str(runs["panoptic"]), "--results", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "has no annotations in COCO's panoptic format" in said([])
    assert "has no map of picture 1" in said({"annotations": maps["annotations"][1:]})
    without = [{**each, "segments_info": each["segments_info"][1:]} for each in maps["annotations"]]
    assert "has no category of the validation in panoptic.json" in said({"annotations": without})
    Image.new("RGB", (3, 4)).save(tmp_path / "panoptic" / f"{1:012}.png")
    assert "has 4 x 3 pixels, not 96 x 96" in said(maps)
    (tmp_path / "panoptic.json").write_text("{")
    assert main(["detect", "eval", str(runs["panoptic"]), "--results", str(tmp_path)]) == 2
    assert "is damaged or cut off" in capsys.readouterr().err
    (tmp_path / "panoptic.json").unlink()
    assert main(["detect", "eval", str(runs["panoptic"]), "--results", str(tmp_path)]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err


def test_show_draws_the_validation_beside_the_truth_and_other_pictures_alone(
    runs: dict[str, Path], mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "shown", str(runs["panoptic"])
    assert main(["detect", "show", run, "--count", "2", "--least-score", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 drawings in {out}\n"
    with Image.open(out / f"{1:012}.png") as drawing:
        wide = drawing.width
    other = tmp_path / "other.png"
    Image.new("RGB", (80, 60), "green").save(other)
    assert main(["detect", "show", run, str(other), str(mini / "train2017"), "--out", str(tmp_path / "more")]) == 0
    with Image.open(tmp_path / "more" / "other.png") as drawing:
        assert wide == 2 * drawing.width, "there is no truth of it"
    assert len(list((tmp_path / "more").iterdir())) == 11
    other.write_bytes(b"no picture")
    assert main(["detect", "show", str(runs["box"]), str(other), "--out", str(tmp_path / "none")]) == 1
    assert "left out: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "others",
    [
        {"norm": "rbn", "precision": "bfloat16"},
        {"norm": "se"},
        {"norm": "iebn", "channels_last": True, "neck_norms": False, "noise": (0.8, 0.5)},
    ],
    ids=["half", "se", "without neck norms"],
)
def test_other_norms_and_arithmetics_train(others: dict[str, Any], mini: Path, tmp_path: Path) -> None:
    result = tiny.run(small("panoptic", mini, epochs=1, warmup_steps=0, **others), tmp_path / "run", workers=0)
    assert 0 < result.train_loss < 20


def test_boxes_are_not_rounded_in_half_precision(mini: Path) -> None:
    network = tiny.network(small("box", mini, image_size=(96,), longest_side=96))
    boxes = torch.tensor([[10.123, 20.456, 60.789, 90.012]])
    assert boxes.bfloat16().float().ne(boxes).all()
    picture = torch.zeros(3, 96, 96, dtype=torch.uint8)
    _, targets = network.transform([picture], [{"boxes": boxes.view(torch.int32)}])  # type: ignore[operator]
    torch.testing.assert_close(targets[0]["boxes"], boxes)


def test_a_run_is_inspected_and_its_gates_are_held(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(runs["panoptic"])]) == 0
    assert "rbn: the gate is 0.7" in capsys.readouterr().out
    report = (runs["panoptic"] / "report.md").read_text()
    assert "semantic.levels.0.0.1" in (runs["panoptic"] / "report.html").read_text(), "the branch's layers are there"
    assert "calibnorm train panoptic-mini" in report
    assert main(["inspect", "gates", str(runs["box"])]) == 0
    assert "as trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["eval"], "detect: needs a run: calibnorm detect eval RUN"),
        (["show"], "detect: needs a run"),
        (["eval", "nowhere"], "run nowhere: is no folder; name a run of calibnorm detect train"),
        (["show", "RUN", "nowhere.png"], "nowhere.png: is not there"),
        (["show", "RUN", "EMPTY"], "holds no picture"),
        (["show", "RUN", "--count", "0"], "--count 0: must be at least 1"),
        (["show", "RUN", "--least-score", "2"], "--least-score 2.0: must be from 0 to 1"),
        (
            ["eval", "RUN", "--results", "a", "--out", "b"],
            "--out b: writes the network's results; give it or --results",
        ),
        (["eval", "RUN", "--results", "nowhere"], "nowhere/instances.json: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(
    given: list[str], said: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(runs["box"]), "EMPTY": str(tmp_path)}
    assert main(["detect", *(places.get(word, word) for word in given)]) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.run(replace(tiny.TINY, epochs=1, train_images=64), tmp_path / "run")
    assert main(["detect", "eval", str(tmp_path / "run")]) == 2
    assert "has a network of classification, which calibnorm predict and calibnorm" in capsys.readouterr().err


def test_the_miniature_is_made_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folders, "MINI_TRAIN", 4)
    monkeypatch.setattr(folders, "MINI_VAL", 2)
    monkeypatch.chdir(tmp_path)
    options = words("box", Path("mini"), epochs=1, warmup_steps=0)[1:]
    # At two pictures nothing may be learned or found: that a run is there is what counts.
    assert main(["detect", "train", "--task", "box", *options, "--norm", "bn", *CPU]) == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["coco-mini-4-2-0"]
    assert (tmp_path / "runs" / "box-mini" / "resnet18-bn-seed0" / "result.json").exists()


def test_a_folder_is_trained_as_x1_says(mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "train", "--task", "mask", "--data", str(mini), "--backbone-weights", "no.pt"]) == 2
    assert "--backbone-weights no.pt: is no file" in capsys.readouterr().err
    x1 = recipes.recipe("mask-x1")
    assert isinstance(x1, Boxes)
    assert (x1.epochs, x1.batch_size, x1.learning_rate, x1.milestones, x1.warmup_steps) == (12, 16, 0.02, (8, 11), 500)
    rates = [learning_rate(x1, step, 100) for step in (0, 249, 499, 799, 800, 1100)]
    assert rates == pytest.approx([0.02 / 500, 0.01, 0.02, 0.02, 0.002, 0.0002])
    doubled = replace(x1, batch_size=32)
    assert learning_rate(doubled, 600, 100) == pytest.approx(0.04)
    assert "that is 0.04, for batches of 16" in doubled.in_words()


def test_another_backbone_is_named(mini: Path) -> None:
    other: Any = "vgg16"
    with pytest.raises(UsageError, match="backbone=vgg16: is not known; choose from resnet18, "):
        tasks.of(replace(small("box", mini), backbone=other)).check()


def layers(network: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is kind]


def test_every_norm_is_replaced_in_backbone_pyramid_heads_and_branch(mini: Path) -> None:
    network = tiny.network(small("panoptic", mini, norm="rbn"))
    calibrated = [name for name, module in network.named_modules() if isinstance(module, CalibratedNorm)]
    for part in ("backbone.body.", "backbone.fpn.", "roi_heads.box_head.", "roi_heads.mask_head.", "semantic."):
        assert any(name.startswith(part) for name in calibrated), part
    owned = {f"{name}.bn" for name in calibrated}
    assert set(layers(network, nn.BatchNorm2d)) == owned
    bare = tiny.network(small("box", mini, norm="rbn", neck_norms=False))
    assert all(name.startswith("backbone.body.") for name in layers(bare, cn.RBN2d))


@pytest.mark.parametrize("norm", ["bn", "rbn", "rbn:statistics=frozen"])
def test_frozen_batchnorms_stay_and_gates_on_top_of_them_learn(norm: str, mini: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pt"
    body = resnet18().train()
    body(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    torch.save(body.state_dict(), path)
    recipe = small("box", mini, norm=norm, backbone_weights=str(path), frozen_batchnorm=True, trained_stages=3)
    learner = tiny.learner(recipe)
    network = learner.bare
    frozen = layers(network, FrozenBatchNorm2d)
    assert len(frozen) == 20
    before = {name: value.clone() for name, value in network.state_dict().items()}
    feeds = tiny.feeds(recipe)
    learner.set_rate(0.05)
    learner.network.train()
    loss, _ = learner.task.loss(learner.network, next(iter(feeds.train)))
    learner.fabric.backward(loss)
    learner.optimizer.step()
    after = network.state_dict()
    assert all(torch.equal(after[f"{name}.running_mean"], before[f"{name}.running_mean"]) for name in frozen)
    assert torch.equal(after["backbone.body.layer1.0.conv1.weight"], before["backbone.body.layer1.0.conv1.weight"])
    assert not torch.equal(after["backbone.body.layer4.0.conv1.weight"], before["backbone.body.layer4.0.conv1.weight"])
    if norm != "bn":
        moved = [n for n in after if n.endswith("scale_bias") and not torch.equal(after[n], before[n])]
        assert any(name.startswith("backbone.body.layer4") for name in moved)


def test_a_backbone_begins_with_the_weights_of_a_file_or_of_a_detector(
    runs: dict[str, Path], mini: Path, tmp_path: Path
) -> None:
    other = tmp_path / "bn"
    tiny.run(small("box", mini, norm="bn", epochs=1, warmup_steps=0), other, workers=0)
    weights = torch.load(other / "last.pt", weights_only=True)["network"]
    network = tiny.network(small("panoptic", mini, norm="bn", backbone_weights=str(other / "last.pt"), seed=3))
    own = network.state_dict()
    names = [n for n in weights if n.startswith("backbone.body.") and not n.endswith("num_batches_tracked")]
    assert len(names) == 100
    assert all(torch.equal(own[name], weights[name]) for name in names)
    with pytest.raises(UsageError, match="these are not a resnet18's with BatchNorm"):
        tiny.network(small("box", mini, backbone_weights=str(runs["box"] / "last.pt")))


def test_a_run_is_evaluated_without_the_weights_that_it_began_with(mini: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pt"
    torch.save(resnet18().state_dict(), path)
    recipe = small("box", mini, norm="rbn", epochs=1, warmup_steps=0, backbone_weights=str(path))
    tiny.run(recipe, tmp_path / "run", workers=0)
    path.unlink()
    assert main(["detect", "eval", str(tmp_path / "run")]) == 0


def test_a_detector_of_torchvision_detects_the_same_after_its_conversion() -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    network = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=96, box_score_thresh=0.0,
        rpn_post_nms_top_n_test=30,
    ).eval()  # fmt: skip
    pictures = [torch.rand(3, 96, 80), torch.rand(3, 64, 96)]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    with torch.no_grad():
        before = network(pictures)
        cn.convert(network, "rbn", preserve=True)
        after = network(pictures)
    assert all(len(each["boxes"]) > 10 for each in before)
    for ours, theirs in zip(after, before, strict=True):
        assert torch.equal(ours["labels"], theirs["labels"])
        for name in ("boxes", "scores"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-3)


def test_flips_take_boxes_masks_and_maps_along(mini: Path) -> None:
    device = torch.device("cpu")
    train, _ = object_feeds(str(mini), mini, "panoptic", batch_size=1, seed=0, device=device, workers=0)
    seen = set()
    for epoch in range(6):
        item = train.scenes[epoch, 0]
        assert not isinstance(item, Damaged)
        picture, target = item
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            y, x = mask.nonzero().T
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert ((target["masks"].sum(0) > 0) <= (target["semantic"] == 5)).all(), "where a thing is, no stuff is"
        seen.add(picture.numpy().tobytes())
    assert len(seen) == 2, "an epoch decides whether it is flipped"


def test_gaps_and_crowds_are_read_as_they_are(mini: Path, tmp_path: Path) -> None:
    part = folders.read(mini, "val2017", "panoptic")
    assert part.categories.thing_ids == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert part.categories.ids[10:] == [92, 94, 96, 98, 100]
    assert any(each["iscrowd"] for scene in part.scenes for each in scene.objects)
    feeds = object_feeds(str(mini), mini, "box", batch_size=2, seed=0, device=torch.device("cpu"), workers=0)
    for name, feed in zip(("train2017", "val2017"), feeds, strict=True):
        objects = [each for scene in folders.read(mini, name, "box").scenes for each in scene.objects]
        learned = [each for each in objects if name == "val2017" or not each["iscrowd"]]
        assert sum(len(target["boxes"]) for _, targets in feed for target in targets) == len(learned)
    outside: dict[str, Any] = {"bbox": [-5, 90, 20, 20]}
    for name, expected in (("train2017", (0, 90, 15, 96)), ("val2017", (-5, 90, 15, 110))):
        edge = changed(mini, tmp_path / name, f"instances_{name}", lambda c: c["annotations"][0].update(outside))
        scenes = folders.read(edge, name, "box").scenes
        (box,) = (each["box"] for scene in scenes for each in scene.objects if each["id"] == 1)
        assert box == expected, "what is learned from is cut off at the edge, and what is measured by is not"
