"""Memory layouts, repeatability and dtypes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import each_layer, each_layout, each_mode, gradients, image, parameters, randn, randomize
from tolerances import ORACLE, error, reduction, rounding

LAYOUTS = {
    "strided": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "sliced channels": lambda x: torch.cat([x, x], 1)[:, :4],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed pixels": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "transposed batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "flipped order": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided channels_last": lambda x: x.repeat_interleave(2, 0).contiguous(memory_format=torch.channels_last)[::2],
}
each_odd_layout = pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
EXPANDED = {"instances": (1, 4, 3, 5), "channels": (4, 1, 3, 5), "pixels": (4, 4, 1, 1), "all": (1, 1, 1, 1)}
VARIANTS = [
    (cn.BN2d, {}),
    (cn.IEBN2d, {"operator": "fc"}),
    (cn.RBN2d, {}),
    (cn.RBN2d, {"center_stat": "spatial_mean", "scale_stat": "spatial_std"}),
]
each_variant = pytest.mark.parametrize(
    ("layer_type", "options"), VARIANTS, ids=lambda v: getattr(v, "__name__", str(v))
)


def double(layer_type, training, options=None):
    return randomize(layer_type(4, dtype=torch.float64, **(options or {}))).train(training)


def run(layer, x, dy):
    x = x.detach().requires_grad_()
    y = layer(x)
    return y, gradients(y, {"input": x, **parameters(layer)}, dy)


@each_variant
@each_mode
@each_odd_layout
def test_any_input_layout(layer_type, options, training, change):
    base = image(torch.float64)
    x, dy = change(base), randn(*base.shape, seed=3, dtype=torch.float64)
    assert torch.equal(x, base)
    version = x._version
    a, b = double(layer_type, training, options), double(layer_type, training, options)
    y, grads = run(a, x, dy)
    expected, expected_grads = run(b, base, dy)
    assert x._version == version
    assert torch.equal(x, base)
    assert error(y, expected) <= ORACLE
    assert all(error(grads[name], g) <= ORACLE for name, g in expected_grads.items())
    assert all(error(p, q) <= ORACLE for p, q in zip(a.buffers(), b.buffers(), strict=True))


@each_variant
@each_mode
@pytest.mark.parametrize("shape", EXPANDED.values(), ids=EXPANDED)
def test_expanded_input(layer_type, options, training, shape):
    if shape == (1, 1, 1, 1) and "scale_stat" in options:
        options = options | {"scale_stat": "spatial_mean"}  # a deviation of 0 has a slope by convention
    x = randn(*shape, dtype=torch.float64).expand(4, 4, 3, 5)
    dy = randn(4, 4, 3, 5, seed=3, dtype=torch.float64)
    y, grads = run(double(layer_type, training, options), x, dy)
    expected, expected_grads = run(double(layer_type, training, options), x.contiguous(), dy)
    assert error(y, expected) <= ORACLE
    assert all(error(grads[name], g) <= ORACLE for name, g in expected_grads.items())


@each_variant
@each_mode
@each_odd_layout
@each_layout
def test_any_layout_of_the_incoming_gradient(layer_type, options, training, change, layout):
    x, dy = image(torch.float64, layout=layout), image(torch.float64, seed=4)
    _, grads = run(double(layer_type, training, options), x, change(dy))
    _, expected = run(double(layer_type, training, options), x, dy)
    assert all(error(grads[name], g) <= ORACLE for name, g in expected.items())


@each_variant
@each_mode
def test_expanded_incoming_gradient(layer_type, options, training):
    """What y.sum().backward() sends."""
    x = image(torch.float64)
    dy = torch.ones((), dtype=torch.float64).expand(x.shape)
    _, grads = run(double(layer_type, training, options), x, dy)
    _, expected = run(double(layer_type, training, options), x, dy.contiguous())
    assert all(error(grads[name], g) <= ORACLE for name, g in expected.items())


@each_variant
@each_mode
@each_odd_layout
def test_output_has_batchnorms_layout(layer_type, options, training, change):
    x = change(image())
    y = layer_type(4, **options).train(training)(x)
    plain = nn.BatchNorm2d(4).train(training)(x)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert y.is_contiguous(memory_format=layout) == plain.is_contiguous(memory_format=layout)
    assert y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)


@each_layer
@each_mode
def test_input_gradient_has_the_inputs_layout(layer_type, training):
    x = image(layout=torch.channels_last).requires_grad_()
    randomize(layer_type(4)).train(training)(x).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@each_variant
@each_mode
@each_layout
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_same_call_twice(layer_type, options, training, layout, deterministic):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        x, dy = image(layout=layout), randn(4, 4, 3, 5, seed=3)
        layers = [randomize(layer_type(4, **options)).train(training) for _ in range(2)]
        (y, grads), (again, grads_again) = (run(layer, x, dy) for layer in layers)
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(y, again)
    assert all(torch.equal(grads[name], g) for name, g in grads_again.items())
    assert all(torch.equal(a, b) for a, b in zip(*(layer.buffers() for layer in layers), strict=True))


HALVES = [torch.bfloat16, torch.float16]


@each_variant
@each_mode
@each_layout
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, None], ids=["fp32 parameters", "same parameters"])
def test_half_precision_input(layer_type, options, training, layout, dtype, parameter_dtype):
    """BatchNorm's dtypes, and the accuracy of one rounding: every sum is kept in float32."""
    parameter_dtype = parameter_dtype or dtype
    layer = randomize(layer_type(4, dtype=parameter_dtype, **options)).train(training)
    exact = layer_type(4, dtype=torch.float64, **options).train(training)
    exact.load_state_dict(layer.state_dict())
    plain = nn.BatchNorm2d(4, dtype=parameter_dtype).train(training)
    x, dy = image(dtype, layout=layout), randn(4, 4, 3, 5, seed=3, dtype=dtype)
    y, grads = run(layer, x, dy)
    y_plain, grads_plain = run(plain, x, dy)
    expected, expected_grads = run(exact, x.double(), dy.double())
    assert y.dtype == y_plain.dtype == dtype
    assert grads["input"].dtype == grads_plain["input"].dtype == dtype
    assert {g.dtype for name, g in grads.items() if name != "input"} == {parameter_dtype}
    assert grads_plain["weight"].dtype == parameter_dtype
    once = rounding(dtype, 1)
    assert error(y, expected) <= once if "scale_stat" not in options else error(y, expected) <= 4 * once
    assert all(error(grads[name], g) <= 4 * once for name, g in expected_grads.items())
    for name, buffer in exact.named_buffers():
        assert error(layer.get_buffer(name), buffer) <= rounding(parameter_dtype, 4)


@each_variant
@each_mode
@pytest.mark.parametrize("input_dtype", [torch.bfloat16, torch.float32])
def test_autocast(layer_type, options, training, input_dtype):
    """After a convolution autocast hands over bfloat16; the gate's arithmetic stays in float32, fc's product too."""
    x = image(input_dtype)
    layer, outside = (randomize(layer_type(4, **options)).train(training) for _ in range(2))
    plain = nn.BatchNorm2d(4).train(training)
    leaf, plain_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, y_plain = layer(leaf), plain(plain_leaf)
    assert y.dtype == y_plain.dtype
    assert torch.equal(y, outside(x)), "autocast changed the arithmetic"
    y.float().sum().backward()
    y_plain.float().sum().backward()
    assert leaf.grad.dtype == plain_leaf.grad.dtype
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@each_layer
def test_backward_inside_autocast(layer_type):
    grads = []
    for inside in (False, True):
        layer, x = randomize(layer_type(4)), image().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            y = layer(x)
            grads.append(gradients(y, {"input": x, **parameters(layer)}, image(seed=3)))
    assert all(torch.equal(grads[0][name], g) for name, g in grads[1].items())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, in forward mode
def test_autocast_where_the_plain_path_runs():
    """Transformations and double backward keep (N, C) numbers wide, where autocast would round fc's products."""
    layer, x = randomize(cn.IEBN2d(4, operator="fc", track_running_stats=False)), image()
    results = []
    for inside in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            _, forward_mode = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
            (dx,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), leaf)
        results.append([forward_mode, dx, ddx])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_layer
@each_mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parameter_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_pair_of_dtypes_in_both_modes(layer_type, training, dtype, parameter_dtype):
    """Torch's own refuses many; what trains here must evaluate too."""
    layer = randomize(layer_type(4, dtype=parameter_dtype)).train(training)
    x = image(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert {p.grad.dtype for p in layer.parameters()} == {parameter_dtype}
    assert y.isfinite().all()


@pytest.mark.parametrize("parameters_in", [torch.float32, None], ids=["wide", "half"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["bn", "brn", "ghost", "rbn"])
@each_odd_layout
def test_gammas_gradient_in_eval_is_not_added_up_in_half_precision(method, change, dtype, parameters_in):
    """torch's own adds it up so where an input or a gradient has gaps in memory; it was off by half of itself."""
    x, dy = (randn(9, 4, 14, 13, seed=seed, mean=mean, dtype=dtype) for seed, mean in ((1, -3.0), (2, 0.0)))
    layer = randomize(cn.norm_layer(method)(4, dtype=parameters_in or dtype)).eval()
    wide = copy.deepcopy(layer).double()
    found, expected = (
        gradients(each(x), parameters(each), dy)
        for each, x, dy in ((layer, change(x), change(dy)), (wide, x.double(), dy.double()))
    )
    allowed = {dtype: rounding(dtype, 2), torch.float32: reduction(torch.float32, 9 * 14 * 13)}
    assert all(error(found[name], value) <= allowed[found[name].dtype] for name, value in expected.items())
