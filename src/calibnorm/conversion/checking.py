"""Whether a plan can be carried out on a network's layers, found out whole before anything changes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from calibnorm import _checks
from calibnorm.conversion import plans, sources
from calibnorm.conversion.plans import LayerPlan, Plan
from calibnorm.conversion.reverting import irreversible, unwritable
from calibnorm.methods import methods, not_an_option
from calibnorm.networks import finding
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm, layer_type
from calibnorm.nn.arguments import layer_options

OF_CONVERT = ("preserve", "include", "exclude", "where", "stages", "skip", "report")
"""Arguments of cn.convert and cn.plan, which a mistyped option may have meant."""


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


def is_done(module: nn.Module, layer: LayerPlan) -> bool:
    """Whether the module already has the method and options that the plan asks for; see :func:`check_compensated`."""
    if not isinstance(module, CalibratedNorm) or module.method_type.name != layer["method"]:
        return False
    act = {"act": module.act} if isinstance(module.act, str) else {}  # an activation stays unless it is asked for
    wanted = probe(layer["method"], module.dims, layer["features"], module.affine, act | layer["options"])
    return module.options() == wanted.options()


def probe(method: str, dims: int, features: int | None, affine: bool, options: Mapping[str, Any]) -> CalibratedNorm:
    """Return a layer without memory, which has checked its options and answers questions."""
    plans.refuse_text(method)
    _checks.choice("method", method, methods())
    kind = layer_type(method, dims)
    arguments, known = inspect.signature(kind).parameters, layer_options(kind)
    for name in options:
        if name in arguments and name not in known:
            raise ValueError(f"{name}={options[name]!r} belongs to the BatchNorm, which keeps its own; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name.lower(), [*known, *OF_CONVERT], 1, 0.8)
            raise TypeError(not_an_option(name, method, known) + (f"; did you mean {near[0]}?" if near else ""))
    features = kind.fewest_channels(options) if features is None else features
    return kind(features, affine=affine, device="meta", **options)


def check_source(entry: Found) -> None:
    """Refuse a BatchNorm that is not understood."""
    if isinstance(entry.module, CalibratedNorm):
        return
    if why := finding.refusal(entry.module) or finding.held_for_quantization(entry):
        raise ValueError(f"{entry.title} {why}")


def _check_layer(entry: Found, layer: LayerPlan, shared: set[int]) -> None:
    module, name = entry.module, entry.title
    check_source(entry)
    child, channels = finding.batchnorm_of(module), finding.num_features(module)
    if channels != layer["features"]:
        raise ValueError(f"{name}: the plan was made for {layer['features']} channels, the network has {channels}")
    try:
        new = probe(layer["method"], sources.dims(module), channels, child.weight is not None, layer["options"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if is_done(module, layer):
        return
    if why := finding.refusal(module):  # a layer; a BatchNorm has been asked
        raise ValueError(f"{name} {why}")
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
        raise ValueError(f"{name}: {new.method} gates beta, which this layer does not have; {leave}")
    if new.method.initial_weight != 1.0 and (why := sources.locked(child, "weight", shared)):
        raise ValueError(f"{name}: gamma_init multiplies gamma, and this layer {why}; {leave}")
    if not new.method.normalizes:
        raise ValueError(
            f"{name}: {new.method} normalizes nothing, so it cannot take a BatchNorm's place; put a "
            f"{type(new).__name__} behind the convolution where the network is built"
        )
    if layer["preserve"]:
        default = probe(layer["method"], new.dims, channels, new.affine, {})
        _check_preserve(name, child, new, default, shared)


def _check_preserve(
    name: str, child: nn.Module, new: CalibratedNorm, default: CalibratedNorm, shared: set[int]
) -> None:
    """Refuse preserve=True where gamma and beta cannot take back what the initial gate does."""
    if new.noise is not None and new.noise_in == "always":
        raise ValueError("preserve=True cannot keep a network's function under noise; leave one out")
    if new.method.initial_weight != 1.0:
        raise ValueError("preserve=True cannot keep a network's function with gamma_init; leave one out")
    gate = new.method.initial_gate(new.num_features)
    if gate is None and not new.method.gated:
        raise ValueError(
            f"preserve=True cannot keep a network's function with {new.method}, which does not start as BatchNorm; "
            "use preserve=False"
        )
    if not _can_be_divided_out(gate):
        helps = _can_be_divided_out(default.method.initial_gate(new.num_features))
        options = [option for option in new.method.options() if helps and option not in new.method_type.for_trained]
        without = f", or leave out {' and '.join(f'{option}=' for option in options)}" if options else ""
        raise ValueError(
            f"preserve=True needs an initial gate that is a constant other than 0, and that of {new.method} is not: "
            f"use preserve=False{without}"
        )
    for gated in new.method.gated:
        why = sources.locked(child, gated, shared)
        if why and not (gated == "bias" and child.bias is None):  # the gate does nothing to a beta that is not there
            raise ValueError(
                f"{name}: preserve=True divides {gated} by the initial gate, and this layer {why}; "
                "convert it with preserve=False or leave it out with exclude="
            )


def _can_be_divided_out(gate: Tensor | None) -> bool:
    return gate is not None and bool(gate.all())
