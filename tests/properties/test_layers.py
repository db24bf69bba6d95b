"""Any layer on any input, by the C kernels and by plain torch in the input's dtype, against plain torch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import event, given, note
from torch import Tensor

import calibnorm as cn
from calibnorm.methods.an import ATTENTION_EPS
from properties.drawing import Case, as_given, cases, layer_of, tensors_of
from tolerances import ORACLE, error

BACKENDS = [name for name, status in cn.backends().items() if status.runs]
FEW = 64
"""Roundings that an output goes through, beside those of a sum."""

Found = dict[str, Tensor]


def called(layer: Any, case: Case, dtype: torch.dtype | None = None, masks: list[Tensor] | None = None) -> Found:
    """Return outputs, all gradients and buffers of the case's steps by name, or raise what the layer raises.

    Args:
        layer: Its layer.
        case: The case.
        dtype: Of the tensors, after they were rounded to the case's dtype; that itself by default.
        masks: Where each step's gradient passes; of a layer without its activation.
    """
    found: Found = {}
    for step in range(case.steps):
        x, dy, residual = tensors_of(case, step)
        before = x.clone()
        if dtype is not None:
            x, dy, residual = (t if t is None else t.to(dtype) for t in (x, dy, residual))
        leaves = {"input": x, **({} if residual is None else {"residual": residual})}
        leaves = {name: leaf.detach().requires_grad_(case.learns != "parameters") for name, leaf in leaves.items()}
        y = layer(*leaves.values())
        leaves = {name: leaf for name, leaf in (*leaves.items(), *layer.named_parameters()) if leaf.requires_grad}
        dy = dy if masks is None else dy * masks[step]
        gradients: tuple[Tensor, ...] = ()
        if leaves and y.requires_grad:  # a layer without parameters may have nothing to learn
            gradients = torch.autograd.grad(y, [*leaves.values()], dy, allow_unused=True, materialize_grads=True)
        found[f"y {step}"] = y.detach()
        found |= {f"{name} {step}": grad for name, grad in zip(leaves, gradients, strict=bool(gradients))}
        assert torch.equal(x, before.to(x.dtype)), "the input was touched"
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def outcome(layer: Any, case: Case, **how: Any) -> Found | str:
    """Return what a layer finds, or what it refuses."""
    try:
        return called(layer, case, **how)
    except (ValueError, TypeError) as reason:
        return f"{type(reason).__name__}: {reason}"


def least_deviation(case: Case, eps: float) -> float:
    """Return the least standard deviation that may divide: of an instance's channel, or of one over the batch."""
    least = float("inf")
    for step in range(case.steps):
        x = tensors_of(case, step)[0].double()
        planes = x.flatten(2) if case.spatial else x[..., None]
        for var in (planes.var(2, correction=0), planes.movedim(1, 0).flatten(1).var(1, correction=0)):
            least = min(least, float(var.min()))
    return (max(least, 0.0) + eps) ** 0.5


def allowed(case: Case, tensor: Tensor, work: torch.dtype) -> float:
    """Return the largest error that passes, relative to the largest value, or to 1 where all are smaller.

    The rounding of the result; the promise for float64; and the roundings of the arithmetic, in sums and in x - mean,
    which is divided by the standard deviation. AN divides by one more: its attention is standardized over the images,
    of which there may be two that hardly differ, and its gradient by that to the third power: of constant images at a
    mean of -3, the last bit of that mean moves the gradient of attention_fc by 1.4e-8 in float64.
    """
    own = torch.finfo(tensor.dtype).eps if tensor.dtype.is_floating_point else 0.0
    largest = abs(case.mean) + 5
    values = case.shape[0] * max(1, torch.Size(case.spatial).numel())
    conditioned = largest / least_deviation(case, case.arguments["eps"])
    few = FEW * (100 if case.method == "an" else 1)
    promised = ORACLE if work is torch.float64 else 0.0
    if case.method == "an":
        promised += torch.finfo(torch.float64).eps * largest * ATTENTION_EPS**-1.5
    return 2 * own + promised + few * torch.finfo(work).eps * (values**0.5 + conditioned)


@given(cases())
def test_every_backend_finds_what_plain_torch_finds_in_float64(case: Case) -> None:
    note(repr(case))
    try:
        layers = {name: as_given(layer_of(case), case) for name in BACKENDS}
    except (ValueError, TypeError) as reason:
        event("refused by the constructor")
        note(str(reason))
        return
    said: dict[str, Found | str] = {}
    for name, layer in layers.items():
        with cn.use_backend(name):
            said[name] = outcome(layer, case)
    first = said[BACKENDS[0]]
    if isinstance(first, str):
        event("refused by the forward")
        assert set(said.values()) == {first}  # type: ignore[arg-type]
        return
    for about in (case.groups, case.dtype, f"layout {case.layout}", case.mode, case.end or "no end"):
        event(about)
    plain = replace(case, end=case.end.replace("relu", "").strip())
    expected: Found = {}
    for name, found in said.items():
        assert not isinstance(found, str), found
        masks = [found[f"y {step}"] > 0 for step in range(case.steps)] if "relu" in case.end else None
        if masks is not None or not expected:
            wide = as_given(layer_of(plain), plain).double()
            with cn.use_backend("reference"):
                expected = called(wide, plain, dtype=torch.float64, masks=masks)
        assert found.keys() == expected.keys()
        work = torch.float64 if case.dtype == "float64" else torch.float32
        for key, value in expected.items():
            if "relu" in case.end and key.startswith("y "):
                value = value.relu()
            actual, bound = found[key], allowed(case, found[key], work)
            # AN's ratio of mean and deviation may be 3e4, and its variance 1e9, which a float16 buffer cannot hold.
            held = value.double().abs() < torch.finfo(actual.dtype).max / 2 if actual.is_floating_point() else True
            off = error(*(each.double().where(torch.as_tensor(held), 0.0) for each in (actual, value)))
            assert off <= bound, f"{name}: {key} is off by {off:.1e}, where {bound:.1e} is allowed"


@pytest.mark.parametrize("name", BACKENDS)
def test_the_backends_are_these(name: str) -> None:
    """A machine without the kernels would draw half of the cases and say nothing."""
    assert name in ("cpu", "triton", "reference")
    assert "cpu" in BACKENDS
