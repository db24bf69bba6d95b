"""A fused network goes on being what it was, whatever is done to it afterwards."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BatchNormAct2d
from torch import fx, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from calibnorm.fusion import calls
from cases import randn
from conversion.helpers import randomize_gates
from fusion.helpers import assert_same, calls_of, computed, fuse, stir
from tolerances import COMPILED, error

PLAIN = ["plain", "rbn"]
each_kind = pytest.mark.parametrize("kind", PLAIN)


def x64(*shape: int, seed: int = 5) -> torch.Tensor:
    return randn(*(shape or (4, 3, 12, 12)), seed=seed, dtype=torch.float64)


def network(kind: str = "plain", *, fused: bool = True) -> nn.Module:
    """A stem as a Sequential, and two residual blocks of torchvision, one with a convolution as its shortcut."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        BasicBlock(4, 4),
        BasicBlock(4, 6, downsample=shortcut),
    )
    if kind != "plain":
        cn.convert(model, kind)
        randomize_gates(model)
    stir(model)
    if fused:
        assert sum(row.startswith("fused") for row in fuse(model).values()) == 5
    return model


@pytest.fixture
def done(monkeypatch):
    return calls_of(monkeypatch)


@each_kind
def test_the_network_of_these_tests_runs_fused(kind, done):
    model = network(kind)
    assert_same(computed(model, x64()), computed(network(kind, fused=False), x64()))
    names = {"plain": "BatchNorm2d", "rbn": "RBN2d"}[kind]
    once = [(names, False), (names, False), (names, True), (names, False), (names, True)]
    assert done == (once if kind == "plain" else once * 2)  # plain BatchNorm is torch's own in eval mode


def test_fusing_twice_is_fusing_once():
    model = network()
    kinds = {name: type(m).__mro__[1:] for name, m in model.named_modules()}
    assert all(row.startswith(("fused", "left: the end")) for row in fuse(model).values())
    assert {name: type(m).__mro__[1:] for name, m in model.named_modules()} == kinds


def test_a_class_that_others_have_derived_stays_theirs():
    block = Shift().double()
    cn.fuse(block)
    nn.utils.parametrize.register_parametrization(block, "shift", nn.Softplus())
    kind, y = type(block), block(x64())
    assert fuse(block)["bn"].startswith("left")
    assert type(block) is kind
    assert torch.equal(block.eval()(x64()), copy.deepcopy(block)(x64()))
    assert error(block.train()(x64()), y) == 0.0


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.shift = nn.BatchNorm2d(3), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return F.relu(self.bn(x)) + self.shift


def test_what_others_see_of_a_block():
    block = network()[1]
    assert isinstance(block, BasicBlock)
    assert type(block).__name__ == "BasicBlock"
    assert repr(block).startswith("BasicBlock[fused](")
    assert inspect.signature(block.forward) == inspect.signature(BasicBlock(4, 4).forward)
    assert error(block(x=x64(2, 4, 5, 5)), network(fused=False)[1](x64(2, 4, 5, 5))) <= 1e-12


@each_kind
def test_a_deep_copy_is_fused_and_independent(kind, done):
    model = network(kind)
    twin = copy.deepcopy(model)
    expected = computed(model, x64())
    done.clear()
    assert_same(computed(twin, x64()), expected, 0.0)
    assert len(done) >= 5
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert_same(computed(model, x64()), expected, 0.0)


def test_a_deep_copy_of_a_block_that_refers_to_itself():
    block = network()[1]
    block.__dict__["me"] = block
    twin = copy.deepcopy(block)
    assert twin.me is twin is not block
    assert type(twin) is type(block)


@each_kind
def test_a_pickle_holds_the_network_as_it_was(kind, tmp_path):
    model, plain = network(kind), network(kind, fused=False)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(model, protocol))
        assert [type(m) for m in again.modules()] == [type(m) for m in plain.modules()]
        assert_same(computed(again, x64()), computed(plain, x64()), 0.0)
    torch.save(model, tmp_path / "model.pt")
    assert type(torch.load(tmp_path / "model.pt", weights_only=False)[1]) is BasicBlock


def test_a_pickle_of_a_plain_network_needs_no_calibnorm():
    assert b"calibnorm" not in pickle.dumps(network())
    assert b"calibnorm" in pickle.dumps(network("rbn"))


@each_kind
def test_state_dicts_go_both_ways(kind):
    model, plain = network(kind), network(kind, fused=False)
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.1)
    model.load_state_dict(plain.state_dict())
    assert_same(computed(model, x64()), computed(plain, x64()))


@each_kind
def test_an_optimizer_made_before_goes_on(kind):
    ends = []
    for fused in (False, True):
        model = network(kind, fused=False).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if fused:
            cn.fuse(model)
        for step in range(3):
            optimizer.zero_grad()
            model(x64(seed=step)).square().mean().backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert_same(ends[1], ends[0])


@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_convert_and_revert_after_fusing(method, done):
    model, plain = network(), network(fused=False)
    for net in (model, plain):
        cn.convert(net, method)
        randomize_gates(net)
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert len(done) == 10  # still fused
    assert cn.plan(model) == cn.plan(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    again = cn.convert(network(fused=False), cn.plan(model))
    again.load_state_dict(model.state_dict())
    assert_same(computed(again, x64()), computed(plain, x64()))
    for net in (model, plain):
        cn.revert(net, lossy=True)
    assert type(model[1].bn1) is nn.BatchNorm2d
    done.clear()
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert len(done) == 5


def test_convert_and_revert_after_fusing_timms_norm_with_act():
    def block() -> nn.Module:
        torch.manual_seed(0)
        return stir(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)))

    model, plain = block(), block()
    assert fuse(model) == {"1": "fused: norm + ReLU"}
    for net in (model, plain):
        cn.convert(net, "rbn")
        randomize_gates(net)
    assert_same(computed(model, x64()), computed(plain, x64()))
    for net in (model, plain):
        cn.revert(net, lossy=True)
    assert type(model[1]) is BatchNormAct2d
    assert_same(computed(model, x64()), computed(plain, x64()))


def test_timms_norm_with_act_alone_and_changed_afterwards():
    norm = BatchNormAct2d(4).double()
    assert cn.fuse(norm) is norm
    x = x64(3, 4, 5, 5)
    assert_same(computed(norm, x), computed(BatchNormAct2d(4).double(), x))
    norm.act = nn.SiLU()
    assert_same(computed(norm, x), computed(BatchNormAct2d(4, act_layer=nn.SiLU).double(), x), 0.0)
    assert type(pickle.loads(pickle.dumps(norm))) is BatchNormAct2d


def put_hook(model):
    model[1].bn2.register_forward_hook(lambda module, args, y: y * 2)


def put_hook_on_relu(model):
    model[1].relu.register_forward_pre_hook(lambda module, args: (args[0] - 1,))


def replace_relu(model):
    model[1].relu = nn.SiLU()
    model[0][2] = nn.SiLU()


def replace_norm(model):
    model[1].bn2 = nn.GroupNorm(2, 4).double()
    model[0][1] = nn.Identity()


def freeze(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def freeze_by_class(model):
    frozen = FrozenBatchNorm2d(4).double()
    frozen.load_state_dict(stir(nn.BatchNorm2d(4)).state_dict(), strict=False)
    model[1].bn2 = frozen


def stop_tracking(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def average(model):
    model[1].bn2.momentum = None


def without_statistics(model):
    model[1].bn2 = nn.BatchNorm2d(4, affine=False, track_running_stats=False).double()


def drop_shortcut(model):
    model[2].downsample = nn.Conv2d(4, 6, 1).double()
    nn.init.constant_(model[2].downsample.weight, 0.1)
    nn.init.zeros_(model[2].downsample.bias)


def append(model):
    model[0].append(nn.Tanh())


def insert(model):
    model[0].insert(2, nn.Softplus())


def prune(model):
    nn.utils.prune.ln_structured(model[1].bn2, "weight", 0.5, 1, 0)


def parametrize(model):
    nn.utils.parametrize.register_parametrization(model[1].bn2, "weight", nn.Softplus())


CHANGES = [
    put_hook, put_hook_on_relu, replace_relu, replace_norm, freeze, freeze_by_class, stop_tracking, average,
    without_statistics, drop_shortcut, append, insert, parametrize,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_later_change_counts(change):
    model, plain = network(), network(fused=False)
    with torch.random.fork_rng():
        before = computed(plain, x64())
        for net in (model, plain):
            change(net.train())
        if change in (freeze, stop_tracking):  # modes, which computed() would set
            results = []
            for net in (model, plain):
                y = net(x64())
                y.square().sum().backward()
                results.append({"y": y, **{n: p.grad for n, p in net.named_parameters()}, **net.state_dict()})
            assert_same(*results)
            assert error(plain(x64()), before["output"]) > 0.01 or change is stop_tracking
        else:
            after = computed(plain, x64())
            assert_same(computed(model, x64()), after)
            same = error(after["output"], before["output"]) < 1e-9
            assert same == (change is average), "the change must be one that shows"


def test_a_setting_of_a_block_may_change():
    class Scaled(BasicBlock):
        scale = 1.0

        def __init__(self):
            super().__init__(4, 4)
            self.double_it = False

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            return 2 * y if self.double_it else y

    block = stir(Scaled())
    assert fuse(block)["bn1"] == "fused: norm + ReLU"
    x = x64(2, 4, 5, 5)
    y = block(x)
    block.double_it = True
    assert error(block(x), 2 * y) <= 1e-12


def test_slices_of_a_sequential():
    features = torchvision.models.vgg.make_layers([4, "M", 6], batch_norm=True).double()
    fused = copy.deepcopy(features)
    fuse(fused)
    x = x64()
    for part in (slice(0, 2), slice(0, 3), slice(1, 6), slice(None)):
        assert error(fused[part](x64(2, 4, 6, 6) if part.start == 1 else x),
                     features[part](x64(2, 4, 6, 6) if part.start == 1 else x)) <= 1e-12  # fmt: skip
    for a, b in zip(fused, features, strict=True):
        assert type(a) is type(b)


def test_one_norm_and_one_relu_in_several_places(done):
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            y = self.relu(self.bn(x))
            y = self.relu(self.bn(y) + x)
            return self.relu(self.bn(y) * 2) + self.relu(x)

    model, plain = stir(Shares()), stir(Shares())
    fuse(model)
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert done == [("BatchNorm2d", False), ("BatchNorm2d", True)]


def test_two_norms_that_are_added(done):
    """As in RepVGG: one takes the other's output as its residual."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return (self.bn1(self.conv1(x)) + self.bn2(self.conv2(x))).relu_()

    torch.manual_seed(0)
    plain = stir(Two())
    model = copy.deepcopy(plain)
    rows = fuse(model)
    assert rows["bn1"] == "fused: norm + add + ReLU"
    assert rows["bn2"] == "left: is added to another norm's output, which takes it as its residual"
    assert_same(computed(model, x64()), computed(plain, x64()))
    assert done == [("BatchNorm2d", True)]


class Adds(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x, residual):
        y = self.norm(x)
        y += residual
        return F.relu(y)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, cn.RBN2d])
def test_a_residual_that_is_broadcast_or_of_another_dtype(norm, done):
    model, plain = Adds(norm(3)), Adds(norm(3))
    assert fuse(model) == {"norm": "fused: norm + add + ReLU"}
    x = randn(2, 3, 4, 4)
    for residual in (randn(2, 3, 1, 1), randn(2, 3, 4, 4, dtype=torch.float64), randn(2, 3, 4, 4).bfloat16()):
        y = model(x, residual)
        assert y.dtype is torch.float32  # in place, as the network wrote it
        assert torch.equal(y, plain(x, residual))
    assert not done
    model(x, x)
    assert done


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, cn.IEBN2d])
def test_errors_are_those_of_the_layer_and_change_the_same(norm):
    model, layer = nn.Sequential(norm(3), nn.ReLU()), norm(3)
    cn.fuse(model)
    for bad in (randn(2, 4, 3, 3), randn(2, 3, 3), randn(1, 3, 1, 1), torch.ones(2, 3, 4, 4, dtype=torch.int64)):
        raised = []
        for net in (model, layer):
            try:
                net(bad)
            except (RuntimeError, TypeError, ValueError) as error:
                raised.append(str(error))
        assert len(raised) == 2
        assert raised[0] == raised[1]
    assert_same(model[0].state_dict(), layer.state_dict(), 0.0)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d, (4, 3, 9)), (nn.BatchNorm1d, (7, 3)), (nn.BatchNorm3d, (2, 3, 3, 4, 5))],
)
def test_other_dimensions(norm, shape, done):
    model, plain = stir(nn.Sequential(norm(3), nn.ReLU())), stir(nn.Sequential(norm(3), nn.ReLU()))
    cn.fuse(model)
    assert_same(computed(model, x64(*shape)), computed(plain, x64(*shape)))
    assert len(done) == 1


@each_kind
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes_and_layouts(kind, dtype, layout):
    """Fused is rounded once where torch rounds three times: compared with float64, it is not worse."""
    model, plain = (network(kind, fused=fused).to(dtype) for fused in (True, False))
    exact = network(kind, fused=False).to(dtype).double()
    x = randn(4, 3, 12, 12).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        y, expected, truth = model(x), plain(x), exact(x.double())
    assert y.dtype is dtype
    assert y.stride() == expected.stride()
    assert error(y.double(), truth) <= 1.5 * error(expected.double(), truth) + 1e-6


@each_kind
def test_autocast(kind):
    model, plain = network(kind).float(), network(kind, fused=False).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = model(randn(4, 3, 12, 12)), plain(randn(4, 3, 12, 12))
    assert y.dtype is expected.dtype
    assert error(y, expected) <= 0.05


@each_kind
def test_activation_checkpointing_and_functional_call(kind):
    model, plain = network(kind), network(kind, fused=False)
    grads = []
    for net in (model, plain):
        checkpoint(net, x64(), use_reentrant=False).square().sum().backward()
        grads.append({n: p.grad for n, p in net.named_parameters()})
    assert_same(*grads)
    doubled = {name: 1.2 * p.detach() for name, p in plain.named_parameters()}
    results = [torch.func.functional_call(net, doubled, (x64(),)) for net in (model, plain)]
    assert error(*results) <= 1e-10


@each_kind
def test_double_backward(kind):
    seconds = []
    for fused in (True, False):
        net, x = network(kind, fused=fused), x64().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert error(*seconds) <= 1e-7  # second derivatives through five norms


def test_double_backward_of_a_norm_that_runs_twice():
    """x is computed from the norm's own weight, and the residual is x."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            y = F.relu(self.bn(x) + x)
            return F.relu(self.bn(y) + y)

    found = []
    for fused in (False, True):
        net, x = stir(Twice()), x64().requires_grad_()
        if fused:
            assert fuse(net) == {"bn": "fused: norm + add + ReLU"}
        wanted = [x, *net.parameters()]
        first = torch.autograd.grad(net(x).pow(3).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append({str(i): g for i, g in enumerate((*first, *second))})
    assert_same(*found)


@each_kind
def test_torch_compile_gets_the_original(kind):
    model, plain = network(kind).float(), network(kind, fused=False).float()
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    results = []
    for net in (model, plain):
        torch._dynamo.reset()
        results.append(torch.compile(net, backend=backend, fullgraph=True)(randn(4, 3, 12, 12)))
    assert error(*results) <= COMPILED
    assert [str(t) for t in graphs[0]] == [str(t) for t in graphs[1]]


def test_export_and_tracing_get_the_original():
    model, plain = network().eval(), network(fused=False).eval()
    x = x64()
    exported = [torch.export.export(net, (x,)) for net in (model, plain)]
    assert str(exported[0].graph) == str(exported[1].graph)
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), plain(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are deprecated, and used
        assert torch.equal(torch.jit.trace(model, x)(x), plain(x))
        assert torch.equal(torch.jit.script(model)(x), plain(x))


def test_a_hook_on_all_modules_sees_every_call():
    model, seen = network(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(module))):
        model(x64())
    assert seen.count(nn.ReLU) == 5
    assert seen.count(nn.BatchNorm2d) == 6


def test_small_planes_of_plain_batchnorm_are_left_to_torch(done, monkeypatch):
    monkeypatch.setattr(calls, "SMALLEST", 64)
    model = cn.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), cn.BN2d(3), nn.ReLU()))
    model(randn(2, 3, 7, 9))
    assert done == [("BN2d", False)]
    model(randn(2, 3, 8, 8))
    assert done[1:] == [("BatchNorm2d", False), ("BN2d", False)]


def test_the_reference_backend_leaves_plain_batchnorm_to_torch(done):
    model, plain = network(), network(fused=False)
    with cn.use_backend("reference"):
        assert torch.equal(model(x64()), plain(x64()))
    assert not done


def test_a_stochastic_depth_that_comes_later():
    torch.manual_seed(0)
    model = stir(timm.models.resnet.BasicBlock(4, 4))
    plain = copy.deepcopy(model)
    assert fuse(model)["bn2"] == "fused: norm + add + ReLU"
    for net in (model, plain):
        net.drop_path = timm.layers.DropPath(0.5)
    x = x64(4, 4, 6, 6)
    assert_same(computed(model, x), computed(plain, x))
    assert fuse(model)["bn2"] == "left: DropPath follows, not a ReLU"
    assert_same(computed(model, x), computed(plain, x))


def test_a_forward_that_takes_a_tensor_or_a_list(done):
    plain = stir(torchvision.models.densenet._DenseLayer(4, 3, 2, 0.0))
    layer = copy.deepcopy(plain)
    fuse(layer)
    x = x64(3, 4, 5, 5)
    for given, at_once in ((x, 0), ([x[:, :1], x[:, 1:]], 2), ((x[:, :1], x[:, 1:]), 0)):
        done.clear()
        assert error(layer(given), plain(given)) <= 1e-12
        assert len(done) == at_once


def test_a_subclass_of_sequential(done):
    def block() -> nn.Module:
        torch.manual_seed(0)
        return stir(torchvision.ops.Conv2dNormActivation(3, 4))

    model = block()
    assert fuse(model) == {"1": "fused: norm + ReLU"}
    assert_same(computed(model, x64()), computed(block(), x64()))
    assert len(done) == 1
