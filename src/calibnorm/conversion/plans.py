"""What a plan is: a plain dict that JSON can hold, made of layers as they are or read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypedDict, cast

from calibnorm import _checks
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm

VERSION = 1


class LayerPlan(TypedDict):
    """One layer of a plan."""

    method: str
    options: dict[str, Any]
    preserve: bool
    features: int


class Plan(TypedDict):
    """Every normalization of a network by name: what it becomes, or why it is left."""

    version: int
    layers: dict[str, LayerPlan]
    left: dict[str, str]


def read(plan: Mapping[str, Any]) -> Plan:
    """Check the form of a plan that came from outside, such as a JSON file, and return it."""
    if plan.get("version") != VERSION:
        raise ValueError(f"plan['version'] is {plan.get('version')!r}; this calibnorm reads version {VERSION}")
    layers, left = plan.get("layers"), plan.get("left", {})
    if not isinstance(layers, Mapping) or not isinstance(left, Mapping):
        raise ValueError("plan['layers'] and plan['left'] must map names; make a plan with cn.plan(model)")
    wanted = LayerPlan.__annotations__.keys()
    for name, layer in layers.items():
        if not isinstance(layer, Mapping) or layer.keys() != wanted or not isinstance(layer["options"], Mapping):
            raise ValueError(f"plan['layers'][{name!r}] must hold {', '.join(wanted)}; make a plan with cn.plan(model)")
        _checks.flag(f"plan['layers'][{name!r}]['preserve']", layer["preserve"])
    return Plan(version=VERSION, layers={n: cast(LayerPlan, dict(v)) for n, v in layers.items()}, left=dict(left))


def refuse_text(method: object) -> None:
    """Refuse the text or the file of a plan where a method's name or the plan itself is meant."""
    text = method if isinstance(method, str) else ""
    if isinstance(method, bytes | PathLike) or text.lstrip().startswith("{") or text.endswith(".json"):
        raise TypeError("a plan is a dict, not its text and not its file; read it with json.loads or json.load first")


def describe(found: list[Found]) -> Plan:
    """Return the plan that makes a fresh network what this one is."""
    layers = {
        name: LayerPlan(
            method=module.method_type.name,
            options=as_json(module.options()),
            preserve=module.compensated,
            features=module.num_features,
        )
        for name, module, *_ in found
        if isinstance(module, CalibratedNorm)
    }
    left = {name: f"plain {type(module).__name__}" for name, module, *_ in found if name not in layers}
    return Plan(version=VERSION, layers=layers, left=left)


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they come back from a JSON file: a tuple is a list there."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {name: as_json(value) if isinstance(value, Mapping) else value for name, value in plain.items()}
