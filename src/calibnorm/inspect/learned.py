"""What a network's layers have learned beside gamma and beta."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibnorm.inspect.tables import Table
from calibnorm.networks.finding import find_layers
from calibnorm.nn import CalibratedNorm


@dataclass(frozen=True)
class Quantity:
    """One quantity of one layer, over its channels (over all numbers of a tensor that has more).

    Args:
        layer: The layer's name in the network.
        depth: The layer's place among the network's norms, from 1, in the order of definition.
        quantity: The name of a learnable tensor, such as "gate_weight"; or "gate", what the gate is on data.
        values: How many numbers it has.
        initial: What they start at; None where they start at random or do not start as a constant.
        mean: Their mean.
        std: Their standard deviation around it.
        p10: The value that a tenth of them are below.
        p90: The value that a tenth of them are above.
    """

    layer: str
    depth: int
    quantity: str
    values: int
    initial: float | None
    mean: float
    std: float
    p10: float
    p90: float


class Quantities(Table[Quantity]):
    """What :func:`learned` returns."""

    row = Quantity


def learned(model: nn.Module) -> Quantities:
    """Return the learnable tensors that the network's calibrated layers have beside gamma and beta, layer by layer.

    RBN's Figures 3 and 4 are its w_m, w_v and w_b by layer.

    Args:
        model: The network.

    Returns:
        A list of :class:`Quantity` that prints as a table; ``to_dicts()`` makes plain dicts of it.

    Raises:
        TypeError: The model is no module.

    >>> import calibnorm as cn
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), cn.IEBN2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    >>> print(cn.inspect.learned(net))
    layer  depth  quantity     values  initial  mean  std  p10  p90
    ---------------------------------------------------------------
    1          1  gate_weight       8        0     0    0    0    0
    1          1  gate_bias         8       -1    -1    0   -1   -1
    """
    rows = Quantities()
    for depth, entry in enumerate(find_layers(model), start=1):
        if isinstance(layer := entry.module, CalibratedNorm):
            specs = layer.method.parameters(layer.num_features)
            for name, value in layer.gates().items():
                rows.append(Quantity(entry.title, depth, name, value.numel(), specs[name].fill, *over_channels(value)))
    return rows


def over_channels(values: Tensor) -> tuple[float, float, float, float]:
    """Return mean, standard deviation and the two tenths of all numbers of a tensor."""
    flat = values.detach().to("cpu", torch.float64).flatten()
    p10, p90 = torch.quantile(flat, flat.new_tensor([0.1, 0.9])).tolist()
    return flat.mean().item(), flat.std(correction=0).item(), p10, p90
