"""The layers: thin modules that own the gates and one plain BatchNorm child. ``LAYERS`` lists them by method."""

from __future__ import annotations

from functools import partial
from typing import Any

from calibnorm import _checks
from calibnorm.nn.bn import BN1d, BN2d, BN3d
from calibnorm.nn.iebn import IEBN1d, IEBN2d, IEBN3d
from calibnorm.nn.layer import CalibratedNorm
from calibnorm.nn.rbn import RBN1d, RBN2d, RBN3d

LAYERS: dict[tuple[str, int], type[CalibratedNorm]] = {
    (layer.method_type.name, layer.dims): layer
    for layer in (BN1d, BN2d, BN3d, IEBN1d, IEBN2d, IEBN3d, RBN1d, RBN2d, RBN3d)
}

__all__ = [
    "LAYERS",
    "BN1d",
    "BN2d",
    "BN3d",
    "CalibratedNorm",
    "IEBN1d",
    "IEBN2d",
    "IEBN3d",
    "RBN1d",
    "RBN2d",
    "RBN3d",
    "layer_type",
    "norm_layer",
]


def layer_type(name: str, dims: int = 2) -> type[CalibratedNorm]:
    """Return the layer class of a method for ``dims`` spatial dimensions."""
    _checks.choice("name", name, dict.fromkeys(method for method, _ in LAYERS))
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
    layer(1, **{**options, "device": "meta"})
    return partial(layer, **options)
