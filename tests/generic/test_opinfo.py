"""torch's OpInfo samples of batch_norm, at gates that change nothing.

A sigmoid gate is never 1, so gamma is divided by it. opcheck does not apply: no operator is registered.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import calibnorm as cn
from cases import gradients, randn
from tolerances import ORACLE, error

OP = next(op for op in op_db if op.name == "nn.functional.batch_norm" and not op.variant_test_name)
SAMPLES = list(OP.sample_inputs("cpu", torch.float64, requires_grad=False))
each_function = pytest.mark.parametrize("name", ["iebn", "rbn"])


def neutral(name, channels, dtype):
    """Tensors that make the gate the constant sigmoid(1), and that constant."""
    zero, one = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
    if name == "iebn":
        return {"gate_weight": zero, "gate_bias": one}, torch.sigmoid(one)
    return {"center_weight": zero, "scale_weight": zero, "scale_bias": one}, torch.sigmoid(one)


def arguments(sample):
    """The sample's tensors, copied, with None where it gives fewer."""
    tensors = [t if t is None else t.detach().clone() for t in sample.args]
    return [*tensors, *[None] * (4 - len(tensors))]


def legal(sample):
    return sample.input.ndim >= 2 and 0 <= sample.kwargs.get("momentum", 0.1) <= 1


WITH_CHANNELS = [sample for sample in SAMPLES if sample.input.ndim >= 2]
REFUSED = [sample for sample in SAMPLES if not legal(sample)]


@each_function
@pytest.mark.parametrize("sample", WITH_CHANNELS, ids=range(len(WITH_CHANNELS)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_batch_norm(name, sample, dtype):
    x = sample.input.detach().to(dtype).requires_grad_()
    mean, var, weight, bias = (t if t is None else t.to(dtype) for t in arguments(sample))
    kwargs = {**sample.kwargs}
    if not legal(sample):
        kwargs["momentum"] = 0.3  # torch's sample is negative, which torch takes and we refuse: test_refusals
    theirs = [t if t is None else t.clone() for t in (mean, var)]
    leaves = {"input": x} | {k: t.requires_grad_() for k, t in (("weight", weight), ("bias", bias)) if t is not None}
    expected = torch.nn.functional.batch_norm(x, *theirs, weight, bias, **kwargs)
    gates, gate = neutral(name, x.shape[1], dtype)
    compensated = (1.0 if weight is None else weight) / gate
    actual = getattr(cn, name)(x, mean, var, compensated, bias, **kwargs, **gates)
    bound = ORACLE if dtype == torch.float64 else 1e-4
    assert error(actual, expected) <= bound
    dy = randn(*x.shape, seed=1, dtype=dtype)
    ours, reference = gradients(actual, leaves, dy), gradients(expected, leaves, dy)
    assert all(error(ours[key], g) <= bound for key, g in reference.items())
    for a, b in zip((mean, var), theirs, strict=True):
        assert a is None or error(a, b) <= bound


@each_function
@pytest.mark.parametrize("sample", REFUSED, ids=range(len(REFUSED)))
def test_refusals(name, sample):
    """torch's samples go beyond what BatchNorm means: no channel dimension, momentum outside [0, 1]."""
    mean, var, weight, bias = arguments(sample)
    gates, _ = neutral(name, sample.input.shape[0], torch.float64)
    with pytest.raises(ValueError, match=r"dimensions|momentum=-1"):
        getattr(cn, name)(sample.input, mean, var, weight, bias, **sample.kwargs, **gates)


def test_there_are_samples():
    assert sum(map(legal, SAMPLES)) >= 6
