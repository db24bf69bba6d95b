"""Whatever alone wants a gradient: the input, the residual, each parameter, all but one of them, or nothing."""

from __future__ import annotations

import copy

import pytest
import torch

import calibnorm as cn
from cases import each_layout, each_method, each_mode, image, layer_of, randn
from tolerances import error, reduction


@each_method
@each_layout
@each_mode
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("relu", [False, True], ids=["sum", "relu"])
def test_every_subset_of_what_wants_gradients(method, options, layout, training, backend, relu):
    if cn.backends()[backend].runs is False:
        pytest.skip(f"the backend {backend} does not run here")
    start, dy = layer_of(method, options).train(training), randn(*image().shape, seed=5)

    def gradients(wanted):
        layer = copy.deepcopy(start)
        leaves = dict(layer.named_parameters())
        leaves |= {"x": image(layout=layout), "residual": image(seed=2, layout=layout)}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in wanted)
        with cn.use_backend(backend):
            y = layer(leaves["x"], leaves["residual"], relu=relu)
            assert y.requires_grad == bool(wanted)
            if wanted:
                y.backward(dy)
        return {name: leaf.grad for name, leaf in leaves.items()}

    names = ["x", "residual", *(name for name, _ in start.named_parameters())]
    whole = gradients(names)
    for name in names:
        for wanted in ({name}, {*names} - {name}, {"residual", name}):
            found = gradients(wanted)
            assert {n for n, grad in found.items() if grad is not None} == {n for n in wanted if whole[n] is not None}
            for n in wanted:
                if whole[n] is not None:
                    assert error(found[n], whole[n]) <= reduction(torch.float32, 60), (wanted, n)
    gradients(())
