"""The named recipes against the papers' tables, and what no recipe can be."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import data, models, tasks
from calibnorm.lab.recipes import RECIPES, Classification, Recipe, parse_noise, recipe, summary

# Of the papers: batch, epochs, learning rate, milestones, weight decay. IEBN's Tables 6 and 7; RBN's section 4.1.
IEBN = {
    "resnet164": (128, 180, 0.1, (81, 122), 1e-4),
    "preresnet164": (128, 164, 0.1, (81, 122), 1e-4),
    "resnext29_8x64d": (128, 300, 0.1, (150, 225), 5e-4),
    "densenet100_k12": (64, 300, 0.1, (150, 225), 1e-4),
}
IMAGENET = {
    "iebn": (("resnet34", "resnet50", "resnet152", "resnext50_32x4d"), (256, 120, 0.1, (30, 60, 90), 1e-4)),
    "rbn": (("resnet50", "resnet101", "resnext50_32x4d", "res2net50"), (256, 100, 0.1, (30, 60, 90), 1e-4)),
}
PAPERS = {
    **{f"iebn-{m}-{d}": (m, d, *row) for m, row in IEBN.items() for d in ("cifar10", "cifar100")},
    **{f"{p}-{m}-imagenet": (m, "imagenet", *row) for p, (names, row) in IMAGENET.items() for m in names},
    "rbn-mobilenet_v2-imagenet": ("mobilenet_v2", "imagenet", 256, 200, 0.05, (), 4e-5),
}


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_of_the_papers(name: str) -> None:
    r = recipe(name)
    row = (r.model, r.data, r.batch_size, r.epochs, r.learning_rate, r.milestones, r.weight_decay)
    assert row == PAPERS[name]
    assert (r.momentum, r.nesterov, r.gamma, r.label_smoothing, r.augment) == (0.9, False, 0.1, 0.0, "crop_flip")
    assert r.decay_gates, "the papers decay everything"
    assert r.norm == name.split("-")[0]
    assert (r.schedule, r.warmup_epochs) == (("cosine", 5) if "mobilenet" in name else ("step", 0))


def test_every_recipe_of_a_paper_is_named_after_it_and_checked() -> None:
    ours = {"rbn-resnet50_32-cifar100", "rbn-resnext29_8x64d-cifar100"}  # Table 4, of which the paper has no recipe
    assert {name for name in RECIPES if name.split("-")[0] in ("iebn", "rbn")} == set(PAPERS) | ours
    for name in ours:
        assert "no recipe: ours" in summary(name)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_what_there_is(name: str) -> None:
    r = recipe(name)
    if isinstance(r, Classification):
        assert data.info(r.data).classes != 1
    else:
        own = {"features": "random", "backbone_weights": None, "trained_stages": 5}  # what needs no file
        tasks.of(replace(r, **{name: value for name, value in own.items() if hasattr(r, name)})).check()
    assert str(models.parse_norm(r.norm)) == r.norm
    assert Recipe.from_dict(r.to_dict()) == r
    assert summary(name).endswith(".")


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, r in RECIPES.items() if isinstance(r, Classification)])
def test_every_recipe_has_a_network(name: str) -> None:
    r = recipe(name)
    info = data.info(r.data)
    classes = info.classes or 3  # a folder has any number
    with torch.device("meta"):
        network = models.build(r.model, num_classes=classes, norm=r.norm, in_channels=info.channels)
        assert network.eval()(torch.empty(2, info.channels, info.size, info.size)).shape == (2, classes)


@pytest.mark.parametrize("name", ["digits-tiny", "fashion-small", "folders-small"])
def test_small_recipes_leave_gates_free_of_decay(name: str) -> None:
    assert not recipe(name).decay_gates


BASE = Classification("resnet11", "digits", epochs=10)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"test_every": 0}, "test_every=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"train_images": 100}, "train_images=100: fewer than one batch of 128"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": math.nan}, "momentum=nan"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov: needs a momentum"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"milestones": (3, 3)}, "milestones=3, 3"),
        ({"milestones": (0, 3)}, "milestones=0, 3"),
        ({"milestones": (3, 10)}, "milestones=3, 10: 10 is never reached in epochs=10"),
        (
            {"warmup_epochs": 10},
            "epochs=10: must be more than warmup_epochs=10, in which the learning rate rises; give",
        ),
        ({"warmup_epochs": -1}, "warmup_epochs=-1: must not be negative"),
        ({"clip_norm": math.nan}, "clip_norm=nan"),
        ({"ema": 0.0}, "ema=0.0"),
        ({"mix": "digits"}, "mix=digits"),
        ({"noise": (math.nan, 0.0)}, "noise=nan,0"),
        ({"noise": (0.0, 0.2)}, "noise=0,0.2: needs two finite numbers, the first not 0"),
        ({"mix": "mnist", "train_images": 99}, "train_images=99: fewer than one batch of 100"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_what_no_run_can_mean_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(BASE, **change)  # type: ignore[arg-type]
    assert str(caught.value).startswith(named)


def test_unknown_settings_and_names() -> None:
    with pytest.raises(UsageError, match="speed is no setting of a recipe"):
        Recipe.from_dict({**BASE.to_dict(), "speed": 3})
    with pytest.raises(UsageError, match="missing 1 required positional argument: 'model'"):
        Recipe.from_dict({"data": "digits", "epochs": 3})
    with pytest.raises(UsageError, match="recipe digit-tiny: is not known; did you mean digits-tiny"):
        recipe("digit-tiny")
    # A setting that an older version had not has its default.
    assert Recipe.from_dict({"model": "resnet11", "data": "digits", "epochs": 10}) == BASE
    assert all(f.name in BASE.to_dict() for f in fields(Classification))


def test_a_mixed_batch_needs_only_its_own_part_of_the_images() -> None:
    assert replace(BASE, mix="mnist", train_images=100).images_a_step == 340


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([], "config.json: holds no settings of a recipe"),
        ({"epochs": "3"}, "config.json: epochs '3': must be a whole number"),
        ({"epochs": True}, "config.json: epochs True: must be a whole number"),
        ({"learning_rate": "fast"}, "config.json: learning_rate 'fast': must be a number"),
        ({"model": 11}, "config.json: model 11: must be a text"),
        ({"nesterov": 1}, "config.json: nesterov 1: must be true or false"),
        ({"noise": [0.8]}, "config.json: noise [0.8]: must be two numbers or null"),
        ({"noise": 0.8}, "config.json: noise 0.8: must be two numbers or null"),
        ({"milestones": [3, "x"]}, "config.json: milestones [3, 'x']: must be whole numbers"),
        ({"schedule": "linear"}, "config.json: schedule 'linear': must be step or cosine"),
        ({"train_images": 2.5}, "config.json: train_images 2.5: must be a whole number or null"),
    ],
)
def test_settings_of_another_type_are_named(settings: object, named: str) -> None:
    given = {**BASE.to_dict(), **settings} if isinstance(settings, dict) else settings
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict(given)  # type: ignore[arg-type]
    assert str(caught.value) == named


def test_a_whole_number_may_stand_for_a_real_one() -> None:
    changed = {"learning_rate": 1, "milestones": [3, 5], "noise": [1, 0.5]}
    assert Recipe.from_dict({**BASE.to_dict(), **changed}).milestones == (3, 5)


@pytest.mark.parametrize("text", ["0.5", "0.5,0.2,0.1", "a,b", "", "0,1", "inf,1"])
def test_texts_that_are_no_noise(text: str) -> None:
    with pytest.raises(UsageError, match=f"^noise={text}: "):
        parse_noise(text)
