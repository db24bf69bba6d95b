"""What ``cn.fuse`` does not understand it leaves as it is, and says why."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from cases import randn
from fusion.helpers import assert_same, computed, fuse, stir


class Block(nn.Module):
    """Convolution and norm, and whatever a subclass does with them."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = norm(3)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class TwoUses(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y) + y


class TwoUsesAtOnce(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y + y)


class TwoUsesOfTheSum(Block):
    def forward(self, x):
        y = self.bn(self.conv(x)) + x
        return self.relu(y) * y


class ThenReLU6(Block):
    def forward(self, x):
        return F.relu6(self.bn(self.conv(x)))


class ThenSiLU(Block):
    def __init__(self):
        super().__init__()
        self.relu = nn.SiLU()


class OwnReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


class ThenASubclassOfReLU(Block):
    def __init__(self):
        super().__init__()
        self.relu = OwnReLU()


class ThenDropout(Block):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.relu(self.drop(self.bn(self.conv(x))))


class ThenAttention(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y * torch.sigmoid(y.mean((2, 3), keepdim=True)) + x)


class AddedByScale(Block):
    def forward(self, x):
        return self.relu(torch.add(self.bn(self.conv(x)), x, alpha=2))


class AddedIntoAnother(Block):
    def forward(self, x):
        total = self.conv(x)
        total += self.bn(self.conv(x))
        return self.relu(total)


class ChangedBetween(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        y *= 2
        return self.relu(z + y)


class ChangedAfterwards(Block):
    def forward(self, x):
        shortcut = x * 2
        y = self.relu(self.bn(self.conv(x)) + shortcut)
        shortcut.mul_(0.5)
        return y


class Ends(Block):
    def forward(self, x):
        return self.bn(self.conv(x))


class Branches(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y) if x.sum() > 0 else y


class Mode(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y) if self.training else y.clamp(min=0)


class ModeOfAChild(Block):
    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        return y if self.bn.training else y + 1


class GradMode(Block):
    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        return y if torch.is_grad_enabled() else y + 1


class Optional(Block):
    def forward(self, x, mask=None):
        y = self.relu(self.bn(self.conv(x)))
        return y if mask is None else y * mask


class Counts(Block):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return self.relu(self.bn(self.conv(x)))


class Remembers(Block):
    def __init__(self):
        super().__init__()
        self.outputs = []

    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        self.outputs.append(y)
        return y


class Draws(Block):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) if random.random() < 2 else x


class DrawsOfTorch(Block):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) if torch.rand(1).item() < 2 else x


class DrawsOfNumpy(Block):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) if np.random.random() < 2 else x


class WithoutGrad(Block):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x)
        return self.relu(self.bn(x))


class Autocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.relu(self.bn(self.conv(x)))


class Checkpoints(Block):
    def forward(self, x):
        return checkpoint(lambda t: self.relu(self.bn(self.conv(t))), x, use_reentrant=False)


class Ordered(Block):
    def forward(self, x):
        return OrderedDict(a=self.relu(self.bn(self.conv(x))))


class AsksLate(Block):
    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        return y if isinstance(y, torch.Tensor) else y[0]


class OwnPickle(Block):
    def __reduce__(self):
        return OwnPickle, ()


class OwnState(Block):
    def __getstate__(self):
        return self.__dict__


class OwnCopy(Block):
    def __deepcopy__(self, memo):
        return self


class Registry(Block):
    kinds: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls) -> None:
        cls.kinds.append(cls)


def hooked() -> nn.Module:
    block = Block()
    block.bn.register_forward_hook(lambda module, args, y: y + 1)
    return block


def hooked_relu() -> nn.Module:
    block = Block()
    block.relu.register_forward_hook(lambda module, args, y: y + 1)
    return block


def hooked_backward() -> nn.Module:
    block = Block()
    block.bn.register_full_backward_hook(lambda module, given, wanted: None)
    return block


def frozen() -> nn.Module:
    return Block(FrozenBatchNorm2d)


def cumulative() -> nn.Module:
    return Block(lambda c: nn.BatchNorm2d(c, momentum=None))


def on_the_instance() -> nn.Module:
    block = Block()
    block.forward = lambda x: block.bn(block.conv(x))
    return block


def with_an_act() -> nn.Module:
    block = Block(cn.RBN2d)
    block.bn.act = nn.SiLU()
    return block


LEFT = {
    TwoUses: "its output is used 2 times",
    TwoUsesAtOnce: "its output is used",
    TwoUsesOfTheSum: "the sum is used several times",
    ThenReLU6: "relu6 follows, not a ReLU",
    ThenSiLU: "SiLU follows, not a ReLU",
    ThenASubclassOfReLU: "OwnReLU follows",
    ThenDropout: "Dropout follows",
    ThenAttention: "its output is used 2 times",
    AddedByScale: "add follows",
    AddedIntoAnother: "is added in place to a tensor that others may hold",
    ChangedBetween: "what it normalizes may have changed",
    ChangedAfterwards: "what it is added to is changed in place afterwards",
    Ends: "the end of the forward follows",
    Branches: "could not be followed (TraceError",
    Mode: "depends on the mode",
    ModeOfAChild: "depends on the mode",
    GradMode: "depends on the mode",
    Optional: "takes optional arguments",
    Counts: "sets attributes",
    Remembers: "sets attributes",
    Draws: "draws random numbers",
    DrawsOfTorch: "draws random numbers",
    DrawsOfNumpy: "draws random numbers",
    WithoutGrad: "switches grad mode",
    Autocast: "switches grad mode, autocast",
    Checkpoints: "checkpointing",
    Ordered: "returns a OrderedDict",
    AsksLate: "asks for the type of what it has computed",
    OwnPickle: "a pickle of its own",
    OwnState: "a pickle of its own",
    OwnCopy: "a copy of its own",
    Registry: "watches over its subclasses",
    hooked: "has hooks",
    hooked_relu: "ReLU follows, not a ReLU",
    hooked_backward: "has hooks",
    frozen: "statistics are constants",
    cumulative: "momentum=None",
    on_the_instance: "was replaced on the instance",
    with_an_act: "has an activation or dropout of its own",
}


@pytest.mark.parametrize("make", LEFT, ids=lambda make: make.__name__)
def test_left_alone_with_the_reason(make):
    model = stir(make())
    kinds = {module: type(module) for module in model.modules()}
    held = {k: v.copy() if isinstance(v, dict | list) else v for k, v in vars(model).items()}
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[2]
    rows = fuse(model)
    assert LEFT[make] in rows["bn"]
    assert rows["bn"].startswith("left: ")
    assert {module: type(module) for module in model.modules()} == kinds
    assert vars(model) == held
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
    assert states[2] == np.random.get_state()[2]


def test_the_block_itself_is_fused():
    """Every block above is this one with one thing changed."""
    model, x = stir(Block()), randn(3, 3, 5, 5, dtype=torch.float64)
    before = computed(model, x)
    assert fuse(model) == {"bn": "fused: norm + ReLU"}
    assert_same(computed(model, x), before)


@pytest.mark.untraced
def test_a_part_that_torch_fx_or_compile_has_taken_is_left():
    inner = fx.symbolic_trace(nn.Sequential(Block()))
    compiled = Block()
    compiled.compile()
    model = nn.ModuleDict({"fx": inner, "compiled": compiled, "block": Block()})
    rows = fuse(model)
    assert [(name, row[:5]) for name, row in rows.items()] == [
        ("fx.0.bn", "left:"),
        ("compiled.bn", "left:"),
        ("block.bn", "fused"),
    ]
    assert "is a torch.fx graph already" in rows["fx.0.bn"]
    assert "is compiled" in rows["compiled.bn"]


def test_sync_and_split_batchnorm_are_left():
    from timm.layers import convert_splitbn_model

    sync = nn.SyncBatchNorm.convert_sync_batchnorm(Block())
    assert fuse(sync) == {"bn": "left: is a SyncBatchNorm, which is not understood"}
    split = convert_splitbn_model(Block())
    assert fuse(split)["bn"] == "left: is a SplitBatchNorm2d, which is not understood"


def test_wrapped_networks_are_refused():
    for wrap in (torch.compile, lambda m: nn.Sequential(torch.jit.ScriptModule())):
        with pytest.raises(ValueError, match=r"wrapped|ScriptModule"):
            cn.fuse(wrap(Block()))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        cn.fuse("resnet18")
    with pytest.raises(TypeError, match="report="):
        cn.fuse(Block(), report="yes")


def test_an_error_changes_nothing(monkeypatch):
    from calibnorm.fusion import rewiring

    model = nn.Sequential(Block(), Block())
    cn.fuse(model[1])
    kinds = {module: type(module) for module in model.modules()}
    made = []

    def fail(*args):
        if made:
            raise MemoryError("no more")
        made.append(1)
        return original(*args)

    original = rewiring.traced
    monkeypatch.setattr(rewiring, "traced", fail)
    with pytest.raises(MemoryError, match="no more"):
        cn.fuse(model)
    assert {module: type(module) for module in model.modules()} == kinds
