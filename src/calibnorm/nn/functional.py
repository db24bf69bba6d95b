"""The methods as functions of tensors: :func:`iebn` and :func:`rbn`, after torch.nn.functional.batch_norm."""

from __future__ import annotations

from torch import Tensor

from calibnorm import _checks
from calibnorm._checks import Noise
from calibnorm.methods import IEBN, RBN, Method
from calibnorm.nn.apply import Tensors, apply

__all__ = ["apply", "iebn", "rbn"]


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
    noise = _checks.noise(noise)
    where = f"calibnorm.{name}"
    _checks.features(x, None, None, where)
    channels = x.shape[1]
    eps = _checks.eps(eps, frozen=not training)
    if momentum is None:
        raise ValueError("momentum=None needs a count of batches, which only layers keep; pass a number in [0, 1]")
    momentum = _checks.real("momentum", _checks.momentum(momentum))
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
    gate_input: str = "mean",
    noise: Noise | None = None,
) -> Tensor:
    r"""Instance Enhancement Batch Normalization of a batch (Liang et al., AAAI 2020, Algorithm 1).

    :math:`y = \hat x\,(\gamma\,\delta) + \beta,\quad \delta = \sigma(\hat g\, m + \hat b)`, where x^ is the input
    standardized with the statistics of the batch (``training=True``) or the running ones, and m, (N, C), the mean of
    every plane of the input.

    Args:
        input: (N, C, *spatial), any floating point dtype; from here to ``eps`` as for torch's ``batch_norm``.
        running_mean, running_var: (C,), moved in place in training (unbiased variance); None keeps none.
        weight, bias: gamma and beta, (C,); None is 1 and 0.
        training: Normalize with the statistics of this batch.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance; positive, or 0 with ``training=False``.
        gate_weight, gate_bias: g_hat and b_hat, (C,); for ``operator="linear"``.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias: W1 (H, C), b1 (H,), W2 (C, H) and b2 (C,), with
            H = max(C // reduction, 1); for ``operator="fc"``.
        operator, position, activation, reduction, gate_input, noise: As for :class:`calibnorm.IEBN2d`.

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
    method = IEBN(operator, position, activation, reduction=reduction, gate_input=gate_input)
    unit = "" if gate_input == "mean" else "standardized_"
    linear = {f"{unit}gate_weight": gate_weight, "gate_bias": gate_bias}
    fc = {"fc1_weight": fc1_weight, "fc1_bias": fc1_bias, "fc2_weight": fc2_weight, "fc2_bias": fc2_bias}
    params = {"weight": weight, "bias": bias, **linear, **fc}
    return _checked("iebn", input, method, params, running_mean, running_var, training, momentum, eps, noise)


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
        input: (N, C, *spatial), any floating point dtype; from here to ``eps`` as for torch's ``batch_norm``.
        running_mean, running_var: (C,), of X_cm, moved in place in training (unbiased variance); None keeps none.
        weight, bias: gamma and beta, (C,); None is 1 and 0.
        training: Normalize with the statistics of this batch.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance; positive, or 0 with ``training=False``.
        center_weight, scale_weight, scale_bias: w_m, w_v and w_b, (C,).
        center_stat, scale_stat, restrict, noise: As for :class:`calibnorm.RBN2d`.

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
    method = RBN(center_weight is not None, scale_weight is not None, center_stat, scale_stat, restrict)
    gates = {"center_weight": center_weight, "scale_weight": scale_weight, "scale_bias": scale_bias}
    params = {"weight": weight, "bias": bias, **gates}
    return _checked("rbn", input, method, params, running_mean, running_var, training, momentum, eps, noise)
