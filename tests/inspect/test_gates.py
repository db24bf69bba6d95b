"""Gates on data: against the methods' formulas, and a network that is afterwards as it was before."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from calibnorm.inspect.evaluating import Moments
from cases import randn
from trained import trained

IMAGES = (24, 6, 5, 4)


def standardized(layer, x, w_m=0.0):
    """x^, (N, C, S), with the centre moved by w_m times the plane's mean, and its noise."""
    x = x.double().flatten(2)
    x = x + torch.as_tensor(w_m).reshape(-1, 1) * x.mean(2, keepdim=True)
    n_a, n_b = layer.noise or (1.0, 0.0)
    mean, sd = layer.bn.running_mean.double()[:, None], (layer.bn.running_var.double()[:, None] + layer.eps).sqrt()
    return (x - mean) / sd * n_a + n_b


def bottleneck(z, p):
    hidden = torch.relu(z @ p["fc1_weight"].t() + p["fc1_bias"])
    return hidden @ p["fc2_weight"].t() + p["fc2_bias"]


def expected(layer, x):
    """The gate by the papers' formulas, (N, C)."""
    p = {name: gate.detach().double() for name, gate in layer.gates().items()}
    m = x.double().flatten(2).mean(2)
    method = layer.method_type.name
    if method == "iebn":
        operator = {"linear": lambda: p["gate_weight"] * m + p["gate_bias"], "identity": lambda: m}
        z = operator.get(layer.method.operator, lambda: bottleneck(m, p))()
        activations = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda z: z.softmax(1)}
        return activations[layer.method.activation](z)
    if method == "rbn":
        hat = standardized(layer, x, p.get("center_weight", 0.0))
        k_s = hat.mean(2) if layer.method.scale_stat == "mean" else hat.std(2, correction=0)
        return torch.sigmoid(p["scale_weight"] * k_s + p["scale_bias"])
    if layer.method.alone:
        return torch.sigmoid(bottleneck(m, p))
    z = standardized(layer, x) * layer.weight.detach().double()[:, None] + layer.bias.detach().double()[:, None]
    return torch.sigmoid(bottleneck(z.mean(2), p))


LAYERS = [
    lambda: cn.IEBN2d(6),
    lambda: cn.IEBN2d(6, noise=(0.8, 0.5), position="both"),
    lambda: cn.IEBN2d(6, operator="fc", reduction=2),
    lambda: cn.IEBN2d(6, operator="identity", activation="tanh"),
    lambda: cn.IEBN2d(6, activation="softmax", affine=False),
    lambda: cn.RBN2d(6),
    lambda: cn.RBN2d(6, noise=(-0.8, 0.5), scale_stat="std"),
    lambda: cn.RBN2d(6, centering=False, noise=(0.8, 0.5)),
    lambda: cn.RBN2d(6, noise=(3.0, 3.0), noise_in="train"),
    lambda: cn.SE2d(6, reduction=2),
    lambda: cn.SE2d(6, reduction=2, noise=(0.8, 0.5)),
    lambda: cn.SE2d(6, reduction=2, alone=True),
]


@pytest.mark.parametrize("make", LAYERS)
def test_against_the_formulas(make):
    layer, x = trained(make()), randn(*IMAGES, dtype=torch.float32)
    noise, layer.noise = layer.noise, None if layer.noise_in == "train" else layer.noise
    gate_NC = expected(layer, x)
    layer.noise = noise
    (row,) = cn.inspect.gates(nn.Sequential(nn.Identity(), layer), x)
    mean, std = gate_NC.mean(0), gate_NC.std(0)
    p10, p90 = torch.quantile(mean, mean.new_tensor([0.1, 0.9])).tolist()
    assert (row.layer, row.depth, row.quantity, row.values, row.images) == ("1", 1, "gate", 6, 24)
    values = (row.mean, row.std, row.p10, row.p90, row.std_over_images, row.spread)
    over_images = (std.mean().item(), (std / mean).mean().item())
    assert over_images[0] > 1e-3, "a gate that does not move shows nothing"
    assert values == pytest.approx(
        (mean.mean().item(), mean.std(correction=0).item(), p10, p90, *over_images), rel=1e-5
    )


@pytest.mark.parametrize(
    "layer", [cn.IEBN2d(6), cn.RBN2d(6), cn.RBN2d(6, noise=(0.8, 0.5)), cn.SE2d(6, alone=True, reduction=2)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_itself_applies_this_gate(layer, dtype):
    """Against the factor between the standardized feature and what the layer makes of it before gamma and beta."""
    layer = trained(copy.deepcopy(layer)).to(dtype)
    x = randn(*IMAGES, dtype=dtype)
    (row,) = cn.inspect.gates(layer, x)
    y = layer(x).double().flatten(2)
    p = {name: gate.detach().double().reshape(-1, 1) for name, gate in layer.gates().items()}
    hat = x.double().flatten(2) if layer.weight is None else standardized(layer, x, p.get("center_weight", 0.0))
    if layer.weight is not None:
        y = (y - layer.bias.double()[:, None]) / layer.weight.double()[:, None]
    gate_NC = (y * hat).sum(2) / hat.square().sum(2)  # least squares of y = d * x^
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    wanted = (gate_NC.mean().item(), gate_NC.std(0).mean().item())
    assert (row.mean, row.std_over_images) == pytest.approx(wanted, rel=tolerance)


def deep(seed=0):
    """A trained ResNet-18 with two methods in it and plain norms between."""
    torch.manual_seed(seed)
    net = torchvision.models.resnet18(num_classes=5)
    cn.convert(net, "iebn", include="layer[12].*")
    cn.convert(net, "rbn", include="layer3.*", skip="shortcut")
    with torch.no_grad():
        for layer in net.modules():
            for gate in layer.gates().values() if isinstance(layer, cn.nn.CalibratedNorm) else ():
                gate.add_(torch.randn_like(gate))
        net.train()
        for _ in range(3):
            net(torch.randn(8, 3, 32, 32))
    return net


def test_of_a_whole_network_in_batches_of_any_size():
    """Directly, from the layers' inputs kept whole: the figures that a comparison and the demo print."""
    net, x = deep().eval(), randn(30, 3, 32, 32, dtype=torch.float32)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, cn.IEBN2d)}
    seen = {}
    hooks = [layer.register_forward_pre_hook(lambda m, x: seen.__setitem__(m, x[0])) for layer in layers.values()]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    shares, over_images = [], {}
    for name, layer in layers.items():
        gate = torch.sigmoid(layer.gate_weight * seen[layer].mean((2, 3)) + layer.gate_bias).detach()
        shares += (gate.std(0) / gate.mean(0)).tolist()
        over_images[name] = gate.std(0).mean().item()
    for batches in (x, [x], x.split(7), ((part, "labels") for part in x.split([1, 28, 1])), [[x[:15]], [x[15:]]]):
        report = cn.inspect.gates(net, batches)
        assert [row.images for row in report] == [30] * len(report)
        ours = cn.inspect.GateReport(row for row in report if row.layer in layers)
        assert ours.spread == pytest.approx(sum(shares) / len(shares), rel=1e-4)
        by_channel = [share for row in ours for share in [row.instance_share] * row.values]
        assert ours.instance_share == pytest.approx(sum(by_channel) / len(by_channel))
        assert {row.layer: row.std_over_images for row in ours} == pytest.approx(over_images, rel=1e-3)
    every = [name for name, m in net.named_modules() if isinstance(m, cn.nn.CalibratedNorm | nn.BatchNorm2d)]
    every = [name for name in every if not name.endswith(".bn")]
    assert [row.depth for row in report] == [every.index(row.layer) + 1 for row in report]
    assert len({row.depth for row in report}) == len(report) == len(layers) + 4


def test_what_varies_between_channels_and_between_images():
    """One channel follows the image, and another has a constant of its own."""
    layer = trained(cn.IEBN2d(6))
    with torch.no_grad():
        layer.gate_weight[:] = torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        layer.gate_bias[:] = torch.tensor([0.0, 0.0, 0.0, -1.0, 1.0, 2.0])
    x = randn(*IMAGES, dtype=torch.float32)
    gate = torch.sigmoid(layer.gate_weight * x.mean((2, 3)) + layer.gate_bias).double()
    (row,) = cn.inspect.gates(layer, x.split(7))
    images = gate.var(0).mean().item()
    channels = gate.mean(0).var().item() - images / len(x)
    assert (row.between_images, row.between_channels) == pytest.approx((images, channels), rel=1e-5)
    assert row.instance_share == pytest.approx(images / (images + channels), rel=1e-5)
    assert 0.01 < row.instance_share < 0.5
    (constant,) = cn.inspect.gates(cn.IEBN2d(6), x)
    assert constant.between_channels == pytest.approx(0.0, abs=1e-20)
    assert constant.instance_share == 0.0
    with torch.no_grad():
        layer.gate_weight[:], layer.gate_bias[:] = 1.0, 0.0
    assert cn.inspect.gates(layer, randn(4000, 6, 1, 1, dtype=torch.float32))[0].instance_share > 0.97


def test_a_gate_at_beta_is_a_gate():
    (row,) = cn.inspect.gates(cn.IEBN2d(6, position="beta"), randn(*IMAGES, dtype=torch.float32))
    assert row.mean == pytest.approx(0.26894, abs=1e-5)


def test_where_gates_started():
    net = nn.Sequential(cn.IEBN2d(4), cn.RBN2d(4), cn.RBN2d(4, init=(0.0, 0.1, 1.0)), cn.SE2d(4))
    initial = [row.initial for row in cn.inspect.gates(net, torch.randn(2, 4, 3, 3))]
    assert initial[:2] == pytest.approx([0.26894, 0.73106], abs=1e-5)
    assert initial[2:] == [None, None]


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
def test_moments_lose_nothing_of_a_small_variance(offset):
    values = offset + 1e-3 * randn(400, 3, dtype=torch.float64)
    moments = Moments()
    for part in values.split([1, 1, 150, 48, 200]):
        moments.add(part)
    assert moments.count == 400
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.std, values.std(0), rtol=1e-6 if offset else 1e-12, atol=0.0)


def test_one_image_has_no_spread():
    (row,) = cn.inspect.gates(cn.IEBN2d(3), torch.randn(1, 3, 4, 4))
    assert row.mean == pytest.approx(0.26894, abs=1e-5)
    assert row.std_over_images != row.std_over_images


def state(net):
    modes = {name: module.training for name, module in net.named_modules()}
    hooks = {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in net.named_modules()}
    return modes, hooks, {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("stop", [None, RuntimeError("no more images"), KeyboardInterrupt()], ids=str)
def test_the_network_is_afterwards_as_it_was(stop):
    net = deep().train()
    net.layer4.eval()
    modes, hooks, tensors = state(net)
    random = torch.get_rng_state()

    def images():
        yield torch.ones(4, 3, 32, 32)
        if stop is not None:
            raise stop
        yield torch.ones(2, 3, 32, 32)

    if stop is None:
        assert {row.images for row in cn.inspect.gates(net, images())} == {6}
    else:
        with pytest.raises(type(stop)):
            cn.inspect.gates(net, images())
    assert state(net)[:2] == (modes, hooks)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_same_in_a_fused_a_compiled_and_an_autocast_network():
    net, x = deep().eval(), randn(6, 3, 32, 32, dtype=torch.float32)
    plain = cn.inspect.gates(net, x)
    assert cn.inspect.gates(cn.fuse(copy.deepcopy(net)), x).to_dicts() == plain.to_dicts()
    with torch.autocast("cpu", torch.bfloat16):
        half = cn.inspect.gates(net, x)
    assert [row.mean for row in half] == pytest.approx([row.mean for row in plain], rel=0.05)
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's own
        compiled(x)  # compiled now, without hooks
        rows = cn.inspect.gates(compiled, x)
    assert [row.mean for row in rows] == [row.mean for row in plain]
    assert [row.layer for row in rows] == [f"_orig_mod.{row.layer}" for row in plain]


def test_frozen_statistics_and_none_at_all():
    x = randn(*IMAGES, dtype=torch.float32)
    own = trained(cn.RBN2d(6))
    frozen = cn.convert(FrozenBatchNorm2d(6), "rbn")
    with torch.no_grad():
        for target, source in zip(frozen.gates().values(), own.gates().values(), strict=True):
            target.copy_(source)
        for name in ("running_mean", "running_var", "weight", "bias"):
            getattr(frozen.bn, name).copy_(getattr(own.bn, name))
    wanted = cn.inspect.gates(own, x)[0].mean
    assert cn.inspect.gates(frozen, x)[0].mean == pytest.approx(wanted, rel=1e-6)
    # Without running statistics evaluation takes those of the batch.
    bare = cn.RBN2d(6, track_running_stats=False)
    bare.load_state_dict({name: t for name, t in own.state_dict().items() if name in bare.state_dict()})
    twin = copy.deepcopy(own)
    moved = x * 1.0 + twin.center_weight.detach().reshape(-1, 1, 1) * x.mean((2, 3), keepdim=True)
    twin.bn.running_mean.copy_(moved.mean((0, 2, 3)))
    twin.bn.running_var.copy_(moved.var((0, 2, 3), correction=0))
    assert cn.inspect.gates(bare, x)[0].mean == pytest.approx(cn.inspect.gates(twin, x)[0].mean, rel=1e-5)


@pytest.mark.parametrize("over", ["in", "sn", "ghost", "an"])
def test_one_method_over_another(over):
    layer, x = trained(cn.IEBN2d(6, over=over)), randn(*IMAGES, dtype=torch.float32)
    gate = torch.sigmoid(layer.gate_weight * x.mean((2, 3)) + layer.gate_bias)
    (row,) = cn.inspect.gates(layer, x)
    assert row.std_over_images == pytest.approx(gate.std(0).mean().item(), rel=1e-4)
    (row,) = cn.inspect.gates(trained(cn.RBN2d(6, over=over)), x)
    assert 0 < row.mean < 1


@pytest.mark.parametrize(
    ("layer", "shape"), [(cn.IEBN1d(3), (4, 3)), (cn.RBN1d(3), (4, 3, 7)), (cn.SE3d(3), (4, 3, 2, 3, 4))]
)
def test_other_ranks(layer, shape):
    (row,) = cn.inspect.gates(layer, torch.randn(shape))
    assert row.images == 4


def test_layers_that_are_called_twice_or_not_at_all():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = cn.IEBN2d(3), cn.IEBN2d(3)

        def forward(self, x):
            return self.used(input=self.used(x))

    assert [(row.layer, row.images) for row in cn.inspect.gates(Twice(), torch.randn(5, 3, 2, 2))] == [("used", 10)]


def test_what_has_no_gate_has_no_row():
    net = nn.Sequential(
        nn.BatchNorm2d(4),
        cn.BN2d(4),
        cn.GN2d(4, groups=2),
        cn.RBN2d(4, scaling=False),
        cn.RBN2d(4, scale_stat="spatial_std"),
    )
    report = cn.inspect.gates(net, iter(()))  # nothing is run, so nothing is asked of the images
    assert report == []
    assert report.spread is None
    assert report.instance_share is None


def test_the_watch_reads_any_evaluation():
    net = nn.Sequential(cn.IEBN2d(3), cn.RBN2d(3)).eval()
    x = torch.randn(6, 3, 4, 4)
    with cn.inspect.watch_gates(net) as watch:
        net(x[:2])
        assert [row.images for row in watch.report()] == [2, 2]
        net(x[2:])
    net(x)
    assert watch.report().to_dicts() == cn.inspect.gates(net, [x[:2], x[2:]]).to_dicts()
    assert not any(module._forward_hooks for module in net.modules())
    with cn.inspect.watch_gates(net.train()), pytest.raises(ValueError, match=r"0 is in training mode.*call eval\(\)"):
        net(x)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_report_is_plain():
    report = cn.inspect.gates(nn.Sequential(cn.IEBN2d(3), cn.RBN2d(3)), torch.randn(4, 3, 2, 2))
    assert json.loads(json.dumps(report.to_dicts())) == report.to_dicts()
    lines = str(report).splitlines()
    columns = ["images", "std_over_images", "spread", "between_channels", "between_images", "instance_share"]
    assert lines[0].split()[-6:] == columns
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images holds no batch"),
        (torch.empty(0, 3, 8, 8), ValueError, r"images holds nothing to read: its last batch has the shape \(0, 3, 8"),
        ([torch.empty(2, 3, 0, 8)] * 2, ValueError, "images holds nothing to read"),
        (["china.jpg"], TypeError, r"images must be batches of images, or \(images, ...\), not str"),
        ([()], TypeError, "not tuple"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=message):
        cn.inspect.gates(cn.IEBN2d(3), images)


def test_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not list"):
        cn.inspect.gates([cn.IEBN2d(3)], torch.randn(2, 3, 4, 4))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not list"):
        cn.inspect.hold_scaling_gates([])


@pytest.mark.parametrize("noise", [None, (0.5, 0.2), (-0.5, 0.2)])
@pytest.mark.parametrize("scale_stat", ["mean", "std"])
def test_what_is_held_in_rbn(noise, scale_stat):
    """Against the formulas: the scaling gate alone, and then the shift of the centre too, with the statistics kept."""
    layer = trained(cn.RBN2d(6, noise=noise, scale_stat=scale_stat))
    w_m, w_v, w_b = (p.detach().clone().view(-1, 1) for p in layer.gates().values())
    gamma, beta = layer.weight.detach().clone()[:, None], layer.bias.detach().clone()[:, None]
    n_a, n_b = noise or (1.0, 0.0)
    gate = torch.sigmoid((n_b if scale_stat == "mean" else abs(n_a)) * w_v + w_b)
    x = randn(*IMAGES, dtype=torch.float32)
    centred = standardized(layer, x, w_m) * gamma * gate + beta
    shift = (w_m * layer.bn.running_mean[:, None] / (1 + w_m)).unsqueeze(-1)
    held = standardized(layer, x + shift) * gamma * gate + beta
    network = nn.Sequential(layer)
    assert cn.inspect.hold_scaling_gates(network)
    assert cn.inspect.gates(network, x)[0].std_over_images == pytest.approx(0.0, abs=1e-12)
    tolerance = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(network(x).flatten(2), centred, **tolerance)
    torch.testing.assert_close(cn.revert(network, lossy=True)(x).flatten(2), held, **tolerance)


def test_what_is_not_held():
    layer = trained(cn.RBN2d(3, centering=False))
    assert not cn.inspect.hold_scaling_gates(nn.Sequential(layer))
    assert not layer.scale_weight.any()
    others = nn.Sequential(cn.RBN2d(3, scaling=False), trained(cn.IEBN2d(3)))
    before = copy.deepcopy(others.state_dict())
    assert not cn.inspect.hold_scaling_gates(others)
    assert all(torch.equal(tensor, before[name]) for name, tensor in others.state_dict().items())
