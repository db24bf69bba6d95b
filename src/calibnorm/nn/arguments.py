"""The arguments and the description that layers share: declared once, and read by editors, type checkers and ``help``.

A layer's constructor gets its arguments from a dataclass (:func:`takes`), and the text of a method is written for two
dimensions and turned into that of each rank (:func:`description`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields, make_dataclass
from typing import Any, Concatenate, ParamSpec

import torch

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods import Method
from calibnorm.methods.registry import Over

P = ParamSpec("P")

ACTS = (None, "relu")


@dataclass
class LayerArguments:
    """What every layer takes, checked. Where a method has options, a subclass adds them, by keyword alone.

    Args:
        num_features: Channels C of the input (N, C, H, W).
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None averages over all batches.
        affine: Learn gamma and beta.
        track_running_stats: Keep running statistics for eval.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        noise: The constant noise attack of the IEBN paper (N_a, N_b): the standardized x^ becomes ``x^ * N_a + N_b``.
        noise_in: ``"always"``, or ``"train"`` for training mode of the layer (not of its ``bn``) alone. The paper does
            not say which it used.
        act: ``"relu"`` applies a ReLU to the output (after the residual, if forward gets one).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or options contradict each other.

    Statistics and gates are computed in float32 or wider; the output has the input's dtype.
    """

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    _: KW_ONLY
    noise: Noise | None = None
    noise_in: str = "always"
    act: str | None = None

    def __post_init__(self) -> None:
        self.num_features = _checks.num_features(self.num_features)
        self.eps = _checks.eps(self.eps)
        self.momentum = _checks.momentum(self.momentum)
        _checks.flag("affine", self.affine)
        _checks.flag("track_running_stats", self.track_running_stats)
        self.noise = _checks.noise(self.noise, self.noise_in)
        if self.act not in ACTS:
            known = "choose 'relu' or None, or put the activation after the layer"
            raise ValueError(f"act={self.act!r} is not known; {known}")


SHARED = frozenset(argument.name for argument in fields(LayerArguments))
"""Names of the arguments of every layer."""


def takes(
    arguments: Callable[P, LayerArguments],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a constructor the arguments of a dataclass, with the method's options before those of every layer.

    The docstring of the constructor is the method's text, from which each rank's class has its description.
    """
    declared = inspect.signature(arguments).parameters.values()
    keywords = [argument for argument in declared if argument.kind is argument.KEYWORD_ONLY]
    ordered = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(argument for argument in declared if argument.kind is not argument.KEYWORD_ONLY),
        *(argument for argument in keywords if argument.name not in SHARED),
        *(argument for argument in keywords if argument.name in SHARED),
    ]

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        init.__signature__ = inspect.Signature(ordered, return_annotation=None)  # type: ignore[attr-defined]
        # An editor shows the text at a call of the constructor; ``help`` would print it beside that of the class.
        init.text, init.__doc__ = init.__doc__, None  # type: ignore[attr-defined]
        return init

    return decorate


def arguments_of(method: type[Method]) -> type[LayerArguments]:
    """Return the arguments of a layer whose class declares none: every layer's, and the method's options."""
    options: list[tuple[str, Any, Any]] = [
        (option.name, option.type, field(default=option.default, default_factory=option.default_factory, kw_only=True))
        for option in fields(method)
    ]
    if can_stand_over(method):
        options.append(("over", Over, field(default=None, kw_only=True)))
    return make_dataclass(f"{method.__name__}Arguments", options, bases=(LayerArguments,))


def can_stand_over(method: type[Method]) -> bool:
    """Whether another method can standardize for this one: it has a calibration to put around that."""
    return method.calibration is not Method.calibration


def layer_options(layer: Callable[..., object]) -> list[str]:
    """Return what a layer's constructor takes beside what torch's BatchNorm takes: its arguments by keyword alone."""
    arguments = inspect.signature(layer).parameters.values()
    return [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]


def description(text: str, rank: str, dims: int, batch_statistics: bool) -> str:
    """Return the whole description of a layer of one rank.

    Args:
        text: A method's, written for two dimensions: summary, equation, options under ``Args:``, and an example.
        rank: What the class of the rank says: the method's name, "of", and the shape of the input.
        dims: The number of spatial dimensions.
        batch_statistics: Whether the method uses statistics of a batch, or running ones.
    """
    every = inspect.cleandoc(LayerArguments.__doc__ or "").split("\n\n")
    summary, *middle, example = inspect.cleandoc(text).split("\n\n")
    own = _entries(next((block for block in middle if block.startswith("Args:")), ""))
    shared = _entries(every[1])
    first, last = list(shared)[:7], list(shared)[7:]
    entries = {name: shared[name] for name in first} | own | {name: own.get(name, shared[name]) for name in last}
    alone = [] if batch_statistics else [_ALONE]
    prose = [block for block in middle if not block.startswith("Args:")]
    blocks = [summary, *prose, *alone, "\n".join(["Args:", *entries.values()]), *every[2:], example]
    shape = rank.rpartition(" of ")[2].rstrip(".")
    return "\n\n".join(blocks).replace("2d", f"{dims}d").replace("(N, C, H, W)", shape).replace(", 4, 4", ", 4" * dims)


_ALONE = """The child ``bn`` owns gamma and beta. Its running statistics are neither used nor moved; they are there so
that checkpoints keep the shape of BatchNorm's, and ``track_running_stats=False`` leaves them out."""


def _entries(arguments: str) -> dict[str, str]:
    """Return the lines of every argument under ``Args:`` by its name."""
    entries = re.split(r"\n(?=    \w+:)", arguments)[1:]
    return {entry.split(":", 1)[0].strip(): entry for entry in entries}
