"""States that load, and copies that equal the original."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

import calibnorm as cn
from cases import each_dims, each_layer, image, randn, randomize

SHAPES = {1: (6, 4, 5), 2: (4, 4, 3, 5), 3: (3, 4, 2, 3, 2)}
BATCHNORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OPTIONS = {
    cn.IEBN2d: [{}, {"operator": "fc"}, {"operator": "identity"}, {"position": "both", "noise": (0.5, 0.2)}],
    cn.RBN2d: [{}, {"centering": False}, {"scale_stat": "spatial_std", "act": "relu"}],
    cn.BN2d: [{}, {"gamma_init": 0.5}],
}
each_option = pytest.mark.parametrize(
    ("layer_type", "options"),
    [(layer, options) for layer, all_options in OPTIONS.items() for options in all_options],
    ids=lambda v: getattr(v, "__name__", str(v)),
)


def assert_equal(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())
    for training in (False, True):
        a.train(training)
        b.train(training)
        x = randn(*SHAPES[a.dims])
        assert torch.equal(a(x), b(x))
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@each_dims
def test_plain_batchnorm_state(layer_type):
    """Loads strictly, flat keys and all; gates become those of a new layer."""
    plain = randomize(BATCHNORMS[layer_type.dims](4))
    plain.num_batches_tracked.fill_(7)
    layer, new = randomize(layer_type(4), seed=2), layer_type(4)
    state = plain.state_dict()
    before = {name: t.clone() for name, t in state.items()}
    layer.load_state_dict(state)
    assert state.keys() == before.keys(), "the caller's state dict was changed"
    for name, tensor in before.items():
        assert torch.equal(layer.bn.state_dict()[name], tensor)
    for name, gate in layer.gates().items():
        assert torch.equal(gate, new.gates()[name])


def test_inside_a_network():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), cn.IEBN2d(4), nn.Sequential(cn.RBN2d(4)))
    ours.load_state_dict(randomize(plain).state_dict())
    assert torch.equal(ours[2][0].bn.running_var, plain[2][0].running_var)
    assert torch.equal(ours[1].weight, plain[1].weight)


AUTHORS = {
    cn.IEBN2d: {"weight_readjust": "gate_weight", "bias_readjust": "gate_bias"},
    cn.RBN2d: {name: name for name in ("center_weight", "scale_weight", "scale_bias")},
}


@pytest.mark.parametrize("layer_type", AUTHORS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("flat_affine", [True, False], ids=["(C,)", "(1,C,1,1)"])
def test_authors_state(layer_type, flat_affine):
    """Their gates are (1, C, 1, 1), their gamma and beta flat or shaped alike, their statistics (C,)."""
    shape = (4,) if flat_affine else (1, 4, 1, 1)
    gates = {theirs: randn(1, 4, 1, 1, seed=i) for i, theirs in enumerate(AUTHORS[layer_type])}
    state = {
        **gates,
        "weight": randn(*shape, seed=5),
        "bias": randn(*shape, seed=6),
        "running_mean": randn(4, seed=7),
        "running_var": randn(4, seed=8).abs(),
        "num_batches_tracked": torch.tensor(3),
    }
    layer = layer_type(4)
    layer.load_state_dict(state, strict=True)
    for theirs, ours in AUTHORS[layer_type].items():
        assert torch.equal(layer.get_parameter(ours).data, gates[theirs].flatten())
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(layer.bn.state_dict()[name], state[name].flatten())
    assert int(layer.bn.num_batches_tracked) == 3


@each_layer
def test_without_a_count_of_batches(layer_type):
    """As in torch: a state written before the counter existed loads strictly, and the counter stays."""
    state = randomize(nn.BatchNorm2d(4)).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer = layer_type(4)
    layer.load_state_dict(state)
    assert int(layer.bn.num_batches_tracked) == 0
    assert torch.equal(layer.bn.running_mean, state["running_mean"])
    layer.load_state_dict({k: v for k, v in state.items()})  # a plain dict carries no version at all


@each_layer
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn.running_mean"), "Missing key.*bn.running_mean"),
        (lambda s: s.update(surprise=torch.ones(1)), "Unexpected key.*surprise"),
        (lambda s: s.update({"bn.weight": torch.ones(5)}), "size mismatch for bn.weight"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_wrong_states_are_refused(layer_type, change, message):
    layer = layer_type(4)
    state = layer.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("layer_type", AUTHORS, ids=lambda t: t.__name__)
def test_a_missing_gate_is_refused(layer_type):
    layer = layer_type(4)
    state = layer.state_dict()
    del state[next(iter(layer.gates()))]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(state)


@each_option
def test_deepcopy_and_pickle(layer_type, options):
    layer = randomize(layer_type(4, **options))
    copied = copy.deepcopy(layer)
    assert copied.weight is not layer.weight
    pickled = pickle.loads(pickle.dumps(layer))
    assert_equal(copy.deepcopy(layer), copied)
    assert_equal(layer, pickled)
    assert repr(layer) == repr(pickled)


@each_option
def test_save_and_load(layer_type, options):
    layer, other = randomize(layer_type(4, **options)), randomize(layer_type(4, **options), seed=9)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(layer, other)


@each_option
def test_safetensors(layer_type, options, tmp_path):
    layer, other = randomize(layer_type(4, **options)), randomize(layer_type(4, **options), seed=9)
    safetensors.torch.save_model(layer, str(tmp_path / "layer.safetensors"))
    safetensors.torch.load_model(other, str(tmp_path / "layer.safetensors"))
    assert_equal(layer, other)


@each_option
def test_meta_to_empty(layer_type, options):
    layer = layer_type(4, **options, device="meta")
    assert all(t.is_meta for t in layer.state_dict().values())
    assert layer(image().to("meta")).shape == image().shape
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    assert_equal(layer, layer_type(4, **options))
    filled = layer_type(4, **options, device="meta").to_empty(device="cpu")
    source = randomize(layer_type(4, **options))
    filled.load_state_dict(source.state_dict())
    assert_equal(filled, source)


@each_option
def test_load_with_assign(layer_type, options):
    source, layer = randomize(layer_type(4, **options)), layer_type(4, **options, device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert_equal(copy.deepcopy(source), layer)


@each_layer
def test_dtype_and_device_arguments(layer_type):
    layer = layer_type(4, dtype=torch.float64, device="cpu")
    floats = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float64}
    assert layer.half().weight.dtype == torch.float16
    assert layer.bn.num_batches_tracked.dtype == torch.int64
