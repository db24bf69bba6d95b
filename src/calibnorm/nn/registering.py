"""A method of one's own, from one coefficient function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm.methods import METHODS, Batch, Instance, Method, Parameter, Params
from calibnorm.nn import registered
from calibnorm.nn.arguments import SHARED
from calibnorm.nn.layer import CalibratedNorm

Coefficients = Callable[..., tuple[Tensor, Tensor]]
InitialValues = Mapping[str, float | Parameter] | Callable[[int], Mapping[str, Parameter]]
Definition = TypeVar("Definition", Coefficients, type[Method])

_BUILT_IN = frozenset(METHODS)
_OF_LAYERS = frozenset({"weight", "bias", "bn", "act", "drop", "method", "noise", "noise_in", "frozen", "compensated"})
"""What layers have beside the attributes of their class."""
_TRIAL_CHANNELS = 96
"""Channels of the trial: many numbers of groups divide it."""


def register(
    layers: dict[tuple[str, int], type[CalibratedNorm]],
    name: str,
    parameters: InitialValues | None = None,
    *,
    batch_statistics: bool = True,
    replace: bool = False,
) -> Callable[[Definition], Definition]:
    """Return the decorator of :func:`calibnorm.register_method`, which puts its layers into ``layers``."""
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a string, as in @cn.register_method('my_norm')")
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"name={name!r} must be a lower-case identifier, such as 'my_norm'")
    if name in _BUILT_IN:
        raise ValueError(f"name={name!r} is a method of calibnorm itself; choose another name")
    if name in METHODS and not replace:
        raise ValueError(f"name={name!r} is registered already; pass replace=True to register it anew")

    _checks.flag("batch_statistics", batch_statistics)
    _checks.flag("replace", replace)
    _check_initial_values(name, parameters)

    def decorate(given: Definition) -> Definition:
        if not callable(given):
            raise TypeError(f"{name!r}: the decorator takes a function or a subclass of Method, not {given!r}")
        stem = "".join(word.capitalize() for word in name.split("_"))
        if isinstance(given, type):
            if not issubclass(given, Method):
                raise TypeError(f"{given.__name__} must be a subclass of calibnorm.methods.Method, or a function")
            kind: type[Method] = given
            kind.name = name
        else:
            kind = _method(stem, name, given, parameters or {}, batch_statistics)
        _check_names(kind)
        _call_once(kind)
        METHODS[name] = kind
        for dims in (1, 2, 3):
            members = {"dims": dims, "method_type": kind, "__doc__": given.__doc__, "__module__": registered.__name__}
            layer = type(f"{stem}{dims}d", (CalibratedNorm,), members)
            setattr(registered, layer.__name__, layer)
            layers[name, dims] = layer
        return given

    return decorate


def _method(
    stem: str, name: str, function: Coefficients, starts: InitialValues, batch_statistics: bool
) -> type[Method]:
    """Return a method class with the function's keyword-only arguments for options."""
    arguments = list(inspect.signature(function).parameters.values())
    options = [argument for argument in arguments if argument.kind is argument.KEYWORD_ONLY]
    for option in options:
        if option.default is option.empty:
            raise TypeError(f"option {option.name!r} of {name!r} needs a default, such as {option.name}=None")
    if len(arguments) - len(options) != 3:
        raise TypeError(
            f"the function of {name!r} must take (x, batch, p), and options by keyword alone, "
            f"not {inspect.signature(function)}"
        )
    names = [option.name for option in options]

    def parameters(self: Any, num_features: int) -> dict[str, Parameter]:
        specs = starts(num_features) if callable(starts) else starts
        return {key: _parameter(name, key, value, num_features) for key, value in specs.items()}

    def coefficients(self: Any, x: Instance, batch: Batch, p: Params) -> tuple[Tensor, Tensor]:
        return function(x, batch, p, **{key: getattr(self, key) for key in names})

    def freeze(self: Any) -> None:
        for key in names:  # JSON knows no tuples, and a method is hashed
            if isinstance(value := getattr(self, key), list):
                object.__setattr__(self, key, tuple(value))

    members = {
        "name": name,
        "__doc__": function.__doc__ or f"The registered method {name!r}.",
        "__post_init__": freeze,
        "parameters": parameters,
        "coefficients": coefficients,
        "batch_statistics": batch_statistics,
    }
    own = [(option.name, Any, field(default=option.default)) for option in options]
    kind: type[Method] = make_dataclass(stem, own, bases=(Method,), namespace=members, frozen=True)
    kind.__module__ = registered.__name__
    setattr(registered, stem, kind)
    return kind


def _check_initial_values(name: str, starts: object) -> None:
    """Refuse what is neither a mapping nor a function of C; a coefficient function belongs below the decorator."""
    if starts is None or isinstance(starts, Mapping):
        return
    if not callable(starts):
        raise TypeError(f"{name!r}: parameters={starts!r} must map names to initial values, such as {{'mix': 0.0}}")
    try:
        inspect.signature(starts).bind(_TRIAL_CHANNELS)
    except TypeError:
        raise TypeError(
            f"{name!r}: parameters={starts!r} must be a function of the number of channels alone; the method's own "
            f"function goes below @cn.register_method({name!r})"
        ) from None


def _parameter(name: str, key: str, value: object, channels: int) -> Parameter:
    """Return what the user gave, a number as one a channel; refuse what is neither a number nor a Parameter."""
    if isinstance(value, Parameter):
        return value
    try:
        return Parameter((channels,), fill=_checks.real(f"parameters[{key!r}]", value))
    except TypeError as error:
        raise TypeError(f"{name!r}: {error}; for another shape give a calibnorm.methods.Parameter") from None


def _check_names(kind: type[Method]) -> None:
    """Refuse names of parameters and options that a layer has already."""
    for option in (each.name for each in fields(kind)):
        if option in SHARED | {"self", "over"}:
            raise ValueError(f"{kind.name!r}: an option cannot be called {option!r}, as every layer has that argument")
    for key in kind().parameters(_TRIAL_CHANNELS):
        if not key.isidentifier() or key in _OF_LAYERS or hasattr(CalibratedNorm, key):
            raise ValueError(f"{kind.name!r}: a parameter cannot be called {key!r}, a name that layers use themselves")


def _call_once(kind: type[Method]) -> None:
    """Call the coefficients once on small numbers, with gamma and beta and without, and check what comes back."""
    method, shape = kind(), (2, _TRIAL_CHANNELS)
    m, v = (torch.linspace(low, 2.0, 2 * _TRIAL_CHANNELS, dtype=torch.float64).view(shape) for low in (-1.0, 0.5))
    specs = method.parameters(_TRIAL_CHANNELS)
    gates = {key: torch.full(spec.shape, 0.5, dtype=torch.float64) for key, spec in specs.items()}
    one = torch.ones(_TRIAL_CHANNELS, dtype=torch.float64)
    for affine in ({"weight": one, "bias": one}, {}):
        p = {**affine, **gates}
        try:
            x = Instance(m, v, *method.instance_stats(m, v, p))
            mean = x.M.mean(0) if method.batch_statistics else m.new_empty(0)
            var = x.V.mean(0) + 1.0 if method.batch_statistics else m.new_empty(0)
            found = method.coefficients(x, Batch(mean, var, 1e-5, None), p)
        except Exception as error:
            kept = "with gamma and beta" if affine else "without gamma and beta (affine=False: use p.get)"
            held = ", ".join(p) or "nothing"
            error.add_note(
                f"cn.register_method tried {kind.name!r} on planes {shape} {kept}, and it failed so; p held {held}."
            )
            raise
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(t, Tensor) for t in found)):
            inner = ", ".join(type(t).__name__ for t in found) if isinstance(found, tuple) else ""
            came = f"({inner})" if isinstance(found, tuple) else type(found).__name__
            raise TypeError(f"the function of {kind.name!r} must return two tensors, scale and shift, not {came}")
        for which, tensor in zip(("scale", "shift"), found, strict=True):
            try:
                tensor.expand(shape)
            except RuntimeError:
                raise ValueError(
                    f"{which} of {kind.name!r} has shape {tuple(tensor.shape)}, which does not broadcast to (N, C) = "
                    f"{shape}"
                ) from None
