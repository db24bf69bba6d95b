"""The methods as functions of tensors. Layers call :func:`apply`; users call :func:`iebn` and :func:`rbn`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.nn import spatial
from calibnorm.ops import Statistics, Step, normalize, update_running

Tensors = Mapping[str, Tensor | None]
"""Learnable tensors by name; None where a layer has none."""


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
) -> Tensor:
    """Normalize x with any method; the running statistics move last, after everything that can fail.

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
        residual: Added to the normalized x.
        relu: Rectify the result.
    """
    tensors = {name: tensor for name, tensor in params.items() if tensor is not None}
    if method.gated == ("bias",) and "bias" not in tensors:
        raise ValueError(f"{where}: position='beta' gates beta, and there is none: bias is None; use position='gamma'")
    if _checks.sizes_known() and x.numel() == 0:
        return _finished(_empty(x, tensors), residual, relu)
    fixed: Statistics | None = None
    if use_batch:
        count = x.numel() // x.shape[1]
        if _checks.sizes_known() and count == 1:
            raise ValueError(
                f"{where}: input of shape {tuple(x.shape)} has one value per channel, which has no variance; in "
                "training use a larger batch, or eval() to normalize with the running statistics"
            )
    else:
        if running_mean is None or running_var is None:
            raise ValueError(f"{where}: running_mean and running_var must be given when training is False")
        fixed = (running_mean, running_var)
        if isinstance(method, BN):
            return _finished(_batch_norm_eval(x, fixed, tensors, eps, noise), residual, relu)
    if isinstance(method, RBN) and (method.spatial_center or method.spatial_scale):
        y, (mean, var) = spatial.normalize(x, method, tensors, fixed, eps, noise)
        y = _finished(y, residual, relu)
    else:
        step = Step(method, tuple(tensors), eps, noise)
        # A sum of two dtypes has the wider one, as torch promotes; the passes write x's.
        apart = residual is not None and residual.dtype != x.dtype
        extra = (None, False) if apart else (residual, relu)
        y, (mean, var) = normalize(x, step, fixed, tuple(tensors.values()), *extra)
        if apart:
            y = _finished(y, residual, relu)
    if update and use_batch:
        assert running_mean is not None
        assert running_var is not None
        update_running(running_mean, running_var, mean, var, momentum, count)
    return y


def _finished(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
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
    return batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _checked(
    name: str,
    x: Tensor,
    method: Method,
    params: Tensors,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    noise: Noise | None,
) -> Tensor:
    """Check what a user passed to a functional form, then normalize."""
    where = f"calibnorm.{name}"
    _checks.features(x, None, None, where)
    channels = x.shape[1]
    _checks.eps(eps, frozen=not training)
    if momentum is None:
        raise ValueError("momentum=None needs a count of batches, which only layers keep; pass a number in [0, 1]")
    _checks.momentum(momentum)
    _checks.per_channel("running_mean", running_mean, channels, where)
    _checks.per_channel("running_var", running_var, channels, where)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{where}: running_mean and running_var must be given together, or both be None")
    expected = {n: spec.shape for n, spec in method.parameters(channels).items()}
    for key, tensor in params.items():
        shape = expected.get(key, (channels,))
        if tensor is None:
            if key in expected:
                raise ValueError(f"{where}: {key} is missing; pass a tensor of shape {shape}")
        elif key not in expected and key not in ("weight", "bias"):
            raise ValueError(f"{where}: {key} was given, but {method} does not use it; pass None")
        elif tuple(tensor.shape) != shape:
            raise ValueError(f"{where}: {key} has shape {tuple(tensor.shape)}; expected {shape}")
    return apply(
        x,
        method,
        params,
        running_mean=running_mean,
        running_var=running_var,
        use_batch=training,
        update=training and running_mean is not None,
        momentum=momentum,
        eps=eps,
        noise=noise,
        where=where,
    )


def iebn(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    fc1_weight: Tensor | None = None,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    operator: str = "linear",
    position: str = "gamma",
    activation: str = "sigmoid",
    reduction: int = 16,
    noise: Noise | None = None,
) -> Tensor:
    r"""Instance Enhancement Batch Normalization of a batch (Liang et al., AAAI 2020, Algorithm 1).

    :math:`y = \hat x\,(\gamma\,\delta) + \beta,\quad \delta = \sigma(\hat g\, m + \hat b)`, where x^ is the input
    standardized with the statistics of the batch (``training=True``) or the running ones, and m, (N, C), the mean of
    every plane of the input.

    Args:
        input: (N, C, *spatial), any floating point dtype.
        running_mean: (C,), moved in place in training; None in training keeps no statistics.
        running_var: (C,), likewise; it receives the unbiased variance, as torch's does.
        weight: gamma, (C,); None is 1.
        bias: beta, (C,); None is 0.
        training: Normalize with the statistics of this batch.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance; positive, or 0 with ``training=False``.
        gate_weight: g_hat, (C,); for ``operator="linear"``.
        gate_bias: b_hat, (C,); for ``operator="linear"``.
        fc1_weight: W1, (max(C // reduction, 1), C); for ``operator="fc"``.
        fc1_bias: b1, (max(C // reduction, 1),).
        fc2_weight: W2, (C, max(C // reduction, 1)).
        fc2_bias: b2, (C,).
        operator: ``"linear"``, ``"identity"`` or ``"fc"`` (Table 4).
        position: ``"gamma"``, ``"beta"`` or ``"both"`` (Table 4).
        activation: ``"sigmoid"``, ``"tanh"``, ``"relu"`` or ``"softmax"`` over channels (Fig. 4).
        reduction: Channels per hidden unit of the fc operator.
        noise: The constant noise attack (N_a, N_b): x^ becomes ``x^ * N_a + N_b``.

    Returns:
        y, of the input's shape, dtype and layout. Sums are kept in float32 or wider.

    Raises:
        TypeError: The input is no floating point tensor.
        ValueError: A shape or an option is wrong, or training sees one value per channel.

    >>> import torch, calibnorm as cn
    >>> x = torch.randn(8, 3, 4, 4)
    >>> y = cn.iebn(x, None, None, training=True, gate_weight=torch.zeros(3), gate_bias=-torch.ones(3))
    >>> plain = torch.nn.functional.batch_norm(x, None, None, training=True)
    >>> torch.allclose(y, plain * torch.sigmoid(torch.tensor(-1.0)), atol=1e-6)
    True
    """
    params = {
        "weight": weight,
        "bias": bias,
        "gate_weight": gate_weight,
        "gate_bias": gate_bias,
        "fc1_weight": fc1_weight,
        "fc1_bias": fc1_bias,
        "fc2_weight": fc2_weight,
        "fc2_bias": fc2_bias,
    }
    method = IEBN(operator=operator, position=position, activation=activation, reduction=reduction)
    return _checked(
        "iebn",
        input,
        method,
        params,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        _checks.noise(noise),
    )


def rbn(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    center_weight: Tensor | None = None,
    scale_weight: Tensor | None = None,
    scale_bias: Tensor | None = None,
    center_stat: str = "mean",
    scale_stat: str = "mean",
    restrict: str = "sigmoid",
    noise: Noise | None = None,
) -> Tensor:
    r"""Representative Batch Normalization of a batch (Gao et al., CVPR 2021, Eq. 12).

    :math:`X_{cm} = X + w_m K_m`, :math:`X_s = (X_{cm} - E) / \sqrt{Var + \epsilon}`,
    :math:`y = \gamma\, X_s\, R(w_v K_s + w_b) + \beta`, where E and Var are those of X_cm over the batch
    (``training=True``) or running.

    Without ``center_weight`` there is no centering calibration; without ``scale_weight`` and ``scale_bias`` no
    scaling calibration (Table 2).

    Args:
        input: (N, C, *spatial), any floating point dtype.
        running_mean: (C,), of X_cm; moved in place in training; None in training keeps no statistics.
        running_var: (C,), likewise; it receives the unbiased variance, as torch's does.
        weight: gamma, (C,); None is 1.
        bias: beta, (C,); None is 0.
        training: Normalize with the statistics of this batch.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance; positive, or 0 with ``training=False``.
        center_weight: w_m, (C,).
        scale_weight: w_v, (C,).
        scale_bias: w_b, (C,).
        center_stat: K_m: ``"mean"``, ``"std"``, ``"spatial_mean"`` or ``"spatial_std"`` (Table 3).
        scale_stat: K_s, from the same four.
        restrict: R: ``"sigmoid"``, ``"tanh"``, ``"hardsigmoid"`` or ``"softsign"``.
        noise: The constant noise attack (N_a, N_b): X_s becomes ``X_s * N_a + N_b`` before K_s is taken.

    Returns:
        y, of the input's shape, dtype and layout. Sums are kept in float32 or wider.

    Raises:
        TypeError: The input is no floating point tensor.
        ValueError: A shape or an option is wrong, or training sees one value per channel.

    >>> import torch, calibnorm as cn
    >>> x = torch.randn(8, 3, 4, 4)
    >>> zero, one = torch.zeros(3), torch.ones(3)
    >>> y = cn.rbn(x, None, None, training=True, center_weight=zero, scale_weight=zero, scale_bias=one)
    >>> plain = torch.nn.functional.batch_norm(x, None, None, training=True)
    >>> torch.allclose(y, plain * torch.sigmoid(torch.tensor(1.0)), atol=1e-6)
    True
    """
    if (scale_weight is None) != (scale_bias is None):
        raise ValueError("calibnorm.rbn: scale_weight and scale_bias must be given together, or both be None")
    params = {
        "weight": weight,
        "bias": bias,
        "center_weight": center_weight,
        "scale_weight": scale_weight,
        "scale_bias": scale_bias,
    }
    method = RBN(
        centering=center_weight is not None,
        scaling=scale_weight is not None,
        center_stat=center_stat,
        scale_stat=scale_stat,
        restrict=restrict,
    )
    return _checked(
        "rbn", input, method, params, running_mean, running_var, training, momentum, eps, _checks.noise(noise)
    )
