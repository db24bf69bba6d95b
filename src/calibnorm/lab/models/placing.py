"""Where a normalization goes in a network: the conversion, and SE where a branch ends in a convolution."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import calibnorm as cn
from calibnorm.conversion.selection import in_shortcut
from calibnorm.lab.models.networks import Network
from calibnorm.lab.models.norms import Norm
from calibnorm.lab.models.preresnet import PreActivation, PreResNet
from calibnorm.nn import CalibratedNorm, layer_type

CHANNELS = 128
"""Of a layer that is asked what its method's initial gate is: as many as any grouping divides."""


def place(
    model: nn.Module, network: Network, norm: Norm, stage: int | None, noise: dict[str, Any], trained: bool = False
) -> nn.Module:
    """Return the network with its norms replaced, in place; errors are those of ``cn.convert`` and ``cn.freeze_stats``.

    Args:
        model: The network, with ``nn.BatchNorm2d``.
        network: What is known of it.
        norm: What its norms become.
        stage: The only stage to convert, from 1; None is the whole network.
        noise: ``noise`` and ``noise_in`` of every BatchNorm, converted or not; empty is none.
        trained: Whether its weights are trained ones, whose function a norm keeps where its method allows it.
    """
    frozen = norm.options.get("statistics") == "frozen"
    model = _converted(model, network, norm, stage, noise, trained, frozen)
    if "gate_rate" in norm.options and not any(layer.gates() for layer in _layers(model)):
        raise ValueError(f"gate_rate={norm.gate_rate:g} means gates, and there are none; leave it out")
    return cn.freeze_stats(model) if frozen else model


def _layers(model: nn.Module) -> Iterator[CalibratedNorm]:
    return (module for module in model.modules() if isinstance(module, CalibratedNorm))


def _converted(
    model: nn.Module,
    network: Network,
    norm: Norm,
    stage: int | None,
    noise: dict[str, Any],
    trained: bool,
    frozen: bool,
) -> nn.Module:
    options = {**noise, **norm.layer_options}
    if norm.method == "se":
        options.setdefault("biases", network.se_biases)
        if isinstance(model, PreResNet):
            fill(model, stage, norm.layer_options | {"biases": options["biases"]})
            return cn.convert(model, "bn", **noise) if noise else model
    elif norm.method == "bn" and not options and not frozen:
        return model
    include = network.se if norm.method == "se" else None
    projected = any(isinstance(m, nn.BatchNorm2d) and in_shortcut(model, name) for name, m in model.named_modules())
    skip = norm.skip if projected else None  # else cn.convert warns that there is no shortcut to skip
    preserve = norm.options.get("preserve", trained and not noise and _keeps_functions(norm))
    with warnings.catch_warnings():
        if trained:  # that the function is lost has been chosen, in writing or by the method
            warnings.filterwarnings("ignore", "the network has been trained", UserWarning)
        return cn.convert(model, norm.method, include=include, stages=stage, skip=skip, preserve=preserve, **options)


def _keeps_functions(norm: Norm) -> bool:
    """Return whether ``cn.convert`` can let a network keep its function: the initial gate must be a constant."""
    method = layer_type(norm.method)(CHANNELS, **norm.layer_options).method
    gate = method.initial_gate(CHANNELS)
    return gate is not None and bool(gate.all()) and method.initial_weight == 1.0


def fill(model: PreResNet, stage: int | None, options: dict[str, Any]) -> None:
    """Put SE behind the last convolution of the branches of a stage, or of all.

    As in ``cn.convert``, the generators stay as they were.
    """
    chosen = model if stage is None else model.get_submodule(f"layer{stage}")
    cuda = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})
    with torch.random.fork_rng(devices=cuda):
        for block in chosen.modules():
            if isinstance(block, PreActivation):
                like = block.conv3.weight
                block.se = cn.SE2d(like.shape[0], alone=True, device=like.device, dtype=like.dtype, **options)
