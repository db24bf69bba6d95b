"""The settings of one training run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from calibnorm.errors import UsageError

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Noise = tuple[float, float] | None
"""N_a and N_b of a constant noise attack, or none."""


@dataclass(frozen=True)
class Recipe:
    """One training run: a network with a norm, the images, and how it is trained.

    Two runs of equal recipes on the same kind of machine give the same numbers: every random number comes from `seed`.
    """

    model: str
    """Network, such as resnet164, preresnet164, densenet100_k12, resnext29_8x64d; any depth, such as resnet56."""
    data: str
    """Images: digits, fashion_mnist, mnist, cifar10, cifar100, imagenet."""
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
    train_images: int | None = None
    """Train on so many images, balanced over the classes, the same for every seed; all by default."""
    image_size: int | None = None
    """Pixels a side, by averaging squares of pixels; the data set's own size by default."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """Random crops after 4 pixels of padding, and horizontal flips."""
    mix: str | None = None
    """The other data set of the mix-datasets attack: mnist or fashion_mnist."""
    mix_main: int = 100
    """Images of the data set itself in a mixed batch."""
    mix_others: int = 240
    """Images of the other data set in a mixed batch: 120 k."""
    test_every: int = 1
    """Test after every so many epochs, and always after the last."""
    batch_size: int = 128
    """Images a step, over all processes; with --mix it is --mix-main and --mix-others that count."""
    learning_rate: float = 0.1
    """Its peak, reached at once or after the warm-up."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
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
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
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

    def __post_init__(self) -> None:
        """Refuse what no run can mean."""
        positive = ("epochs", "test_every", "batch_size", "mix_main", "mix_others")
        for name in (*positive, *(["image_size"] if self.image_size is not None else [])):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"--{option(name)} {value}: must be at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: must not be negative")
        own = self.batch_size if self.mix is None else self.mix_main
        if self.train_images is not None and self.train_images < own:
            raise UsageError(f"--train-images {self.train_images}: fewer than one batch of {own}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning-rate {self.learning_rate}: must be a positive number")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UsageError(f"--{option(name)} {value}: must be at least 0 and less than 1")
        if self.nesterov and self.momentum == 0:
            raise UsageError("--nesterov: needs a --momentum")
        if self.noise is not None:
            check_noise(self.noise)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"--weight-decay {self.weight_decay}: must be 0 or a positive number")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"--gamma {self.gamma}: must be more than 0 and at most 1")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise UsageError(f"--milestones {' '.join(map(str, self.milestones))}: must be rising epochs from 1")
        if self.schedule == "step" and self.milestones and self.milestones[-1] >= self.epochs:
            raise UsageError(
                f"--milestones {' '.join(map(str, self.milestones))}: {self.milestones[-1]} is never reached in "
                f"--epochs {self.epochs}; give others, or none by --milestones alone"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(f"--warmup-epochs {self.warmup_epochs}: must be at least 0 and less than --epochs")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"--clip-norm {self.clip_norm}: must be a positive number")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema {self.ema}: must be between 0 and 1, such as 0.999")
        if self.mix is not None and self.mix == self.data:
            raise UsageError(f"--mix {self.mix}: is the data set itself; name another")

    @property
    def images_a_step(self) -> int:
        """Images that a step trains on, over all processes."""
        return self.batch_size if self.mix is None else self.mix_main + self.mix_others

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds; `from_dict` reads it back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Any, where: Path | str = "config.json") -> Recipe:
        """Return the recipe of a `config.json`.

        Args:
            settings: What is in the file.
            where: The file, for the error.

        Raises:
            UsageError: A setting that recipes do not have, one that is missing, or one of another type.
        """
        if not isinstance(settings, dict):
            raise UsageError(f"{where}: holds no settings of a recipe")
        hints = get_type_hints(cls)
        if unknown := sorted(settings.keys() - hints):
            raise UsageError(f"{where}: {unknown[0]} is no setting of a recipe; it was written by another version")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
        }
        for key, value in values.items():
            if not fits(value, hints[key]):
                raise UsageError(f"{where}: {key} {settings[key]!r}: must be {described(hints[key])}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"{where}: {error}") from error


def option(name: str) -> str:
    """Return a field's name as the command line writes it."""
    return name.replace("_", "-")


@contextmanager
def named_as_typed(recipe: Recipe, **options: str) -> Iterator[None]:
    """Name a recipe's settings in a block's errors as the command line writes them.

    The functions of models and data name their own arguments; a mixed set's name is an argument "data" there, too.

    Args:
        recipe: What the block works on.
        **options: By setting, its option where that has another name.

    Raises:
        UsageError: In place of the block's.
    """
    try:
        yield
    except UsageError as error:
        error.args = (as_typed(str(error), recipe, **options),)
        raise


def as_typed(text: str, recipe: Recipe, **options: str) -> str:
    """Return an error's text with the setting that it begins with as the command line writes it; see `named_as_typed`.

    >>> as_typed("image_size=5: digits has 8 pixels a side", Recipe("resnet11", "digits", 1))
    '--image-size 5: digits has 8 pixels a side'
    >>> as_typed("norm xbn: is not known", Recipe("resnet11", "digits", 1), norm="norms")
    '--norms xbn: is not known'
    """
    if recipe.mix is not None and (found := re.match(rf"(data=)?{re.escape(recipe.mix)}: ", text)):
        return f"--mix {recipe.mix}: {text[found.end() :]}"
    names = "|".join(f.name for f in dataclasses.fields(Recipe))
    return re.sub(rf"^({names})[ =]", lambda found: f"--{option(options.get(found[1], found[1]))} ", text)


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
        raise UsageError(f"--noise {text}: must be none or two numbers such as 0.8,0.5") from None
    check_noise((n_a, n_b))
    return n_a, n_b


def check_noise(noise: tuple[float, float]) -> None:
    """Refuse what is no attack: with N_a = 0, the features would be gone.

    Raises:
        UsageError: It is none.
    """
    if len(noise) != 2 or not all(map(math.isfinite, noise)) or noise[0] == 0:
        raise UsageError(f"--noise {','.join(f'{n:g}' for n in noise)}: needs two finite numbers, the first not 0")


def fits(value: object, hint: Any) -> bool:
    """Return whether a value read from JSON is of a field's type; a whole number is a float, too, True is neither."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        kinds = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is ... else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def described(hint: Any, nothing: str = "null") -> str:
    """Return a field's type in words.

    Args:
        hint: The type.
        nothing: How None is written.

    >>> described(float | None), described(tuple[Literal["bn", "iebn"], ...])
    ('a number or null', 'one or more of bn, iebn')
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(described(arg, nothing) for arg in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple and get_origin(args[0]) is Literal:
        return f"one or more of {', '.join(get_args(args[0]))}"
    if origin is tuple:
        several = "one or more texts" if args[0] is str else "whole numbers"
        return several if args[-1] is ... else "two numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(hint, nothing)
