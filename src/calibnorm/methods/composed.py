"""One method over another: the calibrations of one around the standardization of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from calibnorm._checks import Noise
from calibnorm.methods.base import Batch, Instance, Method, Parameter, Params


@dataclass(frozen=True)
class Composed(Method):
    """``outer`` with its standardization done by ``base``: the equation of outer, whose X^ is all of base on it.

    Outer centres its input, base normalizes the outcome by its own equation without gamma and beta, and outer's gate,
    gamma and beta follow. So ``Composed(RBN(), SN())`` is RBN whose second line is SN, and ``Composed(IEBN(),
    RBN(scaling=False))`` is IEBN, gated by the mean of the input as ever, around features that RBN has centred. The
    noise attack enters where base standardizes. Neither paper composes; this is the library's rule.

    Args:
        outer: BN, IEBN or RBN, or another method that calibrates a standardized feature.
        base: Any method that is not gated at beta, which it does not have here.
    """

    name: ClassVar[str] = "composed"
    outer: Method
    base: Method

    def __post_init__(self) -> None:
        kind = type(self.outer)
        if (kind.coefficients, kind.standardize) != (Method.coefficients, Method.standardize):
            raise ValueError(
                f"outer={self.outer} is no calibration of a standardized feature, so nothing can standardize for it; "
                "make it the base"
            )
        if "bias" in self.base.gated:
            remedy = f"; use {self.base.without_beta}" if self.base.without_beta else ", and cannot be one"
            raise ValueError(f"base={self.base} gates beta, which a base does not have{remedy}")
        for method in (self.outer, self.base):
            if method.spatial:
                raise ValueError(f"{method} uses a statistic over channels, which cannot be composed; use 'mean'")
        if twice := set(self.outer.parameters(1)) & set(self.base.parameters(1)):
            raise ValueError(f"outer and base both have {', '.join(sorted(twice))}; compose two different calibrations")

    # Base standardizes, and outer calibrates.
    batch_statistics = property(lambda self: self.base.batch_statistics)
    ghost_size = property(lambda self: self.base.ghost_size)
    reads_running = property(lambda self: self.base.reads_running)
    divisor = property(lambda self: self.base.divisor)
    gated = property(lambda self: self.outer.gated)

    @property
    def enters_statistics(self) -> tuple[str, ...]:
        """Return those of both, where base takes statistics of the batch."""
        return (*self.outer.enters_statistics, *self.base.enters_statistics) if self.batch_statistics else ()

    def extra_statistics(self, num_features: int) -> dict[str, int]:
        """Return base's."""
        return self.base.extra_statistics(num_features)

    def own_values(self, channels: int, pixels: int) -> int | None:
        """Return base's."""
        return self.base.own_values(channels, pixels)

    def options(self) -> dict[str, object]:
        """Return outer's options, and base as ``over``: what a layer of outer takes."""
        base = self.base.outer if isinstance(self.base, Composed) else self.base
        options = self.base.options()
        return {**self.outer.options(), "over": {"method": base.name, **options} if options else base.name}

    def __str__(self) -> str:
        """Return what a layer of outer takes."""
        return super().__str__().replace(self.name, self.outer.name, 1)

    def parameters(self, num_features: int) -> dict[str, Parameter]:
        """Return the tensors of both."""
        return self.outer.parameters(num_features) | self.base.parameters(num_features)

    def instance_stats(self, m: Tensor, v: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Return what base makes of what outer makes of m and v."""
        return self.base.instance_stats(*self.outer.instance_stats(m, v, p), p)

    def standardize(self, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        """Return the coefficients of base, without gamma and beta, on outer's centred input."""
        centred = Instance(*self.outer.instance_stats(x.m, x.v, p), x.M, x.V)
        plain = {name: tensor for name, tensor in p.items() if name not in ("weight", "bias")}
        return self.base.coefficients(centred, batch, plain)

    def calibration(self, x: Instance, a: Tensor, b: Tensor, p: Params) -> Tensor | None:
        """Return outer's gate."""
        return self.outer.calibration(x, a, b, p)

    def mean_gate(self, p: Params, running_mean: Tensor, noise: Noise = (1.0, 0.0)) -> tuple[Tensor, Tensor]:
        """Return the product of both gates at an average input, and the mean before either centering."""
        base_gate, between = self.base.mean_gate(p, running_mean, noise)
        outer_gate, mean = self.outer.mean_gate(p, between, noise)
        return base_gate * outer_gate, mean
