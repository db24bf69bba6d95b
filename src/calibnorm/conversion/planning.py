"""What a conversion will do, as a plain dict that JSON can hold: made and checked whole before anything changes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from torch import nn

from calibnorm import _checks
from calibnorm.conversion import branches, sources
from calibnorm.conversion.reverting import irreversible, unwritable
from calibnorm.conversion.selection import Patterns, Predicate, picked, select
from calibnorm.conversion.sources import Found
from calibnorm.methods import methods
from calibnorm.nn import CalibratedNorm, layer_type
from calibnorm.nn.options import layer_options, not_an_option

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
    stages: int | Sequence[int] | None = None,
    skip: str | None = None,
    **options: Any,
) -> Plan:
    """Return what ``cn.convert`` would do, or, without a method, what has been done to the model.

    The plan is a plain dict: save it as JSON beside a checkpoint, and ``cn.convert(fresh_model, plan)`` rebuilds the
    network that the checkpoint belongs to. Statistics frozen by ``cn.freeze_stats`` are a matter of training, not part
    of it.

    Args:
        model: The network; it is not changed.
        method: A method's name; None describes the calibrated layers that the model has now, and takes no further
            argument.
        preserve: As for :func:`convert`.
        include: As for :func:`convert`.
        exclude: As for :func:`convert`.
        where: As for :func:`convert`.
        stages: As for :func:`convert`.
        skip: As for :func:`convert`.
        options: As for :func:`convert`.

    Returns:
        ``version``; ``layers``, by name, with ``method``, ``options``, ``preserve`` and ``features``; ``left``, the
        reasons, by name, why the others are left.

    Raises:
        TypeError: As for :func:`convert`.
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
    choices = {"include": include, "exclude": exclude, "where": where, "stages": stages, "skip": skip}
    if method is not None:
        return make(model, found, method, preserve, choices, options)
    if preserve or options or any(choice is not None for choice in choices.values()):
        raise ValueError("without a method the plan describes the model as it is; name a method, or pass nothing else")
    return _describe(found)


def make(
    model: nn.Module,
    found: list[Found],
    method: str,
    preserve: bool,
    choices: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Plan:
    """Return the plan for the selected layers, checked. Called by what users call: warnings name their line."""
    _checks.flag("preserve", preserve)
    probe = _probe(method, 2, None, True, options)  # an unknown method or a wrong option, before anything else
    if preserve and options.get("act") is not None:
        raise ValueError("preserve=True cannot keep a network's function with act=, which adds a ReLU; leave one out")
    left = select(model, found, **choices)
    if probe.method.last_of_branch and probe.method.normalizes and not picked(choices):
        left |= branches.leave_inner(model, [entry for entry in found if entry.name not in left])
    noise = {name: options[name] for name in ("noise", "noise_in") if name in options}
    if noise.get("noise") is None:
        noise.clear()
    layers: dict[str, LayerPlan] = {}
    for entry in found:
        if entry.name not in left:
            layers[entry.name] = _layer_plan(entry, method, options, preserve)
        elif noise and not isinstance(entry.module, CalibratedNorm):
            # the attack reaches every BatchNorm of a network, converted or not
            if why := sources.refusal(entry.module):
                warnings.warn(f"the noise does not reach {entry.title}, which {why}", stacklevel=3)
                continue
            layers[entry.name] = _layer_plan(entry, "bn", noise, False)
            left.pop(entry.name)
    result = Plan(version=VERSION, layers=layers, left=left)
    check(model, found, result)
    for entry in found:  # layers that are done stay as they are: the plan says how they are
        layer = layers.get(entry.name)
        if layer is not None and isinstance(entry.module, CalibratedNorm) and is_done(entry.module, layer):
            layer["preserve"] = entry.module.compensated
    return result


def check(model: nn.Module, found: list[Found], plan: Plan) -> None:
    """Refuse a plan that cannot be carried out on these layers.

    Raises:
        TypeError: A layer's options are not known; it is named.
        ValueError: A layer cannot become what the plan says; it is named.
    """
    names = {entry.name for entry in found}
    for name in [*plan["layers"], *plan["left"]]:
        if name not in names:
            raise ValueError(
                f"the plan names {name!r}, which is no BatchNorm of this network; was it made for another?"
            )
    shared = sources.tied(model)
    for entry in found:
        if entry.name in plan["layers"]:
            _check_layer(entry, plan["layers"][entry.name], shared)
        elif entry.name not in plan["left"]:
            raise ValueError(
                f"the network has {entry.title}, which the plan does not name; was it made for another? To leave the "
                "layer as it is, put its name with a reason into plan['left']"
            )


def check_compensated(found: list[Found], plan: Plan) -> None:
    """Refuse a plan whose ``preserve`` is not how a layer, otherwise what the plan asks for, was converted.

    Loading a plain checkpoint divides gamma where a layer compensates for its gate, so the two are not the same layer.
    """
    for entry in found:
        layer, module = plan["layers"].get(entry.name), entry.module
        if layer is None or not isinstance(module, CalibratedNorm) or not is_done(module, layer):
            continue
        if module.method.gated and layer["preserve"] != module.compensated:
            raise ValueError(
                f"{entry.title}: the plan says preserve={layer['preserve']}, but this {type(module).__name__} was "
                f"converted with preserve={module.compensated}; call cn.revert(model) first"
            )


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


def is_done(module: nn.Module, layer: LayerPlan) -> bool:
    """Whether the module already has the method and options that the plan asks for; see :func:`check_compensated`."""
    if not isinstance(module, CalibratedNorm) or module.method_type.name != layer["method"]:
        return False
    act = {"act": module.act} if isinstance(module.act, str) else {}  # an activation stays unless it is asked for
    wanted = _probe(layer["method"], module.dims, layer["features"], module.affine, act | layer["options"])
    return module.options() == wanted.options()


def _describe(found: list[Found]) -> Plan:
    layers: dict[str, LayerPlan] = {}
    left: dict[str, str] = {}
    for entry in found:
        name, module = entry.name, entry.module
        if isinstance(module, CalibratedNorm):
            layers[name] = LayerPlan(
                method=module.method_type.name,
                options=_as_json(module.options()),
                preserve=module.compensated,
                features=module.num_features,
            )
        else:
            left[name] = f"plain {type(module).__name__}"
    return Plan(version=VERSION, layers=layers, left=left)


def _layer_plan(entry: Found, method: str, options: Mapping[str, Any], preserve: bool) -> LayerPlan:
    _check_source(entry)
    return LayerPlan(
        method=method, options=_as_json(options), preserve=preserve, features=sources.features(entry.module)
    )


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they come back from a JSON file: a tuple is a list there."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _as_json(value)
    return list(value) if isinstance(value, tuple) else value


def _probe(method: str, dims: int, features: int | None, affine: bool, options: Mapping[str, Any]) -> CalibratedNorm:
    """Return a layer without memory, which has checked its options and answers questions."""
    _checks.choice("method", method, methods())
    kind = layer_type(method, dims)
    arguments, known = inspect.signature(kind).parameters, layer_options(kind)
    for name in options:
        if name in arguments and name not in known:
            raise ValueError(f"{name}={options[name]!r} belongs to the BatchNorm, which keeps its own; leave it out")
        if name not in known:
            raise TypeError(not_an_option(name, method, known))
    features = kind.fewest_channels(options) if features is None else features
    return kind(features, affine=affine, device="meta", **options)


def _check_source(entry: Found) -> None:
    if not isinstance(entry.module, CalibratedNorm) and (why := sources.refusal(entry.module)):
        raise ValueError(f"{entry.title} {why}")


def _check_layer(entry: Found, layer: LayerPlan, shared: set[int]) -> None:
    module, name = entry.module, entry.title
    _check_source(entry)
    child, channels = sources.holder(module), sources.features(module)
    if channels != layer["features"]:
        raise ValueError(f"{name}: the plan was made for {layer['features']} channels, the network has {channels}")
    try:
        new = _probe(layer["method"], sources.dims(module), channels, child.weight is not None, layer["options"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if is_done(module, layer):
        return
    if isinstance(module, CalibratedNorm) and (why := irreversible(module) or unwritable(module, shared)):
        raise ValueError(
            f"{name} is a {type(module).__name__} that cannot turn into another method, which goes through plain "
            f"BatchNorm: {why}. Call cn.revert(model, lossy=True) first, or leave it out with exclude="
        )
    leave = "leave it out with exclude="
    if new.act is not None and sources.has_own_act(module):
        raise ValueError(
            f"{name}: act={new.act!r} was given, but this {type(module).__name__} has an activation; {leave}"
        )
    if new.method.gated == ("bias",) and child.bias is None:
        raise ValueError(f"{name}: position='beta' gates beta, which this layer does not have; {leave}")
    if new.method.initial_weight != 1.0 and (why := sources.locked(child, "weight", shared)):
        raise ValueError(f"{name}: gamma_init multiplies gamma, and this layer {why}; {leave}")
    if not new.method.normalizes:
        raise ValueError(
            f"{name}: {new.method} normalizes nothing, so it cannot take a BatchNorm's place; put a "
            f"{type(new).__name__} behind the convolution where the network is built"
        )
    if layer["preserve"]:
        _check_preserve(name, child, new, shared)


def _check_preserve(name: str, child: nn.Module, new: CalibratedNorm, shared: set[int]) -> None:
    """Refuse preserve=True where gamma and beta cannot take back what the initial gate does."""
    if new.noise is not None and new.noise_in == "always":
        raise ValueError("preserve=True cannot keep a network's function under noise; leave one out")
    if new.method.initial_weight != 1.0:
        raise ValueError("preserve=True cannot keep a network's function with gamma_init; leave one out")
    gate = new.method.initial_gate(new.num_features)
    if gate is None or not bool(gate.all()):
        raise ValueError(
            f"preserve=True needs an initial gate that is a constant other than 0; {new.method} has none "
            "(use the default operator, activation and init)"
        )
    for gated in new.method.gated:
        why = sources.locked(child, gated, shared)
        if why and not (gated == "bias" and child.bias is None):  # the gate does nothing to a beta that is not there
            raise ValueError(
                f"{name}: preserve=True divides {gated} by the initial gate, and this layer {why}; "
                "convert it with preserve=False or leave it out with exclude="
            )


def warn_if_trained(found: list[Found], plan: Plan) -> None:
    """Say that a trained network will not compute the same afterwards."""
    for entry in found:
        layer = plan["layers"].get(entry.name)
        if layer is None or layer["method"] == "bn" or layer["preserve"] or is_done(entry.module, layer):
            continue
        if sources.looks_trained(entry.module):
            warnings.warn(
                "the network has been trained, and its function changes: a new gate scales every channel. "
                "preserve=True keeps the function; preserve=False is right for training from here on as the papers do",
                stacklevel=3,
            )
            return
