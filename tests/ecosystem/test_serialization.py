"""Copies, files, devices and dtypes: what comes back is what was put in."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from ecosystem.nets import LAYERS, Net, assert_same, gates, images, layers, network, statistics, stirred

pytestmark = pytest.mark.parametrize("norm", LAYERS)


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save of the module": lambda model: saved(model, weights_only=False),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_copies_are_equal_and_independent(norm, make_copy):
    model, x = network(norm).train(), images()
    before, expected_gates = statistics(model), gates(model)
    twin = make_copy(model)
    assert_same(gates(twin), expected_gates)
    assert_same(twin.state_dict(), model.state_dict())
    torch.testing.assert_close(twin.eval()(x), copy.deepcopy(model).eval()(x), rtol=0, atol=0)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    twin.train()(x)
    assert_same(gates(model), expected_gates)
    assert_same(statistics(model), before)


@pytest.mark.parametrize("options", [{"init": (0.5, 0.25)}, {"act": "relu"}, {"noise": (0.9, 0.2)}], ids=str)
def test_options_survive_a_pickle(norm, options):
    if "init" in options and norm.__name__ == "RBN2d":
        options = {"init": (0.5, 0.25, 0.125)}
    layer, x = stirred(norm, **options).eval(), images(channels=6)
    twin = pickle.loads(pickle.dumps(layer))
    assert repr(twin) == repr(layer)
    assert twin.options() == layer.options() == options
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


def test_a_state_dict_passes_through_weights_only(norm):
    model, x = network(norm).eval(), images()
    state = saved(model.state_dict(), weights_only=True)
    twin = Net(norm).eval()
    assert not torch.allclose(twin(x), model(x))
    twin.load_state_dict(state, strict=True)
    assert_same(twin.state_dict(), model.state_dict())
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)


def test_safetensors(norm, tmp_path):
    model, x = network(norm).eval(), images()
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    one, two = Net(norm).eval(), Net(norm).eval()
    one.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    save_model(model, str(tmp_path / "model.safetensors"))
    missing, unexpected = load_model(two, str(tmp_path / "model.safetensors"))
    assert not missing
    assert not unexpected
    for twin in (one, two):
        assert_same(twin.state_dict(), model.state_dict())
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)


def test_optimizer_state_follows(norm):
    model = network(norm).train()
    optimizer = torch.optim.AdamW(model.parameters())
    model(images()).sum().backward()
    optimizer.step()
    state = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, weights_only=True)
    twin = Net(norm)
    twin.load_state_dict(state["model"])
    other = torch.optim.AdamW(twin.parameters())
    other.load_state_dict(state["optimizer"])
    for net, opt in ((model, optimizer), (twin, other)):
        opt.zero_grad()
        net.train()(images(seed=1)).sum().backward()
        opt.step()
    assert_same(twin.state_dict(), model.state_dict())


def test_meta_device_and_to_empty(norm):
    with torch.device("meta"):
        model = Net(norm)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    y = model(images().to("meta"))
    assert (y.shape, y.device.type) == ((4, 5), "meta")
    full, x = network(norm).eval(), images()
    model.to_empty(device="cpu").load_state_dict(full.state_dict())
    torch.testing.assert_close(model.eval()(x), full(x), rtol=0, atol=0)
    for _, layer in layers(model):
        layer.reset_parameters()
    fresh = Net(norm)
    assert_same(gates(model), gates(fresh))
    assert_same(statistics(model), statistics(fresh))


def test_load_with_assign(norm):
    # The other way from the meta device: tensors of the checkpoint become the parameters.
    with torch.device("meta"):
        model = Net(norm)
    full, x = network(norm).eval(), images()
    model.load_state_dict(full.state_dict(), assign=True)
    assert all(isinstance(layer.weight, nn.Parameter) for _, layer in layers(model))
    torch.testing.assert_close(model.eval()(x), full(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_whole_model_in_another_dtype(norm, dtype):
    full, x = network(norm), images()
    expected = copy.deepcopy(full).eval()(x)
    model = full.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    y = model.eval()(x.to(dtype))
    assert y.dtype is dtype
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    before = statistics(model)
    y = model.train()(x.to(dtype))
    y.float().square().sum().backward()
    assert y.dtype is dtype
    assert all(
        p.grad is not None and p.grad.dtype is dtype and torch.isfinite(p.grad).all() for p in model.parameters()
    )
    assert not torch.equal(statistics(model)["bn2.bn.running_mean"], before["bn2.bn.running_mean"])


def test_channels_last_model(norm):
    model, x = network(norm), images()
    expected = copy.deepcopy(model).train()(x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    layouts = []
    last.bn2.register_forward_hook(
        lambda m, args, y: layouts.append([t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], y)])
    )
    y = last(x.to(memory_format=torch.channels_last))
    assert layouts == [[True, True]]
    torch.testing.assert_close(y, expected)
    model.train()(x)
    assert_same(statistics(last), statistics(model), rtol=1e-5, atol=1e-6)
