"""One call of any method, of checked tensors: what the layers and the functional forms share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods import BN, Method
from calibnorm.nn import running_statistics, spatial
from calibnorm.nn.naming import in_network
from calibnorm.ops import Call, Statistics, Step, normalize, update_running
from calibnorm.ops.dispatch import in_c
from calibnorm.ops.inputs import transformed
from calibnorm.ops.reference import accumulation_dtype
from calibnorm.ops.synchronized import Synchronized

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Tensors = Mapping[str, Tensor | None]
"""Learnable tensors by name; None where a layer has none."""

_BN = BN()
_REMEDY = "in training {}, or the running statistics (cn.freeze_stats(model), or eval())"
_LARGER_BATCH = "use a larger batch"


def apply(
    x: Tensor,
    method: Method,
    params: Tensors,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_batch: bool,
    update: bool,
    momentum: float | Tensor,
    eps: float,
    noise: Noise | None,
    where: str,
    residual: Tensor | None = None,
    relu: bool = False,
    num_batches_tracked: Tensor | None = None,
    extra: Sequence[Statistics] = (),
    group: ProcessGroup | None = None,
) -> Tensor:
    """Normalize x with any method; the running statistics and the count move last, after everything that can fail.

    Args:
        x: Input, (N, C, *spatial).
        method: The method with its options.
        params: ``weight``, ``bias`` and the method's own tensors.
        running_mean: (C,) or None.
        running_var: (C,) or None.
        use_batch: Take the statistics of the batch, not the running ones.
        update: Move the running statistics in place.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance.
        noise: The constant noise (N_a, N_b), or None.
        where: The layer or function, for messages.
        residual: Of x's shape, dtype and device; added to the normalized x.
        relu: Rectify the result.
        num_batches_tracked: The count of batches, moved with the running statistics, or None.
        extra: Running means and variances of the method's extra statistics, in its order.
        group: The processes that share the statistics of the batch, or None.
    """
    tensors = {name: tensor for name, tensor in params.items() if tensor is not None}
    if method.gated == ("bias",) and "bias" not in tensors:
        remedy = f"; use {method.without_beta}" if method.without_beta else ""
        raise ValueError(f"{where}: {method} gates beta, and there is none: bias is None{remedy}")
    synchronized: Synchronized | None = None
    if group is not None and use_batch and method.batch_statistics:
        synchronized = _synchronized(x, method, group, where)
    elif _checks.sizes_known():
        shape = x.shape
        if 0 in shape:
            return add_and_rectify(_empty(x, tensors), residual, relu)
        # Planes of several pixels and batches of several instances, at once: the whole question takes 1 us.
        if len(shape) == 2 or shape[-1] == 1 or shape[0] == 1:
            _refuse_single_values(x, method, use_batch, where)
    fixed: Statistics | None = None
    if not method.batch_statistics:
        update, eps = False, _checks.eps(eps)  # with frozen statistics 0 is legal, and these are the instance's own
    elif not use_batch:
        if running_mean is None or running_var is None:
            raise ValueError(f"{where}: running_mean and running_var must be given when training is False")
        fixed = (running_mean, running_var)
        if extra:
            fixed = running_statistics.with_extra(fixed, extra)
        if method.plain_in_eval:
            kernels = not transformed(x) and in_c(x)
            if not kernels and _batch_norm_takes(x, fixed, tensors):
                return add_and_rectify(_batch_norm_eval(x, fixed, tensors, eps, noise), residual, relu)
            method = _BN
    elif method.reads_running:
        tensors |= running_statistics.named_copies(x, running_mean, running_var, num_batches_tracked)
    if method.spatial:
        y, (mean, var) = spatial.normalize(x, method, tensors, fixed, eps, noise, synchronized)
        y = add_and_rectify(y, residual, relu)
    else:
        step = Step(method, tuple(tensors), eps, noise, synchronized)
        y, (mean, var) = normalize(x, Call(step, fixed, tuple(tensors.values()), residual, relu))
    if synchronized is not None and not torch.compiler.is_compiling():
        _refuse_single_values_of_all(x, method, synchronized, where)
    if update and use_batch:
        assert running_mean is not None
        assert running_var is not None
        if extra or method.ghost_size is not None:
            running = (running_mean, running_var)
            running_statistics.move(method, x, (mean, var), running, extra, momentum, num_batches_tracked, synchronized)
        else:
            count: int | Tensor = x.numel() // x.shape[1]
            if synchronized is not None:
                assert synchronized.values is not None
                count = synchronized.values[0]
            update_running(running_mean, running_var, mean, var, momentum, count, num_batches_tracked)
    return y


def _refuse_single_values(x: Tensor, method: Method, use_batch: bool, where: str) -> None:
    """Refuse an input of which some statistic would be that of a single value, which has no variance."""
    n, channels = x.shape[:2]
    pixels = x.numel() // (n * channels)
    if method.own_values(channels, pixels) == 1:
        raise ValueError(
            f"{in_network(where)}: input of shape {tuple(x.shape)} has one value in a group of an instance, which has "
            "no variance: every output would be beta; use planes of several pixels, or groups of several channels"
        )
    if not (use_batch and method.batch_statistics):
        return
    size = method.ghost_size or n
    fewest = n % size or size  # the last ghost batch may be smaller
    if min(size, fewest) * pixels == 1:
        what, remedy = "one value per channel", _LARGER_BATCH
        if method.ghost_size is not None:
            what = "a ghost batch with one value per channel"
            remedy = "use a larger size="
            if size > 1:
                remedy = (
                    f"use a batch that leaves no remainder of one (with size={size}: {n - 1 or size} or {n + 1}, say; "
                    "a DataLoader's drop_last=True leaves out a last batch that is smaller), or another size="
                )
        raise ValueError(
            f"{in_network(where)}: input of shape {tuple(x.shape)} has {what}, which has no variance; "
            f"{_REMEDY.format(remedy)}"
        )
    if n == 1 and method.extra_statistics(channels):
        raise ValueError(
            f"{in_network(where)}: a batch of one instance has no variance of "
            f"{', '.join(method.extra_statistics(channels))}; {_REMEDY.format(_LARGER_BATCH)}"
        )


def _synchronized(x: Tensor, method: Method, group: ProcessGroup, where: str) -> Synchronized:
    """Return how the group's statistics are taken; refuse what would fail after others have begun to wait."""
    if method.ghost_size is not None:
        raise ValueError(
            f"{where}: ghost batches are small on purpose, and statistics of several processes are not; keep plain "
            "BatchNorm children (no SyncBatchNorm conversion), and each process has ghost batches of its own"
        )
    pixels = math.prod(x.shape[2:])
    if method.own_values(x.shape[1], pixels) == 1:
        _refuse_single_values(x, method, False, where)
    return Synchronized(group, x.shape[1], pixels)


def _refuse_single_values_of_all(x: Tensor, method: Method, synchronized: Synchronized, where: str) -> None:
    """Refuse a batch of one value a channel, or of one instance where its variance enters, over all processes."""
    n, extra = x.shape[0], method.extra_statistics(x.shape[1])
    # Who has more than one needs not ask, and asking waits for a GPU.
    if n * synchronized.pixels > 1 and not (extra and n == 1):
        return
    assert synchronized.values is not None
    values, instances = synchronized.values.tolist()
    if values == 1 or (extra and instances == 1):
        what = "one value per channel" if values == 1 else f"one instance, which has no variance of {', '.join(extra)},"
        raise ValueError(
            f"{in_network(where)}: input of shape {tuple(x.shape)} has {what} over all {synchronized.group.size()} "
            f"processes; {_REMEDY.format(_LARGER_BATCH)}"
        )


def add_and_rectify(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Add the residual and rectify, where asked: what the passes do on the way where they run."""
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y


def _empty(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return an output without elements, whose backward gives every tensor a gradient of zeros."""
    y = x.clone()
    for tensor in tensors.values():
        y = y + (0.0 * tensor.sum()).to(x.dtype)
    return y


def _batch_norm_takes(x: Tensor, statistics: Statistics, tensors: Mapping[str, Tensor]) -> bool:
    """Whether torch's own takes these dtypes: all as x's, or float32 beside a half x. It refuses most other pairs."""
    dtypes = {tensor.dtype for tensor in (*statistics, *tensors.values())}
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values())
    if learns and x.dtype is not accumulation_dtype(x.dtype):
        return False  # of x or of a gradient with gaps in memory, torch adds up gamma's in bfloat16: 53 % off, once
    return dtypes in ({x.dtype}, {accumulation_dtype(x.dtype)})


def _batch_norm_eval(
    x: Tensor, statistics: Statistics, tensors: Mapping[str, Tensor], eps: float, noise: Noise | None
) -> Tensor:
    """Plain BatchNorm with running statistics needs no moments: torch's own is one read and one write."""
    mean, var = statistics
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # A training step between this forward and its backward moves the originals.
        mean, var = mean.clone(), var.clone()
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if noise is not None:
        n_a, n_b = noise
        gamma = mean.new_ones(mean.shape) if weight is None else weight
        weight, bias = gamma * n_a, gamma * n_b if bias is None else gamma * n_b + bias
    # torch.nn.functional's refuses eps 0 in torch 2.11, which frozen BatchNorms have.
    return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, torch.backends.cudnn.enabled)
