"""What a layer makes of an image, step by step: RBN's Figure 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.inspect.evaluating import Called, evaluate, watching
from calibnorm.inspect.layers import layers_of
from calibnorm.inspect.steps import Coefficients, is_understood, over_pixels, steps_of
from calibnorm.inspect.tables import Table
from calibnorm.networks.finding import check_model
from calibnorm.nn import CalibratedNorm


@dataclass(frozen=True)
class Stage:
    """A feature in numbers, over all images, channels and pixels.

    Args:
        stage: "input", "centred", "standardized", "scaled" or "output".
        mean: Its mean.
        std: Its standard deviation.
        least: Its least value.
        largest: Its largest value.
    """

    stage: str
    mean: float
    std: float
    least: float
    largest: float


class Stages(Table[Stage]):
    """A row for every stage."""

    row = Stage


@dataclass(frozen=True)
class Features:
    """What :func:`features` returns. It prints as a table of its stages.

    Args:
        layer: The layer's name.
        stages: The features, (N, C, *spatial), in their order: "input"; "centred", after the centering calibration;
            "standardized"; "scaled", after the scaling calibration or another gate; and "output". A layer lacks those
            that it does not compute, and of a norm of another library there are input and output.
    """

    layer: str
    stages: dict[str, Tensor]

    def __getitem__(self, stage: str) -> Tensor:
        return self.stages[stage]

    def table(self) -> Stages:
        """Return the stages in numbers."""
        numbers = ((stage, feature.double()) for stage, feature in self.stages.items())
        return Stages(
            Stage(stage, x.mean().item(), x.std(correction=0).item(), x.min().item(), x.max().item())
            for stage, x in numbers
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the stages in numbers, as dicts."""
        return self.table().to_dicts()

    def __str__(self) -> str:
        return str(self.table())


def features(model: nn.Module, image: Tensor, layer: str) -> Features:
    """Return a layer's features of an image before and after each of its steps.

    For RBN these are X, X_cm, X_s, X_cs (Eq. 12) and the output; RBN's Figure 6 shows such. The network runs in
    evaluation mode, without gradients, and is afterwards as it was. Of a layer that is called several times for an
    image, the first call counts.

    Args:
        model: The network.
        image: (C, H, W), or a batch of images.
        layer: The layer's name in the network, such as "layer3.2.bn2".

    Returns:
        A :class:`Features`, whose ``stages`` are tensors by name.

    Raises:
        TypeError: The model is no module, or the image no tensor.
        ValueError: There is no such layer, or the network does not call it.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), cn.RBN2d(8))
    >>> seen = cn.inspect.features(net, torch.randn(3, 8, 8), "1")
    >>> [(stage, tuple(feature.shape)) for stage, feature in seen.stages.items()][:2]
    [('input', (1, 8, 6, 6)), ('centred', (1, 8, 6, 6))]
    >>> [row.stage for row in seen.table()]
    ['input', 'centred', 'standardized', 'scaled', 'output']
    """
    check_model(model)
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor (C, H, W), or a batch of such, not {type(image).__name__}")
    modules = dict(model.named_modules())
    if layer not in modules:
        norms = [*layers_of(model).values()]
        shown = ", ".join(norms[:5]) + (", ..." if len(norms) > 5 else "")
        raise ValueError(f"layer={layer!r} is no module of the network; its norms are {shown or 'not known'}")
    stages: dict[str, Tensor] = {}

    def look(call: Called) -> None:
        if not stages:
            stages.update(stages_of(call, layer))

    with watching({modules[layer]: look}):
        evaluate(model, image[None] if image.ndim == 3 else image)
    if not stages:
        raise ValueError(f"layer={layer!r} is not called when the network is")
    return Features(layer, stages)


def stages_of(call: Called, name: str) -> dict[str, Tensor]:
    """Return the features of a call."""
    layer: Any = call.layer
    stages = {"input": call.input.detach().clone()}
    if is_understood(layer):
        steps = steps_of(layer, call.input, name)
        calibrated = isinstance(layer, CalibratedNorm)
        spatial = layer.method.spatial if calibrated else ()
        if steps.centred is not None:
            stages["centred"] = steps.feature(Coefficients(torch.ones_like(steps.m), steps.centred))
        elif "center_weight" in spatial:
            stages["centred"] = steps.x
        if not calibrated or layer.method.normalizes:
            stages["standardized"] = steps.feature(steps.standardized)
        if steps.scales:
            stages["scaled"] = steps.feature(steps.scaled)
        elif "scale_weight" in spatial:
            stages["scaled"] = layer.method.after_steps(
                stages["standardized"], over_pixels(layer.gates(), call.input)
            ).detach()
    return {**stages, "output": call.output.detach().clone()}
