"""Any network's BatchNorms become calibrated layers, in place, with weights, statistics and modes kept."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from calibnorm.conversion import planning, sources
from calibnorm.conversion.planning import LayerPlan, Plan
from calibnorm.conversion.reverting import fold
from calibnorm.conversion.selection import Patterns, Predicate
from calibnorm.conversion.sources import Found
from calibnorm.methods import BN
from calibnorm.nn import CalibratedNorm, layer_type

log = logging.getLogger("calibnorm")

_WRAPPERS = ("FullyShardedDataParallel", "FSDPModule")


def convert(
    model: nn.Module,
    method: str | Mapping[str, Any],
    *,
    preserve: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    where: Predicate | None = None,
    stages: Any = None,
    skip: str | None = None,
    report: Callable[[str], object] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every BatchNorm of a network by a calibrated layer, in place, and return the network.

    The BatchNorm itself becomes the layer's child ``bn``: its parameters (the same objects), running statistics, mode,
    device, dtype, requires_grad and process group stay. Forward and backward hooks move to the layer. The whole
    conversion is planned and checked first; an error changes nothing.

    Args:
        model: The network. Convert before wrapping it for distributed training and before making the optimizer.
        method: A method's name, or a plan from :func:`plan`, which says everything itself.
        preserve: Keep the network's function: the initial gate, a constant d, is divided out of gamma (or beta, or
            both, as the gate's position is). False leaves gamma as it is, as the papers train from scratch.
        include: Glob patterns over dotted names, such as ``"layer4.*"``; a layer must match one.
        exclude: Glob patterns; a layer must match none.
        where: A function of (name, module) that returns True for the layers to convert.
        stages: Numbers of the stages to convert, from 1 (RBN's Table 4), in networks that name them.
        skip: ``"shortcut"`` leaves the BatchNorms of shortcut branches plain, as the parameter counts of the IEBN
            paper's ImageNet table imply.
        report: Called with a text that says, layer by layer, what was changed and what was left: ``print``, say.
        options: Options of the method's layer, such as ``position="both"``, ``noise=(0.8, 0.5)``. Noise reaches every
            BatchNorm of the network: layers that are not selected become plain BatchNorm with noise. ``gamma_init`` of
            ``"bn"`` multiplies gamma, so that a last gamma that starts at zero stays zero.

    Returns:
        The network; where it is itself a BatchNorm, the new layer.

    Raises:
        TypeError: The model is no module, or an option is not known.
        ValueError: A value is not known, a layer cannot be converted (it is named), or the network is wrapped.

    Warns:
        UserWarning: The network has no BatchNorm, or has been trained and ``preserve`` is False.

    >>> import torch, torchvision, calibnorm as cn
    >>> net = torchvision.models.resnet18()
    >>> net = cn.convert(net, "iebn")
    >>> type(net.layer1[0].bn1).__name__
    'IEBN2d'
    """
    _check_model(model)
    if isinstance(method, Mapping):
        choices = (include, exclude, where, stages, skip)
        if preserve or options or any(choice is not None for choice in choices):
            raise ValueError("a plan says everything about the conversion; pass nothing beside it but report=")
        chosen = planning.read(method)
        found = sources.find(model)
        planning.check(found, chosen)
    else:
        chosen = planning.plan(
            model,
            method,
            preserve=preserve,
            include=include,
            exclude=exclude,
            where=where,
            stages=stages,
            skip=skip,
            **options,
        )
        found = sources.find(model)
    if not found:
        warnings.warn(f"{type(model).__name__} has no BatchNorm; nothing was converted", stacklevel=2)
        return model
    planning.warn_if_trained(found, chosen)
    root, lines = _apply(model, found, chosen)
    text = "\n".join([*lines, *(f"{name}: left, {why}" for name, why in chosen["left"].items())])
    log.info("%s", text)
    if report is not None:
        report(text)
    return root


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for module in model.modules():
        kinds = {base.__name__ for base in type(module).__mro__}
        if isinstance(module, DistributedDataParallel) or kinds & set(_WRAPPERS):
            raise ValueError(
                f"the network is wrapped in {type(module).__name__}, which would not see the new gates; "
                "convert first, then wrap"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("the network holds a ScriptModule, which cannot be changed; convert first, then script")


def _apply(model: nn.Module, found: list[Found], plan: Plan) -> tuple[nn.Module, list[str]]:
    """Carry out a plan that has been checked; return the network and a line for every layer."""
    root, lines = model, []
    cuda = sorted(
        {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )
    with torch.random.fork_rng(devices=cuda):  # fc gates start at random: the caller's generators stay as they were
        for entry in found:
            layer = plan["layers"].get(entry.name)
            if layer is None:
                continue
            if planning.is_done(entry.module, layer):
                lines.append(f"{entry.name}: already {type(entry.module).__name__}")
                continue
            new = _convert_one(entry.module, layer)
            sources.replace(entry, new)
            root = new if entry.module is model else root
            before = type(entry.module).__name__
            lines.append(f"{entry.name}: {before} -> {type(new).__name__}({new.extra_repr()})")
    return root, lines


def _convert_one(source: nn.Module, layer: LayerPlan) -> CalibratedNorm:
    drop: nn.Module | None
    act: nn.Module | str | None
    if isinstance(source, CalibratedNorm):
        dims, child, drop, act = source.dims, fold(source), source.drop, source.act
    else:
        dims = sources.dims(source)
        child, drop, act = sources.take_apart(source)
    new = layer_type(layer["method"], dims).around(child, **layer["options"])
    new.drop = drop
    if act is not None:
        new.act = act
    sources.move_hooks(source, new)
    if sources.is_frozen(child) and "center_weight" in new._parameters:
        new.center_weight.requires_grad_(False)  # the frozen running mean belongs to w_m as it is
    if layer["preserve"]:
        _compensate(new)
    if isinstance(new.method, BN) and new.method.gamma_init != 1.0:
        with torch.no_grad():
            for part in sources.tensors(child):
                part.weight.mul_(new.method.gamma_init)  # type: ignore[operator]
    return new


@torch.no_grad()
def _compensate(layer: CalibratedNorm) -> None:
    """Divide the initial gate out of gamma and beta, where the gate multiplies them."""
    gate = layer.method.initial_gate(layer.num_features)
    assert gate is not None
    for part in sources.tensors(layer.bn):
        for name in layer.method.gated:
            stored = getattr(part, name)
            if stored is not None:
                stored.div_(gate.to(stored))
    layer.compensated = True
