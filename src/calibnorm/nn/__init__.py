"""The layers: thin modules that own the gates and one plain BatchNorm child. ``LAYERS`` lists them by method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from calibnorm import _checks
from calibnorm.methods import METHODS
from calibnorm.nn import built_in
from calibnorm.nn.built_in import *
from calibnorm.nn.built_in import __all__
from calibnorm.nn.layer import CalibratedNorm
from calibnorm.nn.registering import Definition, InitialValues, register

LAYERS: dict[tuple[str, int], type[CalibratedNorm]] = {
    (layer.method_type.name, layer.dims): layer
    for layer in map(vars(built_in).__getitem__, built_in.__all__)
    if issubclass(layer, CalibratedNorm)
}

__all__ += ("LAYERS", "CalibratedNorm", "layer_type", "norm_layer", "register_method")


def layer_type(name: str, dims: int = 2) -> type[CalibratedNorm]:
    """Return the layer class of a method for ``dims`` spatial dimensions."""
    _checks.choice("name", name, METHODS)
    if (name, dims) not in LAYERS:
        raise ValueError(f"dims={dims!r} must be 1, 2 or 3: the number of spatial dimensions")
    return LAYERS[name, dims]


def norm_layer(name: str, *, dims: int = 2, **options: Any) -> partial[CalibratedNorm]:
    """Return what a network's ``norm_layer`` argument takes: a partial of the layer class.

    Args:
        name: A method, from :func:`calibnorm.methods`.
        dims: Spatial dimensions: 1, 2 or 3.
        options: Options of the layer's constructor, such as ``position="both"`` or ``noise=(0.8, 0.5)``.

    Raises:
        ValueError: The name, dims or an option's value is not known.
        TypeError: An option is not known.

    >>> import torchvision, calibnorm as cn
    >>> net = torchvision.models.resnet18(norm_layer=cn.norm_layer("iebn"))
    >>> type(net.layer1[0].bn1).__name__
    'IEBN2d'
    """
    layer = layer_type(name, dims)
    # A wrong option is refused here, not in the depths of a network's constructor; on meta, no random number is drawn.
    layer(layer.fewest_channels(options), **{**options, "device": "meta"})
    return partial(layer, **options)


def register_method(
    name: str, parameters: InitialValues | None = None, *, batch_statistics: bool = True, replace: bool = False
) -> Callable[[Definition], Definition]:
    """Register a normalization, written as one function, under a name; a decorator.

    The function takes (x, batch, p) and returns scale and shift of ``y = scale * (x - m) + shift``, broadcastable to
    (N, C): ``x.m`` and ``x.v``, (N, C), are mean and biased variance of every plane, ``batch.mean`` and ``batch.var``,
    (C,), those of the channels over the batch, or the running ones, and ``p`` the learnable tensors, gamma and beta
    among them as ``p.get("weight")`` and ``p.get("bias")``. What it takes by keyword alone, with defaults, are options.
    It may use every differentiable operation of torch; gradients, kernels, running statistics, conversion,
    ``norm_layer``, plans and torch.compile come with it. The function is tried once on small numbers.

    A subclass of :class:`calibnorm.methods.Method` can be registered in the same way, where more than the coefficients
    is to be said.

    Args:
        name: A lower-case identifier; ``"my_norm"`` has layers MyNorm1d, MyNorm2d and MyNorm3d.
        parameters: Initial values of the learnable tensors by name, a number for one a channel or a
            ``calibnorm.methods.Parameter``; or a function of C that returns these.
        batch_statistics: Whether the function uses ``batch.mean`` and ``batch.var``; where not, they are empty.
        replace: Allow a name that has been registered before, as when a notebook's cell runs again.

    Raises:
        TypeError: An argument or the function's signature is of the wrong kind, or it does not return two tensors.
        ValueError: The name is taken or no identifier, a parameter or option has a name that layers use, or scale or
            shift do not broadcast to (N, C).

    Example, built step by step in ``docs/register_a_method.md``::

        @cn.register_method("bin", {"mix": 0.0})
        def batch_instance(x, batch, p):
            a, b = batch.standardize(x.m)
            c, d = batch.standardize_by(x.m, x.m, x.v)
            w = torch.sigmoid(p["mix"])
            return reparameterize(w * a + (1 - w) * c, w * b + (1 - w) * d, p.get("weight"), p.get("bias"))
    """
    return register(LAYERS, name, parameters, batch_statistics=batch_statistics, replace=replace)
