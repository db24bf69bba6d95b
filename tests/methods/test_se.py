from __future__ import annotations

import pytest
import timm
import torchvision
from torch.func import functional_call

from calibnorm.methods.se import SE
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.se import bn_se, se
from tolerances import ORACLE, error

AFTER, ALONE = SE(reduction=2), SE(alone=True, reduction=2)


def own_tensors():
    """SE's tensors alone, without gamma and beta."""
    return {name: t for name, t in tensors_of(ALONE).items() if name.startswith("fc")}


@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_after_bn_equals_the_equations(dims, running):
    fixed = running_statistics() if running else None
    ours = passes(AFTER, statistics=fixed)
    found = errors(ours, lambda x, p: bn_se(x, p, fixed, 1e-3), batch(dims, 0), tensors_of(AFTER))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_alone_equals_the_equations(dims):
    found = errors(passes(ALONE), se, batch(dims, 0), own_tensors())
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(
    "module",
    [
        timm.layers.SEModule(4, rd_channels=2),
        torchvision.ops.SqueezeExcitation(4, 2),
        timm.layers.SEModule(4, rd_channels=2, bias=False),
    ],
    ids=["timm", "torchvision", "timm without biases"],
)
def test_alone_equals_other_modules(module):
    """Theirs are convolutions of one pixel, by the same two names."""

    def theirs(x, p):
        own = {name.replace("_", "."): t for name, t in p.items()}
        own = {name: t[:, :, None, None] if t.ndim == 2 else t for name, t in own.items()}
        return functional_call(module.double(), own, (x,))

    biases = len(list(module.parameters())) == 4
    ours = SE(alone=True, reduction=2, biases=biases)
    own = {name: t for name, t in own_tensors().items() if name in ours.parameters(4)}
    found = errors(passes(ours), theirs, batch(2, 0), own)
    assert max(found.values()) <= ORACLE, found


def test_parameters():
    shapes = [spec.shape for spec in SE().parameters(64).values()]
    assert shapes == [(4, 64), (4,), (64, 4), (64,)]
    assert SE().parameters(8)["fc1_weight"].shape == (1, 8)
    assert list(SE(biases=False).parameters(64)) == ["fc1_weight", "fc2_weight"]
    with pytest.raises(ValueError, match="reduction=0"):
        SE(reduction=0)
    with pytest.raises(TypeError, match="biases=0"):
        SE(biases=0)


def test_average_gate():
    """Planes at the running mean all over are multiplied by the average gate, after BN and alone."""
    p, fixed = tensors_of(AFTER), running_statistics()
    x = fixed[0].view(1, 4, 1, 1).expand(2, 4, 3, 3)
    for method, tensors, z in ((ALONE, own_tensors(), fixed[0]), (AFTER, p, p["bias"])):
        gate, mean = method.mean_gate(tensors, fixed[0])
        assert mean is fixed[0]
        y = passes(method, statistics=fixed)(x, tensors)
        assert error(y, (gate * z).view(1, 4, 1, 1).expand_as(x)) <= ORACLE
