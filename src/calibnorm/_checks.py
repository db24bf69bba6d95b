"""Checks of what users pass in: every message names the argument, the value and the remedy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import torch
from torch import Tensor

Noise = tuple[float, float]
NOISE_IN = ("always", "train")


def choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a ``value`` that is not one of the ``allowed`` words."""
    allowed = tuple(allowed)
    if value not in allowed:
        came = repr(value)
        came = came if len(came) <= 80 else f"{came[:77]}..."
        raise ValueError(f"{name}={came} is not known; choose one of {', '.join(map(repr, allowed))}")


def real(name: str, value: object) -> float:
    """Return ``value`` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # numpy's numbers too
        raise TypeError(f"{name}={value!r} must be a real number, not {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite")
    return float(value)


def reals(name: str, value: object, count: int) -> tuple[float, ...]:
    """Return ``value`` as a tuple of ``count`` finite floats."""
    if not isinstance(value, tuple | list) or len(value) != count:
        raise ValueError(f"{name}={value!r} must be {count} numbers, such as {(0.5,) * count}")
    return tuple(real(f"{name}[{i}]", item) for i, item in enumerate(value))


def flag(name: str, value: object) -> None:
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False, not {type(value).__name__}")


def num_features(value: object) -> int:
    """Return a channel count; refuse what is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"num_features={value!r} must be an integer, not {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"num_features={value} must be at least 1")
    return int(value)


def eps(value: object, *, frozen: bool = False) -> float:
    """Return eps; refuse one that cannot keep the square root away from zero; 0 is legal for frozen statistics."""
    if type(value) is float and 0.0 < value < math.inf:  # at once: every forward asks
        return value
    number = real("eps", value)
    if number < 0 or (number == 0 and not frozen):
        raise ValueError(f"eps={value!r} must be positive, such as 1e-5")
    return number


def momentum(value: object) -> float | None:
    """Return momentum; refuse one outside [0, 1]. ``None`` means a cumulative average."""
    if value is None or (type(value) is float and 0.0 <= value <= 1.0):  # at once: every forward asks
        return value
    number = real("momentum", value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"momentum={value!r} must lie in [0, 1], or be None for a cumulative average")
    return number


def noise(value: object, noise_in: object = "always") -> Noise | None:
    """Return the constant noise (N_a, N_b) as floats; ``None`` is no noise."""
    choice("noise_in", noise_in, NOISE_IN)
    if value is None:
        return None
    n_a, n_b = reals("noise", value, 2)
    if n_a == 0.0 and n_b == 0.0:
        raise ValueError("noise=(0, 0) would erase the features; for no noise pass noise=None")
    return n_a, n_b


def sizes_known() -> bool:
    """Whether sizes are numbers: torch.jit.trace makes tensors of them, and a comparison would warn and be frozen."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is None


def features(x: object, ranks: Iterable[int] | None, channels: int | None, where: str) -> None:
    """Refuse an input of the wrong type, dtype, rank or channel count.

    Args:
        x: What came as the input.
        ranks: Legal numbers of dimensions; ``None`` takes two or more.
        channels: Expected size of dimension 1; ``None`` takes any.
        where: The layer or function, for the message.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{where}: input must be a Tensor, not {type(x).__name__}")
    if not x.is_floating_point():
        remedy = "convert it to a floating point dtype"
        if x.is_quantized:
            stubs = "put a torch.ao.quantization.DeQuantStub before the layer and a QuantStub behind it"
            remedy = f"{stubs}, or use FX quantization (prepare_fx), which does so by itself"
        raise TypeError(f"{where}: input has dtype {x.dtype}; {remedy}")
    if (x.ndim < 2) if ranks is None else (x.ndim not in ranks):
        wanted = "at least 2" if ranks is None else " or ".join(map(str, ranks))
        raise ValueError(
            f"{where}: input has {x.ndim} dimensions, shape {tuple(x.shape)}; expected {wanted}: (N, C, ...)"
        )
    if channels is not None and sizes_known() and x.shape[1] != channels:
        raise ValueError(f"{where}: input has {x.shape[1]} channels, shape {tuple(x.shape)}; expected {channels}")


def per_channel(name: str, value: Tensor | None, channels: int, where: str) -> None:
    """Refuse a per-channel tensor that does not hold one number a channel."""
    if value is not None and tuple(value.shape) != (channels,):
        raise ValueError(
            f"{where}: {name} has shape {tuple(value.shape)}; expected ({channels},), one number a channel"
        )


def residual(value: object, input: Tensor, where: str) -> None:
    """Refuse a residual that cannot be added pixel by pixel, or whose sum would not be of the input's dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: residual must be a Tensor, not {type(value).__name__}")
    if sizes_known() and value.shape != input.shape:
        raise ValueError(
            f"{where}: residual has shape {tuple(value.shape)}; expected {tuple(input.shape)}, the input's"
        )
    if value.dtype != input.dtype:
        raise ValueError(
            f"{where}: residual has dtype {value.dtype}, the input {input.dtype}; pass residual.to(input.dtype), or "
            "add it to the output to get the wider one"
        )
    if value.device != input.device:
        raise ValueError(
            f"{where}: residual is on {value.device}, the input on {input.device}; pass residual.to(input.device)"
        )
