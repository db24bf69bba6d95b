"""The methods that the kernels know, in the kernels' terms: what a fused layer is told about its method."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from calibnorm.methods import BN, IEBN, RBN, Method

_CENTERS = {None: 0, "mean": 1, "std": 2}
_GATES = {None: 0, "mean": 1, "std": 2, "input": 3}
_SLOTS = ("weight", "bias", "center_weight", "gate_weight", "gate_bias")
"""The learnable tensors of the kernels; where the gate's input is standardized, the last two have other names."""
_OTHERS = {"scale_weight": "gate_weight", "scale_bias": "gate_bias", "standardized_gate_weight": "gate_weight"}
_SLOT_OF = {name: name for name in _SLOTS} | _OTHERS


class Kind(NamedTuple):
    """A method as the kernels count its alternatives."""

    center: int
    gate: int
    gated: int
    """1 where the gate multiplies gamma, plus 2 where it multiplies beta."""


@functools.lru_cache(maxsize=256)
def kind_of(method: Method) -> Kind | None:
    """Return the method in the kernels' terms, or None where they do not know it."""
    gated = ("weight" in method.gated) + 2 * ("bias" in method.gated)
    if type(method) is BN:
        return Kind(0, 0, 0)
    if type(method) is IEBN and method.operator == "linear" and method.activation == "sigmoid":
        return Kind(0, _GATES["input" if method.gate_input == "mean" else "mean"], gated)
    if type(method) is RBN and method.restrict == "sigmoid" and not (method.spatial_center or method.spatial_scale):
        center = _CENTERS[method.center_stat if method.centering else None]
        return Kind(center, _GATES[method.scale_stat if method.scaling else None], gated)
    return None


@functools.lru_cache(maxsize=256)
def slots_of(names: tuple[str, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return what picks the kernels' five learnable tensors from those of ``names`` and a last one, which is none."""
    slots = [_SLOT_OF[name] for name in names]
    return operator.itemgetter(*(slots.index(slot) if slot in slots else -1 for slot in _SLOTS))
