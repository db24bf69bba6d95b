"""What a conversion will do, as a plain dict that JSON can hold: made and checked whole before anything changes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypedDict, cast

from torch import nn

from calibnorm import _checks
from calibnorm.conversion import sources
from calibnorm.conversion.reverting import irreversible
from calibnorm.conversion.selection import Patterns, Predicate, select
from calibnorm.conversion.sources import Found
from calibnorm.nn import CalibratedNorm, layer_type

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


def plan(
    model: nn.Module,
    method: str | None = None,
    *,
    preserve: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    where: Predicate | None = None,
    stages: Any = None,
    skip: str | None = None,
    **options: Any,
) -> Plan:
    """Return what ``cn.convert`` would do, or, without a method, what has been done to the model.

    The plan is a plain dict: save it as JSON beside a checkpoint, and ``cn.convert(fresh_model, plan)`` rebuilds the
    network that the checkpoint belongs to.

    Args:
        model: The network; it is not changed.
        method: A method's name; None describes the calibrated layers that the model has now.
        preserve: As for :func:`convert`.
        include: As for :func:`convert`.
        exclude: As for :func:`convert`.
        where: As for :func:`convert`.
        stages: As for :func:`convert`.
        skip: As for :func:`convert`.
        options: As for :func:`convert`.

    Raises:
        ValueError: As for :func:`convert`.

    >>> import torchvision, calibnorm as cn
    >>> net = cn.convert(torchvision.models.resnet18(), "rbn", stages=4)
    >>> made = cn.plan(net)
    >>> made["layers"]["layer4.0.bn1"]
    {'method': 'rbn', 'options': {}, 'preserve': False, 'features': 512}
    >>> again = cn.convert(torchvision.models.resnet18(), made)
    >>> type(again.layer4[0].bn1).__name__, type(again.bn1).__name__
    ('RBN2d', 'BatchNorm2d')
    """
    found = sources.find(model)
    if method is None:
        return _describe(found)
    _checks.flag("preserve", preserve)
    layer_type(method)(1, device="meta", **options)  # an unknown method or a wrong option, before anything else
    left = select(model, found, include=include, exclude=exclude, where=where, stages=stages, skip=skip)
    noise: dict[str, Any] = {
        name: options[name] for name in ("noise", "noise_in") if options.get("noise") is not None and name in options
    }
    layers: dict[str, LayerPlan] = {}
    for entry in found:
        if entry.name not in left:
            layers[entry.name] = _layer_plan(entry, method, options, preserve)
        elif noise and not isinstance(entry.module, CalibratedNorm):
            # the attack reaches every BatchNorm of a network, converted or not
            layers[entry.name] = _layer_plan(entry, "bn", noise, False)
            left.pop(entry.name)
    result = Plan(version=VERSION, layers=layers, left=left)
    check(found, result)
    return result


def check(found: list[Found], plan: Plan) -> None:
    """Refuse a plan that cannot be carried out on these layers.

    Raises:
        ValueError: Naming the layer, and what to do.
    """
    modules = {entry.name: entry.module for entry in found}
    for name, layer in plan["layers"].items():
        if name not in modules:
            raise ValueError(
                f"the plan names {name!r}, which is no BatchNorm of this network; was it made for another?"
            )
        _check_layer(name, modules[name], layer)


def read(plan: Mapping[str, Any]) -> Plan:
    """Check the form of a plan that came from outside, such as a JSON file, and return it."""
    if plan.get("version") != VERSION:
        raise ValueError(f"plan['version'] is {plan.get('version')!r}; this calibnorm reads version {VERSION}")
    layers = plan.get("layers")
    wanted = set(LayerPlan.__annotations__)
    if not isinstance(layers, Mapping) or any(set(layer) != wanted for layer in layers.values()):
        raise ValueError(f"plan['layers'] must map names to {sorted(wanted)}; make a plan with cn.plan(model)")
    return Plan(
        version=VERSION,
        layers={name: cast(LayerPlan, dict(layer)) for name, layer in layers.items()},
        left=dict(plan.get("left", {})),
    )


def is_done(module: nn.Module, layer: LayerPlan) -> bool:
    """Whether the module already is what the plan asks for."""
    if not isinstance(module, CalibratedNorm) or module.method_type.name != layer["method"]:
        return False
    return module.options() == _layer(layer, module).options()


def _describe(found: list[Found]) -> Plan:
    layers: dict[str, LayerPlan] = {}
    left: dict[str, str] = {}
    for name, module, _ in found:
        if isinstance(module, CalibratedNorm):
            layers[name] = LayerPlan(
                method=module.method_type.name,
                options=module.options(),
                preserve=module.compensated,
                features=module.num_features,
            )
        else:
            left[name] = f"plain {type(module).__name__}"
    return Plan(version=VERSION, layers=layers, left=left)


def _layer_plan(entry: Found, method: str, options: dict[str, Any], preserve: bool) -> LayerPlan:
    why = None if isinstance(entry.module, CalibratedNorm) else sources.refusal(entry.module)
    if why is not None:
        raise ValueError(f"{entry.name or 'the model'} {why}")
    return LayerPlan(method=method, options=dict(options), preserve=preserve, features=_features(entry.module))


def _features(module: Any) -> int:
    return int(module.num_features if hasattr(module, "num_features") else module.weight.numel())


def _layer(layer: LayerPlan, module: Any) -> CalibratedNorm:
    """Return the planned layer without memory, to ask it questions."""
    size = module.dims if isinstance(module, CalibratedNorm) else sources.dims(module)
    affine = module.weight is not None
    return layer_type(layer["method"], size)(layer["features"], affine=affine, device="meta", **layer["options"])


def _check_layer(name: str, module: nn.Module, layer: LayerPlan) -> None:
    if _features(module) != layer["features"]:
        raise ValueError(
            f"{name}: the plan was made for {layer['features']} channels, the network has {_features(module)}"
        )
    try:
        new = _layer(layer, module)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if isinstance(module, CalibratedNorm):
        if is_done(module, layer):
            return
        if why := irreversible(module):
            raise ValueError(
                f"{name} is a trained {type(module).__name__} ({why}), and a method replaces another through plain "
                "BatchNorm; call cn.revert(model, lossy=True) first"
            )
    else:
        if why := sources.refusal(module):
            raise ValueError(f"{name} {why}")
    if layer["preserve"]:
        _check_preserve(name, module, new)


def _check_preserve(name: str, module: Any, new: CalibratedNorm) -> None:
    """Refuse preserve=True where gamma and beta cannot take back what the initial gate does."""
    if new.noise is not None and new.noise_in == "always":
        raise ValueError("preserve=True cannot keep a network's function under noise; leave one of the two out")
    gate = new.method.initial_gate(new.num_features)
    if gate is None or not bool(gate.all()):
        raise ValueError(
            f"preserve=True needs an initial gate that is a constant other than 0; {new.method} has none "
            "(use the default operator, activation and init)"
        )
    holder = module.bn if isinstance(module, CalibratedNorm) else module
    for gated in new.method.gated:
        stored = holder._parameters.get(gated, holder._buffers.get(gated))
        if stored is None and (gated == "weight" or new.method.gated == ("bias",)):
            raise ValueError(
                f"{name}: preserve=True divides {gated} by the initial gate, and this layer has no {gated} of its own "
                "(affine=False, or a parametrization); convert it with preserve=False or leave it out with exclude="
            )


def warn_if_trained(found: list[Found], plan: Plan) -> None:
    """Say that a trained network will not compute the same afterwards."""
    changes = {name for name, layer in plan["layers"].items() if layer["method"] != "bn" and not layer["preserve"]}
    trained = [e.name for e in found if e.name in changes and not isinstance(e.module, CalibratedNorm)]
    modules = {e.name: e.module for e in found}
    if any(sources.looks_trained(modules[name]) for name in trained):
        warnings.warn(
            "the network has been trained, and its function changes: a new gate scales every channel. "
            "preserve=True keeps the function; preserve=False is right for training from here on as the papers do",
            stacklevel=3,
        )
