"""Compilers and exporters see the same function that eager runs, in one graph."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import calibnorm as cn
from ecosystem.nets import LAYERS, assert_same, gates, gradients, images, network, statistics, stirred

pytestmark = pytest.mark.untraced

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


NETWORKS = [
    pytest.param(norm, training, marks=[] if training == (norm is cn.IEBN2d) else pytest.mark.nightly)
    for norm in LAYERS
    for training in (True, False)
]


@pytest.mark.parametrize(("norm", "training"), NETWORKS)
def test_dynamo_takes_the_network_in_one_graph(norm, training):
    """One graph for all batches.

    Batches that are not marked as dynamic are the layers' own test, test_compiled_equals_eager_in_one_graph.
    """
    # Without code generation, which is the nightly test below.
    model = network(norm).train(training)
    eager, counter = copy.deepcopy(model), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for n in (5, 2, 3):
        x = images(n=n, seed=n)
        z = x.clone().requires_grad_()
        torch._dynamo.mark_dynamic(z, 0)
        x.requires_grad_()
        y, expected = compiled(z), eager(x)
        torch.testing.assert_close(y, expected, **TOLERANCE)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(z.grad, x.grad, **TOLERANCE)
    assert counter.frame_count == 1
    assert_same(statistics(model), statistics(eager), **TOLERANCE)
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("norm", LAYERS)
def test_a_cumulative_average_compiles(norm):
    layer = stirred(norm, momentum=None).train()
    eager, counter = copy.deepcopy(layer), CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for i in range(3):
        x = images(channels=6, seed=i)
        torch.testing.assert_close(compiled(x), eager(x), **TOLERANCE)
    assert counter.frame_count == 1
    assert_same(statistics(layer), statistics(eager), **TOLERANCE)


@pytest.mark.nightly  # the first C++ compilation on a machine takes a minute
@pytest.mark.parametrize("norm", LAYERS)
def test_inductor_generates_the_same_function(norm):
    model, x = network(norm), images()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled.train()(x), eager.train()(x), **TOLERANCE)
    assert_same(statistics(model), statistics(eager), **TOLERANCE)
    torch.testing.assert_close(compiled.eval()(x), eager.eval()(x), **TOLERANCE)


def exported(model, x):
    return torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1, max=64)}})


@pytest.mark.parametrize("norm", LAYERS)
def test_export_with_a_dynamic_batch(norm, tmp_path):
    model = network(norm).eval()
    program = exported(model, images())
    assert set(gates(model)) <= set(program.state_dict)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for n in (1, 2, 7):
        x = images(n=n, seed=n)
        torch.testing.assert_close(program.module()(x), model(x), **TOLERANCE)
        torch.testing.assert_close(loaded(x), model(x), **TOLERANCE)


@pytest.mark.parametrize("norm", LAYERS)
def test_export_of_a_training_forward_moves_statistics(norm):
    model, x = network(norm).train(), images()
    program = torch.export.export(model, (x,)).module()
    eager = copy.deepcopy(model)
    torch.testing.assert_close(program(x), eager(x), **TOLERANCE)
    assert_same(statistics(program), statistics(eager), **TOLERANCE)


@pytest.mark.parametrize("norm", LAYERS)
def test_onnx_runs_the_same_function(norm, tmp_path):
    model = network(norm).eval()
    dynamic = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, (images(),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for n in (1, 5):
        x = images(n=n, seed=n)
        (y,) = session.run(None, {given.name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("norm", LAYERS)
def test_jit_trace(norm, tmp_path):
    # A TracerWarning, which is an error here, would mean that a shape was frozen into the trace.
    model = network(norm).eval()
    traced = torch.jit.trace(model, images())
    for n in (1, 6):
        x = images(n=n, size=10, seed=n)
        torch.testing.assert_close(traced(x), model(x), **TOLERANCE)
    training = network(norm).train()
    traced = torch.jit.trace(copy.deepcopy(training), images(), check_trace=False)
    eager = copy.deepcopy(training)
    eager(images())  # the trace ran once to record itself
    x = images(n=6, seed=6)
    torch.testing.assert_close(traced(x), eager(x), **TOLERANCE)
    assert_same(statistics(traced), statistics(eager), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.parametrize("norm", LAYERS)
def test_jit_script_is_refused_by_name(norm):
    for model in (stirred(norm), network(norm), nn.Sequential(nn.Conv2d(3, 6, 1), stirred(norm))):
        with pytest.raises(TypeError, match=rf"{norm.__name__} cannot be compiled by torch.jit.script; use torch.expo"):
            torch.jit.script(model)


@pytest.mark.parametrize("norm", LAYERS)
def test_fx_symbolic_trace_keeps_layers_whole(norm):
    model = network(norm)
    traced, x = torch.fx.symbolic_trace(model), images()
    assert [n.target for n in traced.graph.nodes if n.op == "call_module" and "bn" in n.target] == ["bn1", "bn2", "bn3"]
    before = gradients(model, x)
    assert_same(gradients(traced, x), before)
    torch.testing.assert_close(traced.eval()(x), model.eval()(x), rtol=0, atol=0)
