"""The settings that every training run has, whatever it learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from calibnorm import loading
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.recipes.types import described, fits

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
LARGEST_COUNT = 2**31 - 1
"""Of epochs, images, and everything else that is counted: the loop counts steps of so many epochs exactly."""
LARGEST = {"seed": 2**63 - 1, "image_size": 2**14}
"""Of settings that count something else: a seed is any number, and no picture has more pixels a side."""
Noise = tuple[float, float] | None
"""N_a and N_b of a constant noise attack, or none."""


@dataclass(frozen=True)
class Recipe:
    """One training run: a network with a norm, the images, and how it is trained.

    Two runs of equal recipes on the same kind of machine give the same numbers: every random number comes from `seed`.
    What a task needs besides, such as its loss and its optimizer, is in a subclass. A subclass names its `task`, by
    which `config.json` finds it again.

    Attributes:
        task: What is learned.
        opened_by: The commands that take a trained network of the task, in words.
        changeable: Settings that may change in a run that is under way; with another value of any other setting, a
            checkpoint would be that of another network or of other data.
    """

    task: ClassVar[str]
    opened_by: ClassVar[str] = ""
    changeable: ClassVar[frozenset[str]] = frozenset(
        ("epochs", "test_every", "learning_rate", "weight_decay", "schedule", "milestones", "gamma", "warmup_epochs")
    ) | {"clip_norm", "channels_last", "compile", "sync_statistics", "patience"}

    model: str
    """Network, such as resnet164, preresnet164, densenet100_k12, resnext29_8x64d; any depth, such as resnet56."""
    data: str
    """Images: digits, fashion_mnist, mnist, cifar10, cifar100, imagenet; or folders: your own pictures, a folder for
    each class, in DATA_ROOT/folders/train/CLASS/ and DATA_ROOT/folders/val/CLASS/."""
    epochs: int
    """Passes over the training images."""
    norm: str = "bn"
    """Normalization, options behind a colon: iebn, bn:gamma_init=0.269, rbn:scale_stat=std."""
    noise: Noise = None
    """Constant noise attack N_a,N_b: standardized features x become N_a * x + N_b in every BatchNorm."""
    noise_in: Literal["always", "train"] = "always"
    """Whether the attack stays on at test time; the paper does not say."""
    stages: str = "all"
    """Where the norm replaces BatchNorm: all, or one stage such as stage1."""
    seed: int = 0
    """What initial weights, the order of images, crops and flips come from."""
    test_every: int = 1
    """Test after every so many epochs, and always after the last."""
    patience: int | None = None
    """End after so many tests in a row without a better figure than the best before; a run has all its epochs by
    default."""
    batch_size: int = 128
    """Images a step, over all processes."""
    learning_rate: float = 0.1
    """The highest learning rate, reached at once or after the warm-up."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    decay_gates: bool = False
    """Whether the penalty also falls on the gates (as in the papers' own runs)."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: by `gamma` after each of the `milestones`, or, step by step, to 0 along a cosine."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls, with --schedule step; --milestones alone means none."""
    gamma: float = 0.1
    """Factor of each fall."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly from 0, step by step."""
    clip_norm: float | None = None
    """Largest norm of the gradient."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is tested in place of the weights."""
    precision: Precision = "float32"
    """Arithmetic: bfloat16 and float16 are mixed precision, with float32 weights; tf32 is for convolutions on a GPU."""
    channels_last: bool = False
    """Memory layout of images and weights."""
    compile: bool = False
    """Train the network through torch.compile."""
    sync_statistics: bool = True
    """Batch statistics over all processes. Without it, each has its own, and process 0's running ones are tested."""

    def __init_subclass__(cls) -> None:
        """Remember which class `config.json` means; refuse a task that another class has."""
        before = _CLASSES.setdefault(cls.task, cls)
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__qualname__}: task {cls.task!r} is that of {before.__module__}.{before.__qualname__}; give the "
                "class a name of its own, such as task = 'my_task'"
            )
        _CLASSES[cls.task] = cls

    def __post_init__(self) -> None:
        counted = [] if self.patience is None else ["patience"]
        self.check_counts("epochs", "test_every", "batch_size", *counted)
        self.require("seed", self.seed >= 0, "must not be negative")
        for name, value in vars(self).items():
            largest, most = (
                max(value, default=0) if isinstance(value, tuple) else value,
                LARGEST.get(name, LARGEST_COUNT),
            )
            if isinstance(largest, int):
                self.require(name, largest <= most, f"must be at most {most}")
        rate, decay = self.learning_rate, self.weight_decay
        self.require("learning_rate", math.isfinite(rate) and rate > 0, "must be a positive number")
        if self.noise is not None:
            check_noise(self.noise)
        self.require("weight_decay", math.isfinite(decay) and decay >= 0, "must be 0 or a positive number")
        self.require("gamma", 0 < self.gamma <= 1, "must be more than 0 and at most 1")
        rising = list(self.milestones) == sorted(set(self.milestones)) and min(self.milestones, default=1) >= 1
        self.require("milestones", rising, "must be rising epochs from 1")
        if self.schedule == "step" and self.milestones and self.milestones[-1] >= self.epochs:
            reason = f"{self.milestones[-1]} is never reached in "
            remedy = ("; give others, or none by ", Setting("milestones"), " alone")
            self.require("milestones", False, reason, Setting("epochs", self.epochs), *remedy)
        warm = Setting("warmup_epochs", self.warmup_epochs)
        self.require("warmup_epochs", self.warmup_epochs >= 0, "must not be negative")
        # Either may be the one that was typed.
        short = ("must be more than ", warm, ", in which the learning rate rises; give more, or fewer of these")
        self.require("epochs", self.warmup_epochs < self.epochs, *short)
        self.require("clip_norm", self.clip_norm is None or self.clip_norm > 0, "must be a positive number")
        self.require("ema", self.ema is None or 0 < self.ema < 1, "must be between 0 and 1, such as 0.999")

    def require(self, name: str, allowed: bool, *reason: str | Setting) -> None:
        """Raise UsageError for a setting's value, for a reason, unless it is allowed."""
        if not allowed:
            raise UsageError(Setting(name, getattr(self, name)), *reason)

    def check_counts(self, *names: str) -> None:
        """Raise UsageError where one of these settings is below 1."""
        for name in names:
            self.require(name, getattr(self, name) >= 1, "must be at least 1")

    def without_effect(self) -> dict[str, tuple[str | Setting, ...]]:
        """Return the settings that change nothing beside the others, with what they would need."""
        found: dict[str, tuple[str | Setting, ...]] = {}
        if self.schedule == "cosine":
            needs = ("has no effect with ", Setting("schedule", "cosine"), "; leave it out, or choose ")
            found = {name: (*needs, Setting("schedule", "step")) for name in ("milestones", "gamma")}
        elif not self.milestones:
            found["gamma"] = ("has no effect without ", Setting("milestones"))
        tests = -(-self.epochs // self.test_every)
        if self.patience is not None and self.patience + 1 >= tests:
            why = f"has no effect with {tests} test{'s' if tests > 1 else ''} in all; give less, or more "
            found["patience"] = (why, Setting("epochs"))
        if self.noise is None:
            found["noise_in"] = ("has no effect without ", Setting("noise"))
        return found

    @property
    def peak_rate(self) -> float:
        """The highest learning rate, as the schedule takes it."""
        return self.learning_rate

    def warmup(self, steps_per_epoch: int) -> int:
        """Return how many steps the learning rate rises for."""
        return self.warmup_epochs * steps_per_epoch

    @property
    def images_a_step(self) -> int:
        """Images that a step trains on, over all processes."""
        return self.batch_size

    @property
    def network(self) -> str:
        """The network that a paper's table names."""
        return self.model

    @property
    def subject(self) -> str:
        """What the name of a run begins with, beside what a comparison varies: nothing, or a word of a task's own."""
        return ""

    def not_for_this(self) -> str:
        """Say, behind the name of a run, that its network is another command's."""
        return f"has a network of {self.task}{f', which {self.opened_by} take' if self.opened_by else ''}"

    def in_words(self) -> str:
        """Return in a sentence how a run is trained: the usual settings, and every other one that is not its default.

        Norm, noise and seed are left out, as a comparison varies them.
        """
        place = "" if self.stages == "all" else f" (the norm in {self.stages} alone)"
        falls = " ".join(map(str, self.milestones))
        step = f"x {self.gamma:g} after epochs {falls}" if falls else "constant"
        parts = [
            f"{self.model}{place} on {self.images_in_words()}; {_epochs(self.epochs)}",
            f"batch {self.images_a_step}, learning rate {self.learning_rate:g}",
            "a cosine to 0" if self.schedule == "cosine" else step,
            *([f"{_epochs(self.warmup_epochs)} of warm-up"] if self.warmup_epochs else []),
            *self.optimizer_in_words(),
            f"weight decay {self.weight_decay:g} ({'on gates too' if self.decay_gates else 'not on gates'})",
            *self.unusual_in_words(),
        ]
        return ", ".join(parts) + "."

    def images_in_words(self) -> str:
        """Return which images a run is trained on."""
        return self.data

    def optimizer_in_words(self) -> list[str]:
        """Return what is to say of a task's optimizer beside the settings of all recipes."""
        return []

    def unusual_in_words(self) -> list[str]:
        """Return the settings that most runs leave at their defaults, where this one does not."""
        texts = {
            f"gradients of a norm of {self.clip_norm or 0:g} at most": self.clip_norm is not None,
            f"tested with the moving average of the weights, decay {self.ema or 0:g}": self.ema is not None,
            "noise in training alone": self.noise_in == "train",
            f"precision {self.precision}": self.precision != "float32",
            "channels last in memory": self.channels_last,
            "compiled": self.compile,
            "batch statistics of each process by itself": not self.sync_statistics,
            f"tested every {self.test_every} epochs": self.test_every > 1,
            f"ended after {self.patience} tests without a better one": self.patience is not None,
        }
        return [text for text, holds in texts.items() if holds]

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds; `from_dict` reads it back."""
        settings = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return settings if self.task == _UNNAMED else {"task": self.task, **settings}

    @staticmethod
    def from_dict(settings: Any, where: Path | str = "config.json") -> Recipe:
        """Return the recipe of a `config.json`.

        Args:
            settings: What is in the file.
            where: The file, for the error.

        Raises:
            UsageError: A task or a setting that there is not, a setting that is missing, or one of another type.
        """
        if not isinstance(settings, dict):
            raise UsageError(f"{where}: holds no settings of a recipe")
        task = settings.get("task", _UNNAMED)
        if not isinstance(task, str) or task not in _CLASSES:
            known = f"{where}: task {task!r} is not known; there are {', '.join(_CLASSES)}; for one of your own, "
            raise UsageError(known, Setting("load", "FILE"), " that has its class")
        hints = {f.name: get_type_hints(_CLASSES[task])[f.name] for f in dataclasses.fields(_CLASSES[task])}
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key != "task"}
        if unknown := sorted(values.keys() - hints):
            raise UsageError(f"{where}: {unknown[0]} is no setting of a recipe; it was written by another version")
        for key, value in values.items():
            if not fits(value, hints[key]):
                raise UsageError(f"{where}: {key} {settings[key]!r}: must be {described(hints[key])}")
        try:
            made: Recipe = _CLASSES[task](**values)
            return made
        except UsageError as error:
            raise error.after(f"{where}: ") from error
        except TypeError as error:
            raise UsageError(f"{where}: {error}") from error


def refuse_without_effect(recipes: Iterable[Recipe], default: Recipe, given: Container[str]) -> None:
    """Refuse a setting that somebody has given and that changes nothing in any of these recipes.

    What takes a setting away, such as no milestones, is not refused, nor is what every recipe has by default.

    Args:
        recipes: What is to be trained.
        default: The recipe before anything was given.
        given: The names of the settings that were given.

    Raises:
        UsageError: There is one; the text says what it would need.
    """
    vain = [{name: (recipe, why) for name, why in recipe.without_effect().items()} for recipe in recipes]
    for name, (recipe, why) in vain[0].items():
        value = getattr(recipe, name)
        usual = value in ((), None) or value == getattr(default, name) == getattr(type(default), name, None)
        if name in given and not usual and all(name in each for each in vain):
            recipe.require(name, False, *why)


_CLASSES: dict[str, Any] = {}
loading.REGISTRIES["task"] = lambda: _CLASSES
_UNNAMED = "classification"
"""The task of a `config.json` that names none: so were they written when there was no other."""


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


def parse_noise(text: str) -> Noise:
    """Return the noise attack that a text means, None for "none".

    Raises:
        UsageError: The text is something else.

    >>> parse_noise("0.8,0.5"), parse_noise("none")
    ((0.8, 0.5), None)
    """
    if text.lower() == "none":
        return None
    try:
        n_a, n_b = map(float, text.split(","))
    except ValueError:
        raise UsageError(Setting("noise", text), "must be none or two numbers such as 0.8,0.5") from None
    check_noise((n_a, n_b))
    return n_a, n_b


def check_noise(noise: tuple[float, float]) -> None:
    """Raise UsageError for what is no attack: with N_a = 0, the features would be gone."""
    if len(noise) != 2 or not all(map(math.isfinite, noise)) or noise[0] == 0:
        given = ",".join(f"{n:g}" for n in noise)
        raise UsageError(Setting("noise", given), "needs two finite numbers, the first not 0")
