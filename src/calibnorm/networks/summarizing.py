"""A table of the normalizations of a network."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from calibnorm.networks.finding import batchnorm_of, find_norms, is_frozen, num_features
from calibnorm.networks.tables import aligned
from calibnorm.nn import CalibratedNorm


class LayerSummary(NamedTuple):
    """One normalization layer."""

    name: str
    layer: str
    channels: int
    parameters: int
    """Learnable numbers, gamma and beta included."""
    gates: int
    """Learnable numbers of the gates alone."""
    statistics: str
    """``"batch"``, ``"running"`` (eval mode), ``"frozen"``, ``"batch, synchronized"``, or ``"instance"``: its own."""
    options: str


class Summary(list[LayerSummary]):
    """Rows, printed as an aligned table with a line of totals."""

    def __str__(self) -> str:
        sums = (sum(row.parameters for row in self), sum(row.gates for row in self))
        return aligned(LayerSummary._fields, self, (f"{len(self)} layers", "", "", *sums, "", ""))

    __repr__ = __str__


def summary(model: nn.Module) -> Summary:
    """Return a table of the network's normalization layers: what they are, what they learn, where statistics come from.

    Args:
        model: The network.

    Returns:
        A list of rows that prints as a table.

    Raises:
        TypeError: The model is no module.

    >>> import calibnorm as cn
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3), cn.RBN2d(16, scale_stat="std"))
    >>> print(cn.summary(net))
    name      layer        channels  parameters  gates  statistics  options
    --------------------------------------------------------------------------------
    1         BatchNorm2d         8          16      0  batch
    3         RBN2d              16          80     48  batch       scale_stat='std'
    --------------------------------------------------------------------------------
    2 layers                                 96     48
    """
    return Summary(_row(entry.title, entry.module) for entry in find_norms(model))


def _row(title: str, module: nn.Module) -> LayerSummary:
    layer = module if isinstance(module, CalibratedNorm) else None
    child = batchnorm_of(module)
    return LayerSummary(
        title,
        type(module).__name__,
        num_features(module),
        sum(p.numel() for p in module.parameters() if not is_lazy(p)),
        0 if layer is None else sum(p.numel() for p in layer.gates().values()),
        _statistics(child, layer),
        "" if layer is None else ", ".join(f"{key}={value!r}" for key, value in layer.options().items()),
    )


def _statistics(child: Any, layer: CalibratedNorm | None) -> str:
    if layer is not None and not layer.method.batch_statistics:
        return "instance"
    if is_frozen(child) or (layer is not None and layer.frozen):
        return "frozen"
    if not child.training and child.running_mean is not None:
        return "running"
    return "batch, synchronized" if isinstance(child, nn.SyncBatchNorm) else "batch"
