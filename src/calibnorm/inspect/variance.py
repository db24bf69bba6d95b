"""What part of a number's variance comes from which image it is, and what part from the rest: one-way random effects.

An image i is looked at several times, y_ir = mean + a_i + e_ir. The share of e in the variance of y is estimated with
numerator and denominator unbiased (the analysis of variance), and its interval by leaving out an image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

_T_OF_FEW = {1: 12.706, 2: 4.303, 3: 3.182}
_Z = 1.959964


class Share(float):
    """A share of a variance, from 0 to 1, with the interval that holds the true one in 95 of 100 cases.

    It is a float. An estimate may lie a little outside of 0 to 1, where the true share is near to either.

    Args:
        value: The estimate.
        low: Where the interval begins.
        high: Where it ends.

    >>> share = Share(0.25, 0.2, 0.31)
    >>> print(share, 2 * share, share.low, share.high)
    0.25 (0.2 to 0.31) 0.5 0.2 0.31
    """

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> Self:
        """Make a float with two attributes."""
        share = super().__new__(cls, value)
        share.low, share.high = low, high
        return share

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return self.value, self.low, self.high

    @property
    def value(self) -> float:
        """The estimate as a plain float."""
        return float(self)

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    __repr__ = __str__


class RandomEffects:
    """The variance of vectors y_ir of images i in draws r, within an image and between images, in memory for one draw.

    Memory grows with the images: their means are kept, in float32. The two variances are sums over the components of
    the vector::

        MSW = sum_ir |y_ir - y_i.|^2 / (n (R - 1))          within = MSW
        MSB = R sum_i |y_i. - y_..|^2 / (n - 1)             between = (MSB - MSW) / R

    for n images of R draws each. Both estimates are unbiased where the draws of all images are independent.
    """

    def __init__(self) -> None:
        self._origin: Tensor | None = None
        self._first: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0
        self._draws = 0
        self._means: list[Tensor] = []
        self._within: list[Tensor] = []

    def add(self, values_D: Tensor) -> None:
        """Take the next draw of the image in."""
        # From the first draw: what does not change has no variance at all, whatever its size.
        if self._first is None:
            self._first = values_D
            self._origin = values_D if self._origin is None else self._origin
        apart = (values_D - self._first).to(_wide(values_D))
        self._sum = self._sum + apart
        self._squares = self._squares + apart.square().sum()
        self._draws += 1

    def next_image(self) -> None:
        """Close an image; what comes is of another one. Every image must have as many draws."""
        assert self._first is not None
        assert self._origin is not None
        mean = torch.as_tensor(self._sum) / self._draws
        squares = torch.as_tensor(self._squares) - self._draws * mean.square().sum()
        self._within.append(squares.clamp_min(0.0) / (self._draws - 1))
        self._means.append(((self._first - self._origin).to(mean.dtype) + mean).float())
        self.draws = self._draws
        self._first, self._sum, self._squares, self._draws = None, 0.0, 0.0, 0

    def components(self) -> tuple[float, float]:
        """Return the variance within an image, and the variance between images."""
        within_n, apart_n = self.of_images()
        within, between = _components(within_n.mean(), apart_n.sum(), self.draws, len(within_n))
        return within.item(), between.item()

    def of_images(self) -> tuple[Tensor, Tensor]:
        """Return every image's variance within, (n,), and its mean's squared distance from the mean of all, (n,)."""
        means = torch.stack(self._means)
        apart_n = (means - means.mean(0)).to(_wide(means)).square().sum(1)
        return torch.stack(self._within).to("cpu", torch.float64), apart_n.to("cpu", torch.float64)


def share(effects: Sequence[RandomEffects]) -> Share:
    """Return within / (within + between) of several vectors as if they were one, all of the same images and draws.

    The interval is that of the jackknife over images, on the scale of the log odds, with Student's t. Where no variance
    between images is found, which has no log odds, it is on the scale of the share.
    """
    draws = effects[0].draws
    within_n, apart_n = (torch.stack(parts).sum(0) for parts in zip(*(e.of_images() for e in effects), strict=True))
    n = len(within_n)
    whole = within, between = _components(within_n.mean(), apart_n.sum(), draws, n)
    if within == 0.0:
        return Share(0.0, 0.0, 0.0)
    left_out = (within_n.sum() - within_n) / (n - 1), apart_n.sum() - apart_n * (n / (n - 1))
    parts = _components(*left_out, draws, n - 1)
    odds = bool(between > 0.0) and bool((parts[1] > 0.0).all())
    centre, each = (_log_odds(*pair) if odds else pair[0] / (pair[0] + pair[1]) for pair in (whole, parts))
    margin = _t(n - 1) * ((each - each.mean()).square().sum() * ((n - 1) / n)).sqrt()
    low, high = (torch.sigmoid(end) if odds else end.clamp(0.0, 1.0) for end in (centre - margin, centre + margin))
    return Share((within / (within + between)).item(), low.item(), high.item())


def _components(within: Tensor, apart: Tensor, draws: int, images: int) -> tuple[Tensor, Tensor]:
    """Return MSW and (MSB - MSW) / R from the mean variance within and the squares of the means around theirs."""
    return within, apart / max(images - 1, 1) - within / draws


def _log_odds(within: Tensor, between: Tensor) -> Tensor:
    return within.log() - between.log()


def _t(freedom: int) -> float:
    """Return the 97.5 % point of Student's t (from 4 degrees of freedom on by Cornish and Fisher's expansion)."""
    if freedom in _T_OF_FEW:
        return _T_OF_FEW[freedom]
    z, v = _Z, freedom
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / v**power for power, term in enumerate(terms, 1)), 0.0)


def _wide(values: Tensor) -> torch.dtype:
    """Return the dtype that sums are kept in: float64, where the device has it."""
    return torch.float32 if values.device.type == "mps" else torch.float64
