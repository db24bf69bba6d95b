"""Which layers a conversion takes and what they become: the plan, checked whole before anything changes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from calibnorm import _checks
from calibnorm.conversion import branches, checking, plans, sources
from calibnorm.conversion.plans import LayerPlan, Plan
from calibnorm.conversion.selection import Patterns, Predicate, picked, select
from calibnorm.networks import finding
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm, layer_type


def plan(  # noqa: D417 (the arguments of convert are described there)
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
        preserve, include, exclude, where, stages, skip, options: As for :func:`convert`.

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
    found = finding.find_norms(model)
    choices = {"include": include, "exclude": exclude, "where": where, "stages": stages, "skip": skip}
    if method is not None:
        return make(model, found, method, preserve, choices, options)
    if preserve or options or any(choice is not None for choice in choices.values()):
        raise ValueError("without a method the plan describes the model as it is; name a method, or pass nothing else")
    return plans.describe(found)


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
    probe = checking.probe(method, 2, None, True, options)  # an unknown method or a wrong option, before anything else
    if preserve and options.get("act") is not None:
        raise ValueError("preserve=True cannot keep a network's function with act=, which adds a ReLU; leave one out")
    left = select(model, found, **choices)
    if probe.method.last_of_branch and probe.method.normalizes and not picked(choices):
        left |= branches.leave_inner(model, [entry for entry in found if entry.name not in left])
    attack = ("noise", "noise_in") if options.get("noise") is not None else ()
    noise = {name: options[name] for name in attack if name in options}
    layers: dict[str, LayerPlan] = {}
    for entry in found:
        if entry.name not in left:
            layers[entry.name] = _layer_plan(entry, method, options, preserve)
        elif noise and not isinstance(entry.module, CalibratedNorm):
            # the attack reaches every BatchNorm of a network, converted or not
            if why := finding.refusal(entry.module):
                warnings.warn(f"the noise does not reach {entry.title}, which {why}", stacklevel=3)
                continue
            layers[entry.name] = _layer_plan(entry, "bn", noise, False)
            left.pop(entry.name)
    result = Plan(version=plans.VERSION, layers=layers, left=left)
    checking.check(model, found, result)
    for entry in found:  # layers that are done stay as they are: the plan says how they are
        layer = layers.get(entry.name)
        if layer is not None and isinstance(entry.module, CalibratedNorm) and checking.is_done(entry.module, layer):
            layer["preserve"] = entry.module.compensated
    return result


def _layer_plan(entry: Found, method: str, options: Mapping[str, Any], preserve: bool) -> LayerPlan:
    checking.check_source(entry)
    module, defaults = entry.module, layer_type(method).method_type.for_trained
    if isinstance(module, CalibratedNorm) and module.method_type.name == method:
        defaults = {name: value for name, value in module.options().items() if name in defaults}
    elif not preserve or "operator" in options:
        defaults = {}
    return LayerPlan(
        method=method,
        options=plans.as_json({**defaults, **options}),
        preserve=preserve,
        features=finding.num_features(module),
    )


def warn_if_trained(found: list[Found], plan: Plan) -> None:
    """Say that a trained network will not compute the same afterwards."""
    for entry in found:
        layer = plan["layers"].get(entry.name)
        if layer is None or layer["method"] == "bn" or layer["preserve"] or checking.is_done(entry.module, layer):
            continue
        if not sources.looks_trained(entry.module):
            continue
        affine = finding.batchnorm_of(entry.module).weight is not None
        new = checking.probe(layer["method"], sources.dims(entry.module), layer["features"], affine, layer["options"])
        gate = new.method.initial_gate(layer["features"])
        if gate is not None and bool((gate == 1.0).all()):  # Ghost BN and Batch Renorm are BatchNorm in eval
            continue
        why = (
            f"{layer['method']!r} does not start as BatchNorm, and no preserve= can keep the function; train it further"
            if gate is None
            else "a new gate scales every channel. preserve=True keeps the function; preserve=False is right for "
            "training from here on as the papers do"
        )
        warnings.warn(f"the network has been trained, and its function changes: {why}", stacklevel=3)
        return
