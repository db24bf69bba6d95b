"""A fused network goes on being what it was: copied, saved, loaded, trained, converted and reverted."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.models.resnet import BasicBlock

import calibnorm as cn
from conversion.helpers import randomize_gates
from fusion.blocks import each_kind, network, x64
from fusion.helpers import assert_same, computed, fuse, stir
from tolerances import error


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
