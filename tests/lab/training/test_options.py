"""What each option of a recipe does to a run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibnorm.errors import RunFailed
from calibnorm.lab import data
from calibnorm.lab.tasks.classify import Classify
from calibnorm.lab.training import learner, machine, processes
from calibnorm.lab.training import run as runs
from calibnorm.lab.training.watchers import Watcher
from lab.training import tiny
from lab.training.tiny import STEPS, TINY, Interrupting, assert_same_run, run, state

ONE = replace(TINY, epochs=1)


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def spy(monkeypatch: pytest.MonkeyPatch, name: str, look: Any) -> None:
    """Call `look` with the learner before one of its methods."""
    method = getattr(learner.Learner, name)

    def wrapped(self: learner.Learner, *args: Any) -> Any:
        look(self)
        return method(self, *args)

    monkeypatch.setattr(learner.Learner, name, wrapped)


def test_bfloat16_computes_in_bfloat16_with_float32_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    types: set[torch.dtype] = set()

    def look(ours: learner.Learner) -> None:
        ours.bare.conv1.register_forward_hook(lambda module, args, out: types.add(out.dtype))

    spy(monkeypatch, "before_tests", look)
    run(replace(ONE, precision="bfloat16"), tmp_path / "half")
    assert types == {torch.bfloat16}
    floats = {t.dtype for t in state(tmp_path / "half")["network"].values() if t.is_floating_point()}
    assert floats == {torch.float32}
    run(ONE, tmp_path / "whole")
    half, whole = (metrics(tmp_path / name)[0]["train_loss"] for name in ("half", "whole"))
    assert half != whole
    assert half == pytest.approx(whole, rel=0.02)


def test_gradients_of_float16_are_clipped_by_their_own_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scaler multiplies the loss by 65536: gradients are divided by it first, then clipped."""
    for module in (machine, processes):
        monkeypatch.setattr(module, "check_precision", lambda kind, precision: None)
    norms: list[float] = []
    step = torch.optim.SGD.step

    def stepped(self: torch.optim.SGD, *args: Any) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))
        step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    run(replace(ONE, precision="float16", clip_norm=0.5, train_images=128, batch_size=64), tmp_path / "run")
    assert len(norms) == 2
    assert max(norms) == pytest.approx(0.5, abs=1e-5)
    assert min(norms) > 0.05  # not divided twice


@pytest.mark.nightly  # float16 convolutions are slow on a CPU
def test_the_scaler_of_float16_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Refused on a CPU by the command, since it is slow there; the arithmetic and its scaler are the same.
    for module in (machine, processes):
        monkeypatch.setattr(module, "check_precision", lambda kind, precision: None)
    recipe = replace(ONE, precision="float16")
    run(recipe, tmp_path / "whole")
    assert state(tmp_path / "whole")["scaler"]["_growth_tracker"] == STEPS
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", checkpoint_minutes=0.0, watcher=Interrupting(2))
    run(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_channels_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def look(ours: learner.Learner) -> None:
        weight = ours.bare.layer1[0].conv2.weight
        seen.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())

    spy(monkeypatch, "before_tests", look)
    run(replace(ONE, channels_last=True), tmp_path / "last")
    run(ONE, tmp_path / "first")
    assert seen == [True, False]
    last, first = (metrics(tmp_path / name)[0]["train_loss"] for name in ("last", "first"))
    assert last == pytest.approx(first, rel=1e-3)


def test_clip_norm_bounds_the_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    norms: dict[float | None, list[float]] = {}

    def run_with(clip: float | None) -> None:
        found = norms.setdefault(clip, [])
        step = torch.optim.SGD.step

        def stepped(self: torch.optim.SGD, *args: Any) -> None:
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            found.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))
            step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", stepped)
            run(replace(ONE, clip_norm=clip), tmp_path / str(clip))

    run_with(None)
    run_with(0.5)
    assert max(norms[None]) > 0.6
    assert norms[0.5] == pytest.approx([min(0.5, norm) for norm in norms[0.5]], abs=1e-5)
    assert max(norms[0.5]) == pytest.approx(0.5, abs=1e-5)


def test_the_average_of_the_weights_is_what_is_tested_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights: list[Tensor] = []

    class Look(Watcher):
        def step(self, done: int, figures: object) -> None:
            weights.append(network[0].conv1.weight.detach().clone())

    network: list[nn.Module] = []
    build = runs.initial_network
    monkeypatch.setattr(runs, "initial_network", lambda *args: network.append(build(*args)) or network[0])
    run(replace(ONE, ema=0.75), tmp_path / "run", watcher=Look())
    expected = weights[0].clone()
    for weight in weights[1:]:
        expected = 0.75 * expected + 0.25 * weight
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["network"]
    torch.testing.assert_close(best["conv1.weight"], expected)
    assert not torch.equal(best["conv1.weight"], weights[-1])
    # The statistics are averaged with the weights, and the figures are those of this network.
    network[0].load_state_dict(best)
    network[0].eval()
    test = data.test_feed(data.load("digits", Path(), train_images=256), batch_size=64, device="cpu")
    with torch.no_grad():
        right = sum(int((network[0](x).argmax(1) == y).sum()) for x, y in test)
    assert metrics(tmp_path / "run")[0]["test_accuracy"] == pytest.approx(100 * right / 599, rel=1e-12)


def test_warm_up_and_seldom_tests(tmp_path: Path) -> None:
    run(replace(TINY, epochs=3, warmup_epochs=2, test_every=2), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert [row["learning_rate"] for row in rows[:2]] == pytest.approx([0.025, 0.05])
    assert [row["test_loss"] == row["test_loss"] for row in rows] == [False, True, True]


def test_labels_are_smoothed_in_training_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected: list[float] = []
    loss_of = Classify.loss

    def watched(self: Classify, network: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        loss, sums = loss_of(self, lambda images: seen.append(network(images)) or seen[0], batch)
        (logits,), labels = seen, batch[1]
        target = torch.full_like(logits, 0.2 / 10).scatter_(1, labels[:, None], 0.8 + 0.2 / 10)
        smooth = -(target * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss.detach(), smooth.detach())
        expected.append(float(smooth.detach()))
        return loss, sums

    monkeypatch.setattr(Classify, "loss", watched)
    run(replace(ONE, label_smoothing=0.2), tmp_path / "run")
    row = metrics(tmp_path / "run")[0]
    assert row["train_loss"] == pytest.approx(sum(expected) / STEPS, rel=1e-6)

    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["network"]
    network = tiny.network(ONE)
    network.load_state_dict(best)
    network.eval()
    images = data.load("digits", Path())
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(network(x), y, reduction="sum")
            for x, y in data.test_feed(
                data.load("digits", Path(), train_images=ONE.train_images), batch_size=64, device="cpu"
            )
        ]
    assert row["test_loss"] == pytest.approx(float(sum(losses)) / len(images.test), rel=1e-5)


def test_mixed_batches_have_labels_of_both_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits = data.load("digits", Path())
    others = data.ImageSet("others", *(replace_labels(s) for s in (digits.train, digits.test)), 2, 1, 8, (0.3,), (0.4,))
    monkeypatch.setattr(data, "load", lambda name, root, **options: others if name == "mnist" else digits)
    seen: list[tuple[int, int, int]] = []
    step = learner.Learner.step

    def stepped(self: learner.Learner[Any], batch: tuple[Tensor, Tensor], clock: Any) -> Any:
        labels = batch[1]
        seen.append((len(labels), int((labels < 10).sum()), int(labels.max())))
        return step(self, batch, clock)

    monkeypatch.setattr(learner.Learner, "step", stepped)
    run(replace(ONE, train_images=None, mix="mnist", mix_main=100, mix_others=60), tmp_path / "run")
    assert seen == [(160, 100, 11)] * (1198 // 100)
    assert state(tmp_path / "run")["network"]["fc.weight"].shape[0] == 12


def replace_labels(split: data.Split) -> data.Split:
    return data.Split(split.images, torch.arange(len(split.labels)) % 2)


def test_smaller_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes: set[torch.Size] = set()
    step = learner.Learner.step

    def stepped(self: learner.Learner[Any], batch: tuple[Tensor, Tensor], clock: Any) -> Any:
        shapes.add(batch[0].shape[1:])
        return step(self, batch, clock)

    monkeypatch.setattr(learner.Learner, "step", stepped)
    run(replace(ONE, image_size=4), tmp_path / "run")
    assert shapes == {torch.Size([1, 4, 4])}


@pytest.mark.parametrize("moment", ["inside", "last"])
def test_a_loss_of_nan_stops_the_run_and_leaves_the_checkpoint(
    moment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = STEPS + (2 if moment == "inside" else STEPS)
    step, count = learner.Learner.step, 0

    def stepped(self: learner.Learner, *args: Any) -> Any:
        nonlocal count
        count += 1
        loss, sums = step(self, *args)
        return (loss * float("nan") if count == bad else loss), sums

    monkeypatch.setattr(learner.Learner, "step", stepped)
    with pytest.raises(RunFailed, match=rf"at step {bad} \(epoch 2\); the checkpoint of step {bad - 1} is kept"):
        run(TINY, tmp_path / "run", checkpoint_minutes=0.0)
    kept = state(tmp_path / "run")
    assert kept["progress"]["step"] == bad - 1
    assert all(t.isfinite().all() for t in kept["network"].values())


def test_weights_of_nan_are_never_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step, count = learner.Learner.step, 0

    def stepped(self: learner.Learner, *args: Any) -> Any:
        nonlocal count
        count += 1
        done = step(self, *args)
        if count == 2 * STEPS:  # an update that overflows after a loss that did not
            self.bare.fc.weight.data.fill_(float("inf"))
        return done

    monkeypatch.setattr(learner.Learner, "step", stepped)
    with pytest.raises(RunFailed, match=f"a weight is NaN or infinite at step {2 * STEPS}"):
        run(TINY, tmp_path / "run")
    assert state(tmp_path / "run")["progress"]["step"] == STEPS
    for name in ("best.pt", "last.pt"):
        kept = torch.load(tmp_path / "run" / name, weights_only=True)
        assert kept["epoch"] == 1
        assert all(t.isfinite().all() for t in kept["network"].values())


@pytest.mark.nightly
def test_compiled_training_is_near_to_plain(tmp_path: Path) -> None:
    run(replace(ONE, compile=True), tmp_path / "compiled")
    run(ONE, tmp_path / "plain")
    compiled, plain = (metrics(tmp_path / name)[0]["train_loss"] for name in ("compiled", "plain"))
    assert compiled == pytest.approx(plain, rel=1e-3)
