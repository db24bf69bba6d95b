"""What a fold does to a network, as a plain dict that JSON can hold, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from calibnorm.networks.tables import aligned

VERSION = 1


class LayerFold(TypedDict):
    """One calibrated layer: what becomes of it, and what that costs; shares are of 1, and None was not measured."""

    layer: str
    features: int
    fold: bool
    why: str
    """Why it is left; "" where it is folded."""
    scale: list[float] | None
    """With ``shift`` the BatchNorm that it becomes, ``y = scale * x + shift``; None where its gate is constant."""
    shift: list[float] | None
    gate_varies: float | None
    """The standard deviation of its gate from image to image over its mean, averaged over the channels."""
    layer_change: float | None
    """The root mean square of the change of its output, over the standard deviation of that."""
    logit_change: float | None
    """The same of the network's output, with this layer alone held constant."""
    answers_changed: float | None
    """The share of images whose largest output is another one then."""


class Whole(TypedDict):
    """What all folded layers cost together, on images that were not used to choose."""

    images: int
    logit_change: float
    answers_changed: float | None
    saved: float
    """Of the numbers that calibrated layers read, those that the folded ones read: what there is to save in time."""


class FoldPlan(TypedDict):
    """Every calibrated layer of a network by name, and what folding costs."""

    version: int
    tolerance: float | None
    layers: dict[str, LayerFold]
    whole: Whole


def read(plan: Mapping[str, Any]) -> FoldPlan:
    """Check the form of a plan that came from outside, such as a JSON file, and return it."""
    remedy = "make a plan with cn.fold_plan(model, images)"
    if plan.get("version") != VERSION or plan.keys() != FoldPlan.__annotations__.keys():
        raise ValueError(f"the plan is not one of cn.fold of version {VERSION}; {remedy}")
    for name, layer in plan["layers"].items():
        if not isinstance(layer, Mapping) or layer.keys() != LayerFold.__annotations__.keys():
            raise ValueError(f"plan['layers'][{name!r}] must hold {', '.join(LayerFold.__annotations__)}; {remedy}")
        sizes = {len(layer[key]) for key in ("scale", "shift") if layer[key] is not None}
        if (layer["scale"] is None) != (layer["shift"] is None) or not sizes <= {layer["features"]}:
            raise ValueError(
                f"plan['layers'][{name!r}] must have {layer['features']} numbers in scale and shift; {remedy}"
            )
    return cast(FoldPlan, plan)


def describe(plan: FoldPlan) -> str:
    """Return the report of a plan."""
    layers, whole, tolerance = plan["layers"], plan["whole"], plan["tolerance"]
    folded = sum(layer["fold"] for layer in layers.values())
    lines = [f"{len(layers)} calibrated layers: {folded} folded, {len(layers) - folded} left"]
    if layers:
        allowed = "without a limit" if tolerance is None else f"{_percent(tolerance)} allowed"
        answers = whole["answers_changed"]
        lines += [
            f"the folded ones read {_percent(whole['saved'])} of the numbers that calibrated layers read",
            f"on {whole['images']} images that were not used to choose, the outputs change by "
            f"{_percent(whole['logit_change'])} of their standard deviation ({allowed})"
            f"{'' if answers is None else f', and {_percent(answers)} of the answers change'}",
        ]
        if tolerance is not None and whole["logit_change"] > max(tolerance, 1e-5):
            lines.append("that is more than was allowed: the images that chose were too few, or unlike the others")
        head = ("layer", "is", "becomes", "gate varies", "its output", "outputs", "answers", "why it is left")
        rows = [
            (
                *(name or "(model)", layer["layer"], "BatchNorm" if layer["fold"] else "as it is"),
                *(_percent(layer[key]) for key in ("gate_varies", "layer_change", "logit_change", "answers_changed")),
                layer["why"],
            )
            for name, layer in layers.items()
        ]
        lines += ["", "what each layer would change, held constant alone:", aligned(head, rows)]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"
