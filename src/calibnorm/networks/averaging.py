"""The average of running statistics over processes that each took those of their own batches."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibnorm.networks.finding import batchnorm_of, find_norms, parts_of
from calibnorm.nn import CalibratedNorm


def average_statistics(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Average the running means and variances over the processes: call it on every one, before evaluation.

    Under plain DDP each process keeps the statistics of its own batches, so each would evaluate another network, and
    the checkpoint holds those of rank 0. This averages those of calibrated layers and plain BatchNorms, with one
    collective for all of them. DDP copies rank 0's statistics to the others before each forward, so that they differ by
    the last batch alone; for the average of all batches use
    ``DistributedDataParallel(..., forward_sync_buffers=False)`` (``broadcast_buffers`` before torch 2.15). Synchronized
    statistics are equal already. ``num_batches_tracked`` stays.

    Args:
        model: The network or its DDP or FSDP wrapper, changed in place.
        group: The processes; by default all of them. Without several processes nothing happens.

    Returns:
        The model.

    Raises:
        TypeError: The model is no module.

    >>> import torch, calibnorm as cn
    >>> net = cn.average_statistics(torch.nn.Sequential(cn.RBN2d(4)))  # one process: as it was
    """
    found = find_norms(model)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) < 2:
        return model
    buffers: dict[int, Tensor] = {}
    for _, layer, *_ in found:
        parts = (part for part in parts_of(batchnorm_of(layer)) if isinstance(part, _BatchNorm))
        pairs = [(part.running_mean, part.running_var) for part in parts]
        if isinstance(layer, CalibratedNorm):
            pairs.extend(layer._extra_statistics())
        buffers |= {id(t): t for pair in pairs for t in pair if t is not None}
    if buffers:
        _average(list(buffers.values()), group)
    return model


@torch.no_grad()
def _average(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    total = torch.cat([t.to(tensors[0].device, torch.float64) for t in tensors])
    dist.all_reduce(total, group=group)
    total /= dist.get_world_size(group)
    for t, mean in zip(tensors, torch.split(total, [t.numel() for t in tensors]), strict=True):
        t.copy_(mean)
