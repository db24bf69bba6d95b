"""Any network's BatchNorms become calibrated layers, in place, with weights, statistics and modes kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.conversion import checking, planning, plans, sources
from calibnorm.conversion.plans import LayerPlan, Plan
from calibnorm.conversion.reverting import average_gates, fold_gates
from calibnorm.conversion.selection import Patterns, Predicate
from calibnorm.networks import finding, reporting
from calibnorm.networks.finding import Found
from calibnorm.networks.freezing import hold_center
from calibnorm.networks.reporting import Report
from calibnorm.nn import CalibratedNorm, layer_type


def convert(
    model: nn.Module,
    method: str | Mapping[str, Any],
    *,
    preserve: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    where: Predicate | None = None,
    stages: int | Sequence[int] | None = None,
    skip: str | None = None,
    report: Report = None,
    **options: Any,
) -> nn.Module:
    """Replace every BatchNorm of a network by a calibrated layer, in place, and return the network.

    The BatchNorm itself becomes the layer's child ``bn``: its parameters (the same objects), running statistics, mode,
    device, dtype, requires_grad and process group stay. Forward and backward hooks move to the layer; a hook that is
    put on the child afterwards runs around what the layer computes in its place. The whole conversion is planned and
    checked first; an error changes nothing.

    A calibrated layer that already has the method and options that are asked for stays as it is, whether or not it was
    converted with ``preserve=True``: staying keeps its function. A plan describes the layers in full, so one whose
    ``preserve`` differs from how a layer was converted is refused.

    Args:
        model: The network. Convert before wrapping it for distributed training and before making the optimizer.
        method: A method's name, or a plan from :func:`plan`, which says everything itself.
        preserve: Keep the network's function: the initial gate, a constant d, is divided out of gamma (or beta, or
            both, as the gate's position is). False leaves gamma as it is, as the papers train from scratch. IEBN's
            gate then has ``gate_input="standardized"`` unless that is given: with the paper's input, the raw mean, a
            trained network's gates move too fast for it to be trained further (docs/fine-tuning.md).
        include: Glob patterns over dotted names, such as ``"layer4.*"``; a layer must match one. A layer with several
            names goes by each of them; the layers of a block that is registered twice go by the block's first name.
        exclude: Glob patterns; a layer must match none.
        where: A function of (name, module) that returns True for the layers to convert.
        stages: A number or numbers of the stages to convert, from 1 (RBN's Table 4), in networks that name them:
            ``layer1``, ``stage1``, ``stage_1``, ``denseblock1``, ``block1``, ``s1``, or, counted from 0, ``stages.0``,
            ``blocks.0``, ``layers.0``; the first such name in a layer's dotted name counts.
        skip: ``"shortcut"`` leaves the BatchNorms of shortcut branches plain, as the parameter counts of the IEBN
            paper's ImageNet table imply.
        report: Called with a text that says, layer by layer, what was changed and what was left: ``print``, say.
        options: Options of the method's layer, such as ``position="both"``, ``noise=(0.8, 0.5)``. Noise reaches every
            BatchNorm of the network: layers that are not selected become plain BatchNorm with noise. ``gamma_init`` of
            ``"bn"`` multiplies gamma, so that a last gamma that starts at zero stays zero.

    Returns:
        The network; where it is itself a BatchNorm, the new layer.

    Raises:
        TypeError: The model is no module, an argument has the wrong type, or an option is not known.
        ValueError: A value is not known, a layer cannot be converted (it is named), the plan belongs to another
            network or to one converted with another ``preserve``, or the network is wrapped (DistributedDataParallel,
            FSDP, torch.compile, torch.jit).

    Warns:
        UserWarning: Nothing was converted; or the network has been trained and ``preserve`` is False.

    >>> import torch, torchvision, calibnorm as cn
    >>> net = torchvision.models.resnet18()
    >>> net = cn.convert(net, "iebn")
    >>> type(net.layer1[0].bn1).__name__
    'IEBN2d'
    """
    finding.check_unwrapped(model)
    reporting.check_report(report)
    found = finding.find_norms(model)
    choices = {"include": include, "exclude": exclude, "where": where, "stages": stages, "skip": skip}
    if not isinstance(method, Mapping):
        chosen = planning.make(model, found, method, preserve, choices, options)
    elif preserve or options or any(choice is not None for choice in choices.values()):
        raise ValueError("a plan says everything about the conversion; pass nothing beside it but report=")
    else:
        chosen = plans.read(method)
        checking.check(model, found, chosen)
        checking.check_compensated(found, chosen)
    if not chosen["layers"]:
        why = "has no BatchNorm" if not found else f"has {len(found)} BatchNorms, of which none was selected"
        warnings.warn(f"{type(model).__name__} {why}; nothing was converted", stacklevel=2)
    planning.warn_if_trained(found, chosen)
    root, text = _apply(model, found, chosen)
    reporting.tell(text, report)
    return root


def _apply(model: nn.Module, found: list[Found], plan: Plan) -> tuple[nn.Module, str]:
    """Carry out a plan that has been checked; return the network and the report."""
    cuda = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})
    layers = plan["layers"]
    # every layer is made before the first one is put in, so that running out of memory changes nothing either;
    # fc gates start at random: the caller's generators stay as they were
    fallback = finding.like(model)  # once, as it looks through all of the network: ResNet-164 in 81 instead of 292 ms
    # ordinary tensors under torch.inference_mode() too: gates are there to learn
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False):
        fresh = {
            entry.name: _make(entry.module, layers[entry.name], fallback)
            for entry in found
            if entry.name in layers and not checking.is_done(entry.module, layers[entry.name])
        }
    root, lines = model, []
    for entry in found:
        before = type(entry.module).__name__
        if entry.name in fresh:
            new = fresh[entry.name]
            _move_in(entry.module, new, layers[entry.name])
            sources.replace(entry, new)
            root = new if entry.module is model else root
            lines.append(f"{entry.title}: {before} -> {type(new).__name__}({new.extra_repr()})")
        elif entry.name in layers:
            lines.append(f"{entry.title}: already {before}")
        else:
            lines.append(f"{entry.title}: left, {plan['left'][entry.name]}")
    done = len(layers) - len(fresh)
    head = f"{len(found)} normalizations: {len(fresh)} converted, {done} done already, {len(found) - len(layers)} left"
    return root, "\n".join([head, *lines])


def _make(source: nn.Module, layer: LayerPlan, fallback: Tensor | None) -> CalibratedNorm:
    """Return the new layer with its gates; its BatchNorm is a placeholder."""
    like = finding.like(finding.batchnorm_of(source))
    like = fallback if like is None else like  # a BatchNorm without affine and tracking says nothing of its device
    return layer_type(layer["method"], sources.dims(source))(
        layer["features"],
        affine=finding.batchnorm_of(source).weight is not None,
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
        **layer["options"],
    )


def _move_in(source: nn.Module, new: CalibratedNorm, layer: LayerPlan) -> None:
    """Let the new layer take over child, drop, act, mode and hooks of the source, and compensate for its gate."""
    act: nn.Module | str | None
    if isinstance(source, CalibratedNorm):
        child, drop, act, new.frozen = fold_gates(source, average_gates(source)), source.drop, source.act, source.frozen
    else:
        child, drop, act = sources.take_apart(source)
    new.bn, new.drop, new.training = child, drop, source.training
    if isinstance(act, str) or (act is not None and new.act is None):
        new.act = act
    sources.move_hooks(source, new)
    if new.frozen or finding.is_frozen(child):
        hold_center(new)
    if layer["preserve"]:
        gate = new.method.initial_gate(new.num_features)
        assert gate is not None, "the plan has been checked"
        _scale(new, 1.0 / gate, new.method.gated)
        new.compensated = True
    if new.method.initial_weight != 1.0:
        _scale(new, new.method.initial_weight, ("weight",))
    new._gamma_unseen = bool(layer["preserve"]) or new.method.initial_weight != 1.0


@torch.no_grad()
def _scale(layer: CalibratedNorm, factor: Tensor | float, names: Iterable[str]) -> None:
    """Multiply gamma or beta, in float32 or wider, of every part of the child that has one."""
    for part in finding.parts_of(layer.bn):
        for name in names:
            stored = getattr(part, name)
            if stored is not None:
                wide = torch.promote_types(stored.dtype, torch.float32)
                by = factor.to(stored.device, wide) if isinstance(factor, Tensor) else factor
                stored.copy_(stored.to(wide) * by)
