"""The batch-noise meter: networks whose batch noise is known, and that they are afterwards as they were."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from calibnorm.inspect import BatchNoise, metering
from calibnorm.inspect.company import Batches, Pool
from calibnorm.inspect.layers import layers_of
from cases import randn

FEW = {"probes": 4, "draws": 3, "batch_sizes": (4,)}


def gaussian(n=256, channels=32, side=8):
    return randn(n, channels, side, side, dtype=torch.float32)


def leading(batch_size, pixels=64):
    """1 / values for the centre and 1 / (2 values) for the scale, of which the probe itself moves its part with it."""
    return 1.5 / (batch_size * pixels) * (1 - 1 / batch_size)


LAYERS = [
    (nn.BatchNorm2d, {}, (4, 16, 64, 256)),
    (nn.SyncBatchNorm, {}, (8,)),
    (cn.BN2d, {"noise": (0.5, 0.2)}, (8,)),
    (cn.IEBN2d, {}, (8,)),
]


@pytest.mark.parametrize(("kind", "options", "sizes"), LAYERS)
def test_a_batchnorm_is_as_noisy_as_theory_says(kind, options, sizes):
    (layer,) = cn.inspect.batch_noise(kind(32, **options), gaussian(), probes=12, batch_sizes=sizes, draws=6).layers
    for size in sizes:
        assert layer.own[size] == pytest.approx(leading(size), rel=0.1)
        assert layer.own[size].low < leading(size) * 1.02 < layer.own[size].high * 1.1
        assert layer.accumulated[size] == pytest.approx(layer.own[size], rel=1e-4)


class Half(nn.Module):
    """Normalizes half its channels by the batch and half by the image."""

    def __init__(self, channels):
        super().__init__()
        self.batch, self.instance = nn.BatchNorm2d(channels // 2), nn.InstanceNorm2d(channels // 2)

    def forward(self, x):
        one, other = x.chunk(2, 1)
        return torch.cat([self.batch(one), self.instance(other)], 1)


def test_half_a_batchnorm_is_half_as_noisy():
    (layer,) = cn.inspect.batch_noise(nn.Sequential(Half(64)), gaussian(64, 64), probes=8, draws=4).layers
    assert layer.name == "0"
    for size in (8, 32):
        assert layer.own[size] == pytest.approx(leading(size) / 2, rel=0.12)
        assert layer.accumulated[size] == pytest.approx(layer.own[size], rel=1e-4)


NOT_NOISY = [
    nn.InstanceNorm2d(6),
    nn.GroupNorm(2, 6),
    nn.LayerNorm([6, 5, 4]),
    nn.BatchNorm2d(6).eval(),
    FrozenBatchNorm2d(6),
    cn.freeze_stats(cn.RBN2d(6)),
    cn.IEBN2d(6).eval(),
    cn.norm_layer("in")(6),
    cn.norm_layer("gn", groups=3)(6),
    cn.norm_layer("ln")(6),
    cn.norm_layer("frn")(6),
    cn.SE2d(6, alone=True),
]


@pytest.mark.parametrize("layer", NOT_NOISY, ids=lambda layer: type(layer).__name__)
def test_what_asks_nobody_else_is_not_noisy(layer):
    x, labels = randn(20, 6, 5, 4, dtype=torch.float32), torch.arange(20) % 3
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(120, 3)).train()
    layer.train(layer.training and not isinstance(layer, nn.BatchNorm2d))
    if "eval" in str(layer) or isinstance(layer, nn.BatchNorm2d | cn.IEBN2d):
        layer.eval()
    noise = cn.inspect.batch_noise(net, [(x, labels)], **FEW)
    shares = [share for row in noise.table() for share in (row.own, row.accumulated, row.own_gradient) if share]
    assert all(share < 1e-10 for share in shares)
    assert noise.loss[4] < 1e-10
    assert noise.gradient[4] < 1e-10


def test_loss_and_gradients_are_as_noisy_as_theory_says():
    """With a loss <w, y>, gamma's gradient is as noisy as y, beta's not at all, and y's by x is w over the scale."""
    x, w = gaussian(128), randn(128, 32, 8, 8, seed=7, dtype=torch.float32)
    net = nn.BatchNorm2d(32)
    product = lambda y, w: (y * w).flatten(1).sum(1)  # noqa: E731
    noise = cn.inspect.batch_noise(net, [(x, w)], probes=16, batch_sizes=(8, 32), draws=8, loss=product)
    (layer,) = noise.layers
    for size in (8, 32):
        assert layer.own_gradient[size] == pytest.approx(leading(size) / 3, rel=0.1)
        assert layer.accumulated_gradient[size] == pytest.approx(layer.own_gradient[size], rel=1e-3)
        assert noise.gradient[size] == pytest.approx(leading(size) / 2, rel=0.25)
        assert noise.loss[size].low < leading(size) < noise.loss[size].high
    assert net.weight.grad is None


def network(norm="bn"):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        cn.norm_layer(norm)(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(8, momentum=None),
        nn.Linear(8, 4),
    ).train()


def labelled(n=40):
    return randn(n, 3, 6, 6, dtype=torch.float32), torch.arange(n) % 4


def test_own_noise_is_the_layer_s_and_accumulated_noise_the_network_s():
    first, group, last = cn.inspect.batch_noise(network(), [labelled()], probes=8, draws=4).layers
    assert [layer.name for layer in (first, group, last)] == ["1", "4", "9"]
    assert [layer.depth for layer in (first, group, last)] == [1, 2, 3]
    for size in (8, 32):
        assert first.own[size] == pytest.approx(first.accumulated[size], rel=1e-4)  # nothing before it is noisy
        assert group.own[size] == 0.0  # dropout neither
        assert group.accumulated[size] > 0.3 * first.accumulated[size]
        assert last.accumulated[size] > 0.5 * last.own[size] > 0.0
        assert last.accumulated_gradient[size] > 0.0
    assert last.own[8] > 2 * last.own[32]


def test_the_seed_decides_and_batches_do_not():
    net, (x, labels) = network("rbn"), labelled(30)
    one = cn.inspect.batch_noise(net, [(x, labels)], **FEW, pool=20).to_dicts()
    loader = ((x[i : i + 7], labels[i : i + 7], "more") for i in range(0, 30, 7))
    assert cn.inspect.batch_noise(net, loader, **FEW, pool=20).to_dicts() == one
    assert cn.inspect.batch_noise(net, [(x, labels)], **FEW, pool=20, seed=1).to_dicts() != one


def state(net):
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in (*net.named_buffers(), *net.named_parameters())}
    modes = {name: module.training for name, module in net.named_modules()}
    hooks = {name: len(m._forward_hooks) + len(m._backward_hooks) for name, m in net.named_modules()}
    return tensors, modes, hooks, [p.grad for p in net.parameters()], torch.get_rng_state(), random.getstate()


@pytest.mark.parametrize("norm", ["bn", "rbn", "brn", "an", "ghost"])
@pytest.mark.parametrize("stop", [None, 1, 6, 20])
def test_the_network_is_afterwards_as_it_was(norm, stop):
    net, calls = network(norm), 0
    net[4].eval()
    before = state(net)

    def loss(output, labels):
        nonlocal calls
        calls += 1
        random.random()
        if calls == stop:
            raise KeyboardInterrupt
        return metering.cross_entropies(output, labels)

    measure = lambda: cn.inspect.batch_noise(net, [labelled(12)], **FEW, loss=loss)  # noqa: E731
    if stop is None or stop > 13:
        measure()
    else:
        with pytest.raises(KeyboardInterrupt):
            measure()
    after = state(net)
    assert after[1:4] == before[1:4]
    assert torch.equal(after[4], before[4])
    assert after[5] == before[5]
    for name, (number, tensor) in before[0].items():
        assert after[0][name][0] == number, "another tensor is in its place"
        assert torch.equal(after[0][name][1], tensor), name
    assert torch.is_grad_enabled()


def test_without_labels_or_gradients_there_is_less_to_read():
    net, (x, labels) = network(), labelled()
    bare = cn.inspect.batch_noise(net, x, **FEW)
    assert (bare.loss, bare.gradient, bare.layers[0].own_gradient, len(bare.table())) == ({}, {}, {}, 3)
    forward = cn.inspect.batch_noise(net, [(x, labels)], **FEW, gradients=False)
    assert forward.loss[4] > 0
    assert (forward.gradient, forward.layers[0].accumulated_gradient) == ({}, {})
    full = cn.inspect.batch_noise(net, [(x, labels)], **FEW)
    assert [row.own for row in full.table()][:3] == [row.own for row in bare.table()]
    frozen = cn.inspect.batch_noise(net.requires_grad_(False), [(x, labels)], **FEW)
    assert (frozen.gradient, frozen.layers[0].own_gradient.keys()) == ({}, {4})
    for marks in (labels.float(), torch.zeros(40, 2, dtype=torch.long), ["a"] * 40, labels[:3]):
        assert cn.inspect.batch_noise(net, [(x, marks)], **FEW).loss == {}


def test_a_report_is_plain():
    noise = cn.inspect.batch_noise(network(), [labelled()], **FEW)
    assert isinstance(noise, BatchNoise)
    rows = noise.to_dicts()
    assert [row["layer"] for row in rows] == ["1", "4", "9", "(loss)", "(parameters)"]
    assert {type(value) for row in rows for value in row.values()} == {str, int, float, type(None)}
    assert rows[0]["own_low"] < rows[0]["own"] < rows[0]["own_high"]
    assert rows[3]["own"] is None
    lines = str(noise).splitlines()
    assert lines[0].split() == ["layer", "depth", "batch_size", *metering_kinds()]
    assert " to " in lines[2]
    assert repr(noise.table()) == str(noise)


def metering_kinds():
    return ["own", "accumulated", "own_gradient", "accumulated_gradient"]


def test_pandas_where_it_is(monkeypatch):
    import sys
    import types

    table = cn.inspect.batch_noise(network(), labelled()[0], **FEW)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas, which is not installed"):
        table.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    assert table.to_pandas() == table.to_dicts()


def test_large_tensors_are_looked_at_in_part(monkeypatch):
    x = gaussian(64, 16)
    (whole,) = cn.inspect.batch_noise(nn.BatchNorm2d(16), x, probes=8, draws=8).layers
    monkeypatch.setattr(metering, "KEPT", 300)
    (part,) = cn.inspect.batch_noise(nn.BatchNorm2d(16), x, probes=8, draws=8).layers
    assert part.own[8] != whole.own[8]
    assert part.own[8] == pytest.approx(whole.own[8], rel=0.15)


def test_layers_called_twice_by_name_and_with_windows():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused, self.windows = cn.BN2d(4, act="relu"), nn.BatchNorm2d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.norm(self.norm(input=x), residual=x)
            windows = y.unfold(3, 3, 3).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)  # two an image
            return self.windows(windows)

    noise = cn.inspect.batch_noise(Odd(), randn(24, 4, 6, 6, dtype=torch.float32), **FEW)
    assert [layer.name for layer in noise.layers] == ["norm", "windows"]
    assert all(0 < layer.own[4] < 0.2 for layer in noise.layers)


def test_what_counts_as_a_layer():
    class MyNorm(nn.Module):
        pass

    net = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), MyNorm()),
            "b": Half(4),
            "c": cn.RBN2d(3),
            "d": nn.Sequential(nn.GroupNorm(1, 3)),
        }
    )
    net["again"] = net["b"]
    assert [*layers_of(net).values()] == ["a.1", "a.2", "b", "c", "d.0"]
    assert [*layers_of(Half(4)).values()] == ["batch", "instance"]
    assert [*layers_of(nn.BatchNorm2d(3)).values()] == ["(model)"]
    assert [*layers_of(net, lambda name, module: isinstance(module, nn.Conv2d)).values()] == ["a.0"]


def test_probes_and_company():
    images = torch.arange(50.0)[:, None]
    pool = Pool.read([(images[:9], torch.arange(9)), (images[9:], torch.arange(9, 50))], 20, 3, None)
    assert torch.equal(pool.images[:, 0].long(), pool.labels)
    assert len(set(pool.labels.tolist())) == 20
    often = sum(
        len({0, 49} & set(Pool.read([images], 20, seed, None).images[:, 0].int().tolist())) for seed in range(99)
    )
    assert 60 < often < 100  # 2 * 99 * 20 / 50 = 79
    batches = Batches.drawn(5, 3, 400, 20, 0, torch.device("cpu"))
    drawn = torch.stack([torch.stack([*draws]) for draws in batches])
    assert drawn.shape == (3, 400, 5)
    for probe in range(3):
        assert (drawn[probe, :, 0] == probe).all()
        company = drawn[probe, :, 1:].flatten().bincount(minlength=20)
        assert company[probe] == 0
        assert (company[torch.arange(20) != probe] > 40).all()  # 84 each


def test_a_compiled_network():
    net, (x, labels) = network(), labelled()
    plain = cn.inspect.batch_noise(net, [(x, labels)], **FEW)
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    noise = cn.inspect.batch_noise(compiled, [(x, labels)], **FEW)
    assert [layer.own for layer in noise.layers] == [layer.own for layer in plain.layers]


X = torch.ones(8, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probes": 2}, ValueError, "probes=2 must be a whole number of at least 3"),
        ({"draws": True}, ValueError, "draws=True must be a whole number"),
        ({"pool": 2}, ValueError, "pool=2 must be"),
        ({"batch_sizes": (8, 1)}, ValueError, "batch_sizes=1 must be"),
        ({"batch_sizes": (8.0,)}, ValueError, "batch_sizes=8.0 must be"),
        ({"batch_sizes": ()}, ValueError, "batch_sizes is empty"),
        ({"images": []}, ValueError, "images holds no batch"),
        ({"images": ["china.jpg"]}, TypeError, "images must be batches of images"),
        ({"images": X[:2]}, ValueError, "images holds too few: 2, and"),
        ({"loss": lambda y, labels: y}, ValueError, "loss= needs labels"),
        (
            {"images": [(X, torch.ones(8))], "loss": lambda y, labels: y.mean()},
            ValueError,
            r"loss= returned shape \(\)",
        ),
        ({"where": lambda name, module: False}, ValueError, "where= chooses no module"),
        ({"where": lambda name, module: isinstance(module, nn.Flatten)}, ValueError, "1 returns shape"),
        ({"model": "resnet50"}, TypeError, "model must be a torch.nn.Module, not str"),
    ],
)
def test_bad_input(arguments, error, message):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(0))
    with pytest.raises(error, match=message):
        cn.inspect.batch_noise(**{"model": net, "images": X, **arguments})
