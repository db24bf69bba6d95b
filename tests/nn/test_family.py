"""The layers of the methods beside BN, IEBN and RBN, against their oracles: training, running statistics, eval."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.nn import layer_type
from cases import each_layout, gradients, image, parameters, randn, randomize
from contract import batch
from oracles import Running, Tensors, batch_moments, channels, gamma_beta, planes
from oracles.an import an, logits
from oracles.bcn import bcn
from oracles.bn import bn
from oracles.brn import brn
from oracles.composed import iebn_over, rbn_centering, rbn_over
from oracles.ghost import ghost
from oracles.group import gn
from oracles.ilm import ilm
from oracles.se import bn_se, se
from oracles.sn import sn
from tolerances import ORACLE, error, rounding

EPS = 1e-3
Oracle = Callable[[Tensor, Tensors, Any], Tensor]
"""From x, the tensors and the running statistics to use, None for those of the batch, to y."""


@dataclass
class Case:
    name: str
    options: dict[str, Any]
    oracle: Oracle
    feature: Callable[[Tensor, Tensors], Tensor] | None = field(default=lambda x, p: x)
    """What the statistics of a batch are those of; None where there are none."""

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.options.values())])


def frn(x: Tensor, p: Tensors) -> Tensor:
    gamma, beta = gamma_beta(p, x)
    return gamma * x / torch.sqrt((x**2).mean(planes(x), keepdim=True) + EPS) + beta


def centred(x: Tensor, p: Tensors) -> Tensor:
    return x + channels(p["center_weight"], x) * x.mean(planes(x), keepdim=True)


def sn_alone(p: Tensors, s: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: sn(z, {k: p[k] for k in ("mean_weight", "var_weight")}, s, EPS)


CASES = [
    Case("se", {"reduction": 2}, lambda x, p, s: bn_se(x, p, s, EPS)),
    Case("in", {}, lambda x, p, s: gn(x, p, 4, EPS), None),
    Case("gn", {"groups": 2}, lambda x, p, s: gn(x, p, 2, EPS), None),
    Case("ln", {}, lambda x, p, s: gn(x, p, 1, EPS), None),
    Case("sn", {}, lambda x, p, s: sn(x, p, s, EPS)),
    Case("bcn", {"groups": 2}, lambda x, p, s: bcn(x, p, s, 2, EPS)),
    Case("ilm", {"groups": 2, "key_size": 2}, lambda x, p, s: ilm(x, p, 2, 2, EPS), None),
    Case("frn", {}, lambda x, p, s: frn(x, p), None),
    Case("rbn", {"over": "sn"}, lambda x, p, s: rbn_over(x, p, sn_alone(p, s)), centred),
    Case(
        "rbn",
        {"over": {"method": "gn", "groups": 2}},
        lambda x, p, s: rbn_over(x, p, lambda z: gn(z, {}, 2, EPS)),
        None,
    ),
]
TRACKING = ["se", "sn", "bcn", "an", "ghost", "brn"]
ALONE = ["in", "gn", "ln", "ilm", "frn"]
OPTIONS = {c.name: c.options for c in CASES[:8]} | {"an": {"mixtures": 3}, "ghost": {"size": 2}, "brn": {}}
each_name = pytest.mark.parametrize("name", [*TRACKING, *ALONE])


def make(name: str, dims: int = 2, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
    options = OPTIONS[name] if options is None else options
    return layer_type(name, dims)(4, **{"eps": EPS, "dtype": torch.float64} | arguments, **options)


def compare(layer: Any, x: Tensor, expected: Callable[[Tensor], Tensor]) -> None:
    """Value and every gradient of one forward."""
    x = x.clone().requires_grad_()
    leaves = {"input": x, **parameters(layer)}
    dy = randn(*x.shape, seed=50, dtype=torch.float64)
    theirs = expected(x)
    actual = layer(x)
    ours, wanted = gradients(actual, leaves, dy), gradients(theirs, leaves, dy)
    found = {"value": error(actual, theirs)} | {f"d {n}": error(ours[n], wanted[n]) for n in leaves}
    assert max(found.values()) <= ORACLE, found


def check_running(layer: Any, running: Running) -> None:
    assert error(layer.bn.running_mean, running.mean) <= ORACLE
    assert error(layer.bn.running_var, running.var) <= ORACLE
    assert int(layer.bn.num_batches_tracked) == running.batches


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_follow_their_equations(case, dims):
    layer = randomize(make(case.name, dims, case.options, momentum=0.3))
    p = parameters(layer)
    running = Running(layer.bn.running_mean.clone(), layer.bn.running_var.clone(), 0.3)
    for seed, training in enumerate([True, True, False]):
        x, used = batch(dims, seed), None if training else (running.mean, running.var)
        compare(layer.train(training), x, lambda t, s=used: case.oracle(t, p, s))
        if training and case.feature is not None:
            running.update(batch_moments(case.feature(x, p)), x.numel() // 4)
        check_running(layer, running)


def test_iebn_over_rbn_keeps_the_statistics_of_the_centred_feature():
    layer = randomize(make("iebn", 2, {"over": {"method": "rbn", "scaling": False}}, momentum=0.3))
    p, x = parameters(layer), batch(2, 0)
    running = Running(layer.bn.running_mean.clone(), layer.bn.running_var.clone(), 0.3)
    compare(layer, x, lambda t: iebn_over(t, p, lambda z: rbn_centering(z, p), "gamma"))
    running.update(batch_moments(centred(x, p)), x.numel() // 4)
    check_running(layer, running)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("size", [1, 2, 3, 128])
def test_ghost_batches_move_the_statistics_one_after_the_other(size, momentum):
    layer = randomize(make("ghost", 2, {"size": size}, momentum=momentum))
    p = parameters(layer)
    mean, var = layer.bn.running_mean.clone(), layer.bn.running_var.clone()
    for step in range(2):
        x = batch(2, step)
        compare(layer.train(), x, lambda t: ghost(t, p, None, size, EPS))
        found = []
        for part in x.split(size):
            m, v = batch_moments(part)
            values = part.numel() // 4
            found.append((m, v * values / (values - 1)))
        if momentum is None:  # the average over batches of the average over their ghost batches
            for buffer, i in ((mean, 0), (var, 1)):
                buffer.lerp_(torch.stack([pair[i] for pair in found]).mean(0), 1 / (step + 1))
        else:
            for m, v in found:
                mean, var = 0.7 * mean + 0.3 * m, 0.7 * var + 0.3 * v
        assert error(layer.bn.running_mean, mean) <= ORACLE
        assert error(layer.bn.running_var, var) <= ORACLE
        assert int(layer.bn.num_batches_tracked) == step + 1
    compare(layer.eval(), batch(2, 9), lambda t: bn(t, p, (mean, var), eps=EPS)[0])


def test_batch_renorm_reads_the_statistics_before_the_batch():
    layer = randomize(make("brn", 2, {"start": 0, "r_batches": 2, "d_batches": 4}, momentum=0.3))
    p = parameters(layer)
    running = Running(layer.bn.running_mean.clone(), layer.bn.running_var.clone(), 0.3)
    for step, (r_max, d_max) in enumerate([(1.0, 0.0), (2.0, 1.25), (3.0, 2.5)]):
        x = batch(2, step)
        before = {"running_mean": running.mean, "running_var": running.var}
        compare(layer.train(), x, lambda t, b=before, r=r_max, d=d_max: brn(t, {**p, **b}, r, d, EPS, None))
        running.update(batch_moments(x), x.numel() // 4)
        check_running(layer, running)
    compare(layer.eval(), batch(2, 9), lambda t: bn(t, p, (running.mean, running.var), eps=EPS)[0])
    untracked = randomize(make("brn", track_running_stats=False))
    q = parameters(untracked)
    compare(untracked, x, lambda t: bn(t, q, eps=EPS)[0])


@pytest.mark.parametrize("momentum", [0.3, None])
def test_attention_keeps_statistics_of_its_own(momentum):
    layer = randomize(make("an", 2, momentum=momentum))
    p = parameters(layer)
    running = Running(layer.bn.running_mean.clone(), layer.bn.running_var.clone(), momentum)
    attention = Running(layer.attention_mean.clone(), layer.attention_var.clone(), momentum)
    for step in range(2):
        x = batch(2, step)
        compare(layer.train(), x, lambda t: an(t, p, None, EPS, "rsd"))
        running.update(batch_moments(x), x.numel() // 4)
        attention.update(batch_moments(logits(x, p, "rsd")), len(x))
        check_running(layer, running)
        assert error(layer.attention_mean, attention.mean) <= ORACLE
        assert error(layer.attention_var, attention.var) <= ORACLE
    fixed = (running.mean, running.var)
    compare(layer.eval(), batch(2, 9), lambda t: an(t, p, fixed, EPS, "rsd", (attention.mean, attention.var)))
    layer.reset_running_stats()
    assert torch.equal(layer.attention_var, torch.ones(3, dtype=torch.float64))
    assert [name for name, _ in make("an", track_running_stats=False).named_buffers()] == []


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_se_alone_owns_neither_gamma_nor_statistics(dims):
    layer = randomize(make("se", dims, {"alone": True, "reduction": 2}))
    assert sorted(layer.state_dict()) == ["fc1_bias", "fc1_weight", "fc2_bias", "fc2_weight"]
    compare(layer, batch(dims, 0), lambda t: se(t, parameters(layer)))
    compare(layer.eval(), batch(dims, 0), lambda t: se(t, parameters(layer)))
    with pytest.raises(ValueError, match="standardizes nothing"):
        make("se", dims, {"alone": True, "noise": (0.8, 0.5)})
    with pytest.raises(ValueError, match="can own no BatchNorm"):
        cn.SE2d.around(nn.BatchNorm2d(4), alone=True)


@pytest.mark.parametrize("affine", [True, False])
def test_equal_to_the_layers_of_torch(affine):
    """In float32, whole layers side by side with the same weights."""
    theirs = {
        "in": nn.InstanceNorm2d(4, affine=affine),
        "gn": nn.GroupNorm(2, 4, affine=affine),
        "ln": nn.GroupNorm(1, 4, affine=affine),
    }
    for name, other in theirs.items():
        layer = randomize(make(name, affine=affine, eps=1e-5, dtype=torch.float32))
        if affine:
            other.load_state_dict(layer.bn.state_dict(), strict=False)
        assert error(layer(image()), other(image())) <= rounding(torch.float32, 32), name


def test_layer_norm_equals_torch_over_channels_and_space():
    x = batch(2, 0)
    layer = make("ln", eps=1e-5)
    assert error(layer(x), nn.functional.layer_norm(x, x.shape[1:])) <= ORACLE


@each_name
@each_layout
def test_bfloat16_and_layout_stay(name, layout):
    layer = randomize(make(name, dtype=torch.float32))
    twin = copy.deepcopy(layer)
    x = image(torch.bfloat16, layout=layout)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout)
    assert error(y, twin(x.float())) <= rounding(torch.bfloat16, 2)


@each_name
def test_relu_and_residual(name):
    layer = randomize(make(name))
    fused = copy.deepcopy(layer)
    fused.act = "relu"
    x, residual = image(torch.float64), image(torch.float64, seed=4)
    assert error(fused(x, residual), torch.relu(layer(x) + residual)) <= ORACLE


@each_name
def test_state_dict_copies_and_pickles(name):
    layer, other = randomize(make(name)), make(name)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.eval()(image(torch.float64)), layer.eval()(image(torch.float64)))
    assert {"bn.weight", "bn.running_mean", "bn.num_batches_tracked"} <= layer.state_dict().keys()
    assert repr(type(layer)(4, EPS, **layer.options())) == repr(layer)


@each_name
def test_loads_a_plain_batch_norm(name):
    plain, layer = randomize(nn.BatchNorm2d(4)), randomize(make(name, dtype=torch.float32))
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bn.running_var, plain.running_var)
    if name == "an":
        assert torch.equal(layer.attention_mean, torch.zeros(3))
        assert torch.equal(layer.attention_var, torch.ones(3))


@pytest.mark.parametrize("name", ALONE)
def test_instances_stand_alone(name):
    """Neither the batch, nor the mode, nor frozen statistics matter, and no statistics move."""
    layer = randomize(make(name))
    buffers = {key: b.clone() for key, b in layer.named_buffers()}
    x = image(torch.float64)
    y = layer(x)
    assert error(layer(x[1:2]), y[1:2]) <= ORACLE
    assert torch.equal(layer.eval()(x), y)
    assert torch.equal(cn.freeze_stats(layer.train())(x), y)
    assert all(torch.equal(buffers[key], b) for key, b in layer.named_buffers())


@pytest.mark.untraced
@each_name
def test_gradients_of_gradients(name):
    layer = randomize(make(name, momentum=0.0)).train()
    x = batch(2, 3)[:2, :, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["gn", "an", "ghost", "brn"])
def test_compiles_whole(name):
    """One graph, the same output and statistics, of those that treat statistics in four ways."""
    torch.compiler.reset()
    layer = randomize(make(name))
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        x = batch(2, 3)
        assert error(compiled.train(training)(x), layer.train(training)(x)) <= ORACLE
    for key, buffer in layer.named_buffers():
        assert error(twin.get_buffer(key), buffer) <= ORACLE, key


@each_name
def test_empty_batch(name):
    layer = make(name)
    before = {key: b.clone() for key, b in layer.named_buffers()}
    assert layer(torch.zeros(0, 4, 3, 3, dtype=torch.float64)).shape == (0, 4, 3, 3)
    assert all(torch.equal(before[key], b) for key, b in layer.named_buffers())


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (cn.IN2d(4), (3, 4, 1, 1), "one value in a group of an instance"),
        (cn.GN2d(4), (3, 4, 1, 1), "one value in a group of an instance"),
        (cn.GhostBN2d(4, size=2), (5, 4, 1, 1), "a ghost batch with one value per channel"),
        (cn.AN2d(4), (1, 4, 3, 3), "a batch of one instance has no variance of attention"),
        (cn.BRN2d(4), (1, 4, 1, 1), "one value per channel"),
        (cn.TLU(4), (2, 3, 4), "3 channels"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_refuses_statistics_of_single_values(layer, shape, message):
    before = {key: b.clone() for key, b in layer.named_buffers()}
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(shape))
    assert all(torch.equal(before[key], b) for key, b in layer.named_buffers())


@pytest.mark.parametrize("name", ["ghost", "iebn", "rbn"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_batches_that_the_refusal_of_a_ghost_batch_of_one_names_are_taken(name, dims):
    refused = 0
    for size in range(1, 12):
        ghost_batches = {"size": size} if name == "ghost" else {"over": {"method": "ghost", "size": size}}
        for n in (1, 5, 21, 101, 111):
            layer, x = cn.norm_layer(name, dims=dims, **ghost_batches)(4), torch.randn(n, 4, *[1] * dims)
            if size > 1 and n % size != 1:
                layer(x)
                continue
            refused += 1
            with pytest.raises(ValueError, match="a ghost batch with one value per channel") as refusal:
                layer(x)
            if size == 1:
                assert "use a larger size=" in str(refusal.value)
                continue
            fewer, more = re.search(r"(\d+) or (\d+), say", str(refusal.value)).groups()
            for instances in (int(fewer), int(more)):
                layer(torch.randn(instances, 4, *[1] * dims))
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "options", "exception", "message"),
    [
        ("rbn", {"over": "ibn"}, ValueError, "over='ibn' is not known"),
        ("rbn", {"over": 3}, TypeError, "over=3 must be a method's name"),
        ("rbn", {"over": {"method": "gn", "groups": 0}}, ValueError, "groups=0"),
        ("rbn", {"over": {"groups": 2}}, ValueError, r"over={'groups': 2} must name a method"),
        ("rbn", {"over": {"method": "gn", "grps": 2}}, TypeError, "^over: 'grps' is not an option of 'gn', .* groups$"),
        (
            "rbn",
            {"over": {"method": "gn", "groups": 3}},
            ValueError,
            r"rbn\(over={'method': 'gn', 'groups': 3}\) needs",
        ),
        ("iebn", {"over": {"method": "iebn", "position": "both"}}, ValueError, "; use position='gamma'$"),
        ("rbn", {"over": "se"}, ValueError, "base=se gates beta, which a base does not have, and cannot be one$"),
        ("gn", {"over": "bn"}, ValueError, "make it the base"),
        ("gn", {"groups": 3}, ValueError, r"4 channels are no multiple of 3, which gn\(groups=3\) needs; choose"),
        (
            "gn",
            {"size": 2},
            TypeError,
            "^GN2d: 'size' is not an option of 'gn', which takes groups, .*; 'ghost' has it$",
        ),
        ("sn", {"groups": 2}, TypeError, "; 'gn', 'bcn' and 'ilm' have it$"),
    ],
)
def test_refuses_options(name, options, exception, message):
    with pytest.raises(exception, match=message):
        layer_type(name, 2)(4, **options)


def test_threshold():
    """Eq. 3 of the FRN paper, with gradients to both sides."""
    layer = randomize(cn.TLU(4)).double()
    x = batch(2, 0)
    leaves = {"input": x.clone().requires_grad_(), "tau": layer.tau}
    tau = layer.tau.view(4, 1, 1)
    dy = randn(*x.shape, seed=5, dtype=torch.float64)
    y = layer(leaves["input"])
    above = leaves["input"] > tau
    expected = torch.where(above, leaves["input"], tau)
    ours, theirs = gradients(y, leaves, dy), gradients(expected, leaves, dy)
    assert error(y, expected) <= ORACLE
    assert layer(x.fill_(torch.nan)).isnan().all()
    assert all(error(ours[k], theirs[k]) <= ORACLE for k in ours)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
