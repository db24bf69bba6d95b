"""The layers under torch.compile and torch.export."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import calibnorm as cn
from calibnorm.bench.networks import ResNet
from cases import each_layer, each_mode, randn, randomize
from tolerances import COMPILED, error

pytestmark = pytest.mark.untraced
NIGHTLY = pytest.mark.nightly

VARIANTS = [
    (cn.BN2d, {}),
    (cn.IEBN2d, {}),
    (cn.IEBN2d, {"operator": "fc", "position": "both"}),
    (cn.RBN2d, {}),
    (cn.RBN2d, {"center_stat": "std", "scale_stat": "std", "noise": (0.8, 0.5)}),
    (cn.RBN2d, {"center_stat": "spatial_mean", "scale_stat": "spatial_std"}),
]
each_variant = pytest.mark.parametrize(
    ("layer_type", "options"), VARIANTS, ids=lambda v: getattr(v, "__name__", str(v))
)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_equals_eager(layer, backend, batches=(2, 3, 4, 5, 6)):
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for size in batches:
        xs = [randn(size, 4, 5, 3, seed=size).requires_grad_() for _ in range(2)]
        ys = [compiled(xs[0]), eager(xs[1])]
        assert error(*ys) <= COMPILED
        dy = randn(*ys[0].shape, seed=99)
        grads = [
            torch.autograd.grad(y, [x, *module.parameters()], dy)
            for y, x, module in zip(ys, xs, (layer, eager), strict=True)
        ]
        assert all(error(a, b) <= COMPILED for a, b in zip(*grads, strict=True))
        for (name, a), b in zip(layer.named_buffers(), eager.buffers(), strict=True):
            assert error(a, b) <= COMPILED, name


# Training has what eval has, and the statistics; eval by itself is asked of a layer with a gate and of one with noise.
FULLGRAPH = [
    pytest.param(*variant, training, marks=[] if training or variant in (VARIANTS[1], VARIANTS[4]) else NIGHTLY)
    for variant in VARIANTS
    for training in (True, False)
]


@pytest.mark.parametrize(("layer_type", "options", "training"), FULLGRAPH)
def test_compiled_equals_eager_in_one_graph(layer_type, options, training):
    """Batches 2-6: the first compiles for its size, the second for any size."""
    counter = CompileCounterWithBackend("aot_eager")
    assert_compiled_equals_eager(randomize(layer_type(4, **options)).train(training), counter)
    assert counter.frame_count <= 2


def assert_one_graph_for_all_batches(module, backend, *shapes, batches):
    """Of inputs whose batch is marked as dynamic: equal outputs, gradients of all inputs, and buffers."""
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for size in batches:
        inputs = [randn(size, *shape, seed=size + 10 * i) for i, shape in enumerate(shapes)]
        found = []
        for call in (compiled, eager):
            leaves = [x.clone().requires_grad_() for x in inputs]
            if call is compiled:
                for leaf in leaves:
                    torch._dynamo.mark_dynamic(leaf, 0)
            y = call(*leaves)
            found.append([y, *torch.autograd.grad(y, leaves, randn(*y.shape, seed=99))])
        assert all(error(a, b) <= COMPILED for a, b in zip(*found, strict=True))
        for (name, a), b in zip(module.named_buffers(), eager.buffers(), strict=True):
            assert error(a, b) <= COMPILED, name


@pytest.mark.parametrize("layer_type", [cn.IEBN2d, cn.RBN2d])
@each_mode
def test_relu_and_residual_in_one_graph(layer_type, training):
    counter = CompileCounterWithBackend("aot_eager")
    layer = randomize(layer_type(4, act="relu")).train(training)
    assert_one_graph_for_all_batches(layer, counter, (4, 5, 3), (4, 5, 3), batches=(5, 2, 7))
    assert counter.frame_count == 1


THROUGH = {"view", "unsqueeze", "expand", "unbind", "select", "getitem", "alias", "detach", "t"}
STORED = {"stack", "mean", "sum", "native_batch_norm_backward", "_native_batch_norm_legit_no_training"}


def called(node):
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def source(node):
    while node.op == "call_function" and (called(node) in THROUGH or node.args[1:] == (1,)):  # addcmul multiplies by 1
        node = node.args[0]
    return node


@each_layer
@each_mode
def test_pixels_read_numbers_that_are_stored(layer_type, training):
    """What Inductor fuses with pixels it computes at each: nothing but views lies between them and what it stores."""
    graphs, shape = [], (3, 4, 5, 7)

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    layer = randomize(layer_type(4).float()).train(training)
    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    compiled(torch.randn(shape, requires_grad=True)).square().sum().backward()
    assert len(graphs) == 2
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    at_pixels = [node for node in nodes if getattr(node.meta.get("val"), "shape", ()) == shape]
    assert all(node.meta["val"].dtype == torch.float32 for node in at_pixels)
    read = {source(given) for node in at_pixels for given in node.all_input_nodes}
    computed = {called(node) for node in read - set(at_pixels) if node.op == "call_function"}
    assert computed <= STORED


NETWORKS = [
    pytest.param("iebn", fused, training, marks=[] if fused and not training else NIGHTLY)
    for fused in (False, True)
    for training in (False, True)
] + [
    pytest.param("rbn", fused, training, marks=[] if fused and training else NIGHTLY)
    for fused in (False, True)
    for training in (False, True)
]


@pytest.mark.parametrize(("method", "fused", "training"), NETWORKS)
def test_a_converted_network_in_one_graph(method, fused, training):
    """The graph is Dynamo's alone; the layers' tests run AOTAutograd, which takes longer, too."""
    torch.manual_seed(0)
    model = cn.convert(ResNet((1,), 2, 3), method).train(training)
    counter = CompileCounter()
    assert_one_graph_for_all_batches(cn.fuse(model) if fused else model, counter, (3, 6, 4), batches=(5, 2, 7))
    assert counter.frame_count == 1


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["iebn", "rbn"])
@each_mode
def test_inductor_with_a_converted_network(method, training):
    torch.manual_seed(0)
    model = cn.convert(ResNet((1, 1), 4, 10), method).train(training)
    counter = CompileCounterWithBackend("inductor")
    assert_one_graph_for_all_batches(cn.fuse(model), counter, (3, 8, 8), batches=(5, 2, 7))
    assert counter.frame_count == 1


@pytest.mark.nightly
@each_layer
@each_mode
def test_inductor_with_relu_and_residual(layer_type, training):
    layer = randomize(layer_type(4, act="relu")).train(training)
    counter = CompileCounterWithBackend("inductor")
    assert_one_graph_for_all_batches(layer, counter, (4, 5, 3), (4, 5, 3), batches=(5, 2, 7))
    assert counter.frame_count == 1


@each_layer
def test_mode_and_layout_switch(layer_type):
    counter = CompileCounterWithBackend("aot_eager")
    layer = randomize(layer_type(4))
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for training in (True, False, True):
        layer.train(training)
        eager.train(training)
        x = randn(3, 4, 5, 3).contiguous(memory_format=torch.channels_last)
        y = compiled(x)
        assert error(y, eager(x)) <= COMPILED
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert counter.frame_count == 2


# The statistics are the same code in every layer.
@pytest.mark.parametrize(
    "layer_type", [cn.RBN2d, *(pytest.param(layer_type, marks=NIGHTLY) for layer_type in (cn.BN2d, cn.IEBN2d))]
)
def test_momentum_none(layer_type):
    counter = CompileCounterWithBackend("aot_eager")
    layer = randomize(layer_type(4, momentum=None))
    assert_compiled_equals_eager(layer, counter)
    assert counter.frame_count <= 2
    assert int(layer.bn.num_batches_tracked) == 5


@pytest.mark.nightly
@each_layer
@each_mode
def test_inductor(layer_type, training):
    assert_compiled_equals_eager(randomize(layer_type(4)).train(training), "inductor")


@each_variant
@each_mode
def test_export_with_a_dynamic_batch(layer_type, options, training):
    layer = randomize(layer_type(4, **options)).train(training)
    eager = copy.deepcopy(layer)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (randn(3, 4, 5, 3),), dynamic_shapes={"input": {0: batch}})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    reloaded = torch.export.load(file).module()
    for size in (2, 3, 7):
        x = randn(size, 4, 5, 3, seed=size)
        assert error(reloaded(x), eager(x)) <= COMPILED
    for name, buffer in eager.named_buffers():
        assert error(reloaded.get_buffer(name), buffer) <= COMPILED, name


def test_what_eager_calls_prepare_compiles_nothing_again():
    """A graph for evaluation is used before, between and after eager calls of the same layer."""
    counter = CompileCounter()
    layer = randomize(cn.IEBN2d(4)).eval()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    with torch.no_grad():
        for seed in range(3):
            x = randn(2, 4, 5, 3, seed=seed)
            assert error(compiled(x), layer(x)) <= COMPILED
    assert "_prepared" in layer.__dict__
    assert counter.frame_count == 1
