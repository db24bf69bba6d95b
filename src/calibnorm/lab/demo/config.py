"""What a demo run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from calibnorm.errors import UsageError

NormName = Literal["bn", "iebn", "rbn", "bn-gate"]
Condition = Literal["clean", "noise"]
CONDITIONS: tuple[Condition, ...] = ("clean", "noise")

# The initial gate of IEBN, sigmoid(-1): what BN's gamma starts at in the control "bn-gate".
IEBN_INITIAL_GATE = 1 / (1 + math.e)


@dataclass(frozen=True)
class Variant:
    """A norm of the comparison.

    Args:
        label: How tables and pictures call it.
        method: The name that `calibnorm.convert` takes.
        options: The method's options.
    """

    label: str
    method: str
    options: dict[str, Any]


VARIANTS: dict[NormName, Variant] = {
    "bn": Variant("BN", "bn", {}),
    "iebn": Variant("IEBN", "iebn", {}),
    "rbn": Variant("RBN", "rbn", {}),
    "bn-gate": Variant("BN-0.27", "bn", {"gamma_init": IEBN_INITIAL_GATE}),
}


@dataclass(frozen=True)
class DemoConfig:
    """The settings of `calibnorm demo`.

    The defaults are the usual recipe for a CIFAR ResNet (He et al. 2016: batch 128, SGD with momentum 0.9, learning
    rate 0.1, weight decay 1e-4), with a cosine instead of steps and far fewer epochs; not tuned for any norm.
    """

    out: Path = Path("runs/demo")
    """Folder for the results; runs/demo-quick with --quick. An earlier demo in it is replaced by a complete one."""
    norms: Annotated[tuple[NormName, ...], tyro.conf.arg(metavar="bn|iebn|rbn|bn-gate ...")] = (
        "bn",
        "iebn",
        "rbn",
    )
    """What to compare. bn-gate is a control: BN whose gamma starts at 0.269, as IEBN's effective scale does."""
    noise: tuple[float, float] = (0.8, 0.5)
    """The constant noise attack (N_a, N_b): normalized features x become N_a * x + N_b in every norm."""
    seeds: int = 3
    """Runs of each norm in each condition; each seed gives all norms the same initial weights and batches."""
    epochs: int = 15
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.1
    """Initial learning rate; it falls to 0 along a cosine."""
    weight_decay: float = 1e-4
    """L2 penalty on every parameter but the gates."""
    blocks: int = 3
    """Residual blocks in each of the three stages: depth 6 * blocks + 2."""
    width: int = 16
    """Channels of the first stage; the second has twice, the third four times as many."""
    workers: int = 2
    """Processes that share the work, one CPU thread each; the results do not depend on their number, times may."""
    quick: bool = False
    """Seconds, not minutes: one seed, two epochs, one block a stage, width 8. Accuracies mean nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        for name in ("seeds", "epochs", "batch_size", "blocks", "width", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.batch_size > 512:
            raise UsageError(f"--batch-size {self.batch_size}: at most 512, half of the training images")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning-rate {self.learning_rate}: must be a positive number, such as 0.1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"--weight-decay {self.weight_decay}: must be 0 or more, such as 1e-4")
        if not all(map(math.isfinite, self.noise)) or self.noise[0] == 0:
            raise UsageError(f"--noise {self.noise[0]} {self.noise[1]}: needs two finite numbers, the first not 0")
        if not self.norms or len(set(self.norms)) < len(self.norms):
            raise UsageError(f"--norms {' '.join(self.norms)}: name one or more norms, each once")

    def resolved(self) -> DemoConfig:
        """Return the settings that run: with ``quick``, those of the short run.

        Raises:
            UsageError: If ``quick`` comes with another value for a setting that it fixes.
        """
        if not self.quick:
            return self
        default = {field.name: field.default for field in fields(self)}
        for name in QUICK:
            if getattr(self, name) not in (default[name], QUICK[name]):
                raise UsageError(
                    f"--{name} {getattr(self, name)}: --quick fixes --{name} at {QUICK[name]}; leave one of the two out"
                )
        out = QUICK_OUT if self.out == default["out"] else self.out
        return replace(self, out=out, **QUICK)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    @property
    def depth(self) -> int:
        """The number of layers with weights, counted as for CIFAR ResNets."""
        return 6 * self.blocks + 2


QUICK_OUT = Path("runs/demo-quick")
QUICK: dict[str, Any] = {"seeds": 1, "epochs": 2, "blocks": 1, "width": 8}
