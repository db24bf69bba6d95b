"""``cn.fold``: what a plan says is made ready first, and then all of it is put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from calibnorm import _checks
from calibnorm.conversion import reverting, sources
from calibnorm.folding import convolutions, plans
from calibnorm.folding.lines import Line, to_plain
from calibnorm.folding.planning import fold_plan, why_not
from calibnorm.folding.plans import FoldPlan
from calibnorm.inspect.evaluating import Images
from calibnorm.networks import finding, reporting
from calibnorm.networks.finding import Found
from calibnorm.networks.reporting import Report
from calibnorm.nn import CalibratedNorm


def fold(
    model: nn.Module,
    images: Images | Mapping[str, Any],
    *,
    tolerance: float | None = 0.02,
    into_convolutions: bool = False,
    report: Report = None,
) -> nn.Module:
    """Turn calibrated layers whose gates hardly look at the image into plain BatchNorm, in place, for inference.

    A gate costs a second reading of the layer's input at every call. Where it is the same for every image (IEBN with
    g_hat = 0, RBN with w_m = w_v = 0), gamma, or beta, or both take it over exactly. Elsewhere the layer may become the
    BatchNorm that is nearest to it on the images: of the lines ``y = scale * x + shift`` a channel, the one that leaves
    the least mean square of the difference. RBN's centring goes into the statistics.

    The images are halved. One half chooses: lines are fitted on it, and each layer's own price is measured, which is
    how far the network's outputs move when this layer alone is held constant. From the layers whose price is least for
    the numbers that they read, as many are folded as keep the price of all together within the tolerance. The other
    half says what that costs. The images are read several times; memory does not grow with their number.

    Afterwards the network is for evaluation: training goes on as that of plain BatchNorm does. ``cn.convert(model,
    plan)`` with ``cn.plan`` of the network as it was and ``preserve`` brings calibrated layers back without changing
    what it computes; gates that followed the image are in the old checkpoint alone.

    Args:
        model: The network, changed in place. Fold before wrapping or compiling it.
        images: A batch of four images or more, a loader, or a list of batches or of tuples that begin with one. Or a
            plan of :func:`fold_plan`, which says everything itself and needs no images.
        tolerance: How far the network's outputs may move, all layers together: the root mean square of the change over
            the standard deviation of the outputs from image to image. 0 folds what is exact alone, and None all that
            can be folded, whatever it costs. A plan has its own.
        into_convolutions: Fold every BatchNorm, those that were plain before too, into the convolution before it, where
            torch.fx can see that one convolution feeds nothing else. An ``nn.Identity``, or the activation, takes the
            place of the BatchNorm.
        report: Called with a text that says, layer by layer, what was done and what it costs: ``print``, say.

    Returns:
        The network; where it is itself a layer, the BatchNorm.

    Raises:
        TypeError: The model is no module, a batch is no tensor, or the network returns no tensor of outputs.
        ValueError: The tolerance is negative, there are fewer than four images, the images are others when they are
            read again, an output is not finite, the plan belongs to another network, or the network is wrapped. Nothing
            has changed then.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), cn.IEBN2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    >>> x = torch.randn(16, 3, 8, 8)
    >>> before = net.eval()(x)
    >>> net = cn.fold(net, x, into_convolutions=True)
    >>> [type(module).__name__ for module in net], torch.allclose(net(x), before, atol=1e-5)
    (['Conv2d', 'Identity', 'Flatten', 'Linear'], True)
    """
    finding.check_unwrapped(model)
    reporting.check_report(report)
    _checks.flag("into_convolutions", into_convolutions)
    if isinstance(images, Mapping):
        plan = plans.read(images)
        check(model, plan)
    else:
        plan = fold_plan(model, images, tolerance=tolerance)
    found = {entry.name: entry for entry in finding.find_layers(model)}
    lines = {name: _line(layer["scale"], layer["shift"]) for name, layer in plan["layers"].items() if layer["fold"]}
    text = plans.describe(plan)
    pairs = convolutions.Pairs({}, {}, {})
    if into_convolutions:
        pairs = convolutions.find(model, {found[name].module: line for name, line in lines.items()})
        text = f"{text}\n\n{pairs.text(found.values())}"
    # every gate and every convolution is computed before the first layer is written, so that an error changes nothing
    gates = {name: reverting.average_gates(found[name].module) for name in lines}  # type: ignore[arg-type]
    root = model
    for name, entry in found.items():
        new = pairs.instead.get(entry.module)
        if new is None and name in lines:
            new = to_plain(entry.module, gates[name], lines[name])  # type: ignore[arg-type]
        if new is not None:
            sources.replace(entry, new)
            root = new if entry.module is model else root
    pairs.put_in()
    reporting.tell(text, report)
    return root


def check(model: nn.Module, plan: FoldPlan) -> None:
    """Refuse a plan that cannot be carried out on this network.

    Raises:
        ValueError: A layer is missing, unknown, another, or cannot be folded as the plan says; it is named.
    """
    found = {e.name: e for e in finding.find_layers(model) if isinstance(e.module, CalibratedNorm)}
    for name in plan["layers"].keys() ^ found.keys():
        where = "the plan names" if name in plan["layers"] else "the plan does not name"
        raise ValueError(f"{where} the calibrated layer {name!r}; was it made for another network?")
    shared = sources.tied(model)
    for name, layer in plan["layers"].items():
        entry = found[name]
        came, channels = type(entry.module).__name__, finding.num_features(entry.module)
        if (came, channels) != (layer["layer"], layer["features"]):
            raise ValueError(
                f"{entry.title}: the plan was made for a {layer['layer']} of {layer['features']} channels, and this is "
                f"a {came} of {channels}"
            )
        if layer["fold"]:
            _check_layer(entry, layer["scale"] is None, shared)


def _check_layer(entry: Found, exact: bool, shared: set[int]) -> None:
    layer = entry.module
    assert isinstance(layer, CalibratedNorm)
    if exact and reverting.constant_gate(layer) is None:
        raise ValueError(
            f"{entry.title}: the plan was made when its gate was constant, and it is not now; make the plan anew with "
            "cn.fold_plan(model, images)"
        )
    if why := why_not(entry, shared, exact):
        raise ValueError(f"{entry.title} cannot be folded as the plan says: {why}")


def _line(scale: list[float] | None, shift: list[float] | None) -> Line | None:
    if scale is None or shift is None:
        return None
    return torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
