"""What the gates and calibration weights of a trained network look like, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.lab.demo.config import Condition, NormName
from calibnorm.methods import IEBN

GATE = "gate"
RBN_WEIGHTS = ("center_weight", "scale_weight", "scale_bias")


@dataclass(frozen=True)
class GateRow:
    """One line of gates.csv: a learned quantity of one layer, over its channels.

    Args:
        condition: "clean" or "noise".
        norm: "iebn" or "rbn".
        depth: The layer's place among the network's norms, from 1.
        layer: The layer's name in the network.
        quantity: A learnable name, such as "gate_weight"; or "gate", the IEBN gate's mean over the test images.
        mean: Mean over channels.
        p10: The value that a tenth of the channels are below.
        p90: The value that a tenth of the channels are above.
        std_over_images: For "gate": its standard deviation over the test images, averaged over channels; else 0.
    """

    condition: Condition
    norm: NormName
    depth: int
    layer: str
    quantity: str
    mean: float
    p10: float
    p90: float
    std_over_images: float


def describe(networks: Mapping[NormName, nn.Module], condition: Condition, images: Tensor) -> list[GateRow]:
    """Return the learned quantities of every IEBN and RBN layer; other norms have none."""
    rows: list[GateRow] = []
    for norm, network in networks.items():
        layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, cn.IEBN2d | cn.RBN2d)]
        with watched_means([layer for _, layer in layers]) as means, torch.no_grad():
            network.eval()
            network(images)
        for depth, (name, layer) in enumerate(layers, start=1):
            gates = dict(layer.named_parameters(recurse=False))
            over_images = 0.0
            quantities = {quantity: value.detach() for quantity, value in gates.items()}
            if isinstance(layer.method, IEBN):
                with torch.no_grad():
                    gate_NC = layer.method.gate(means[layer], gates)
                quantities[GATE] = gate_NC.mean(0)
                over_images = gate_NC.std(0).mean().item()
            for quantity, value_C in quantities.items():
                p10, p90 = torch.quantile(value_C, torch.tensor([0.1, 0.9])).tolist()
                spread = over_images if quantity == GATE else 0.0
                rows.append(GateRow(condition, norm, depth, name, quantity, value_C.mean().item(), p10, p90, spread))
    return rows


@contextmanager
def watched_means(layers: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Note the mean of every input plane, (N, C), that the layers see while the context is open."""
    means: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        means[layer] = inputs[0].mean((2, 3))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()
