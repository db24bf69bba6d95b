"""Interleaved passes, and threads."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from cases import each_dims, each_layer, gradients, image, parameters, randn, randomize

SHAPES = {1: (6, 4, 5), 2: (4, 4, 3, 5), 3: (3, 4, 2, 3, 2)}


@each_dims
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interleaved_forwards_and_backwards(layer_type, dtype):
    """Every forward's gradient is the one that it would have had alone, whatever ran between."""
    shape = SHAPES[layer_type.dims]
    modes = [True, False, True, False]

    def steps(order):
        layer = randomize(layer_type(4, dtype=dtype))
        xs = [randn(*shape, seed=i, dtype=dtype).requires_grad_() for i in range(4)]
        dys = [randn(*shape, seed=10 + i, dtype=dtype) for i in range(4)]
        grads: list[dict] = [{}] * 4
        ys: list = [None] * 4
        for action, i in order:
            if action == "forward":
                layer.train(modes[i])
                ys[i] = layer(xs[i])
            else:
                grads[i] = gradients(ys[i], {"input": xs[i], **parameters(layer)}, dys[i])
        return ys, grads

    alone = [(action, i) for i in range(4) for action in ("forward", "backward")]
    ys, grads = steps(alone)
    forwards = [("forward", i) for i in range(4)]
    for backwards in itertools.permutations(range(4)):
        ys2, grads2 = steps([*forwards, *(("backward", i) for i in backwards)])
        assert all(torch.equal(a, b) for a, b in zip(ys, ys2, strict=True))
        for a, b in zip(grads, grads2, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


@each_layer
def test_one_layer_used_twice_in_a_graph(layer_type):
    layer, x = randomize(layer_type(4)), image().requires_grad_()
    y = layer(layer(x))
    first = gradients(y, {"input": x, **parameters(layer)}, image(seed=3))
    assert all(g.isfinite().all() for g in first.values())
    assert int(layer.bn.num_batches_tracked) == 2


@each_layer
def test_parameter_changed_before_backward_is_refused(layer_type):
    """As in torch: an optimizer step between forward and backward must not give a wrong gradient in silence."""
    layer = randomize(layer_type(4))
    y = layer(image().requires_grad_())
    with torch.no_grad():
        layer.weight.add_(1.0)
    try:
        y.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        raise AssertionError("backward used a changed parameter")


@each_layer
def test_four_threads_on_one_eval_module(layer_type):
    layer = randomize(layer_type(4)).eval()
    xs = [image(seed=i) for i in range(4)]
    dy = image(seed=9)

    def once(x):
        x = x.clone().requires_grad_()
        y = layer(x)
        return [y, *gradients(y, {"input": x, **parameters(layer)}, dy).values()]

    expected = [once(x) for x in xs]
    start = threading.Barrier(4)
    wrong: list[object] = []

    def work(i):
        try:
            start.wait()
            for _ in range(25):
                if not all(torch.equal(a, b) for a, b in zip(once(xs[i]), expected[i], strict=True)):
                    wrong.append(i)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
