"""Layers through the Triton backend: float64 against the reference, values and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import calibnorm as cn
from calibnorm.ops import dispatch
from calibnorm.ops.triton import passes
from cases import LAYERS_2D, each_layout, each_mode, gradients, image, randn, randomize
from tolerances import ORACLE, error

DEVICE = "cpu" if passes.interpreted() else "cuda"


@pytest.mark.parametrize("layer_type", LAYERS_2D, ids=lambda t: t.__name__)
@pytest.mark.parametrize("act", [None, "relu"])
@each_mode
@each_layout
def test_equals_the_reference(layer_type: Any, act: str | None, training: bool, layout: Any) -> None:
    layer = randomize(layer_type(4, dtype=torch.float64, act=act)).to(DEVICE).train(training)
    results = []
    for backend in ("triton", "reference"):
        leaves = {"x": image(torch.float64, layout=layout).to(DEVICE).requires_grad_()}
        leaves["residual"] = image(torch.float64, seed=5, layout=layout).to(DEVICE).requires_grad_()
        leaves |= dict(layer.named_parameters())
        with cn.use_backend(backend):
            y = layer(leaves["x"], leaves["residual"])
            dy = randn(*y.shape, seed=9, dtype=torch.float64).to(DEVICE)
            results.append({"y": y, **gradients(y, leaves, dy)})
    wrong = {name: e for name in results[0] if not (e := error(results[0][name], results[1][name])) <= ORACLE}
    assert not wrong, wrong


def test_chosen_for_its_device() -> None:
    x = randn(2, 3, 4, 4).to(DEVICE)
    with cn.use_backend("triton"):
        assert dispatch.choose(x).name == "triton"
        with pytest.raises(RuntimeError, match="does not take this input"):
            dispatch.choose(x.int())
    # The interpreter is for tests: where the C kernels run, they go first.
    assert dispatch.choose(x).name == ("cpu" if DEVICE == "cpu" and cn.backends()["cpu"].runs else "triton")
