"""A method of one's own: the tutorial as it is printed, and what is refused."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import calibnorm as cn
from calibnorm.methods import BN, METHODS, Parameter, reparameterize
from calibnorm.nn import registered
from cases import image, randomize
from registries import taken_back
from tolerances import COMPILED, error

TUTORIAL = Path(__file__).parents[2] / "docs" / "register_a_method.md"


@pytest.fixture(autouse=True)
def _registered_for_one_test():
    with taken_back():
        yield


def half(x, batch, p, *, factor=0.5, names=("a",)):
    a, b = batch.standardize(x.m)
    return reparameterize(factor * a, factor * b, p.get("weight"), p.get("bias"))


def test_tutorial():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = doctest.testfile(str(TUTORIAL), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted > 15


def test_a_registered_layer_does_what_all_layers_do():
    assert cn.register_method("half_norm")(half) is half
    layer = cn.norm_layer("half_norm", factor=0.25)(4)
    assert type(layer) is registered.HalfNorm2d
    assert layer.options() == {"factor": 0.25}
    plain = randomize(nn.BatchNorm2d(4))
    layer.load_state_dict(plain.state_dict())
    beta = plain.bias.view(4, 1, 1)
    assert error(layer(image()), 0.25 * (plain(image()) - beta) + beta) <= COMPILED
    assert error(layer.bn.running_var, plain.running_var) <= COMPILED
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.eval()(image()), layer.eval()(image()))
    assert cn.methods()[-1] == "half_norm"


def test_plans_hold_its_options():
    cn.register_method("half_norm")(half)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    plan = json.loads(json.dumps(cn.plan(cn.convert(net, "half_norm", names=("b", "c")))))
    assert plan["layers"]["1"]["options"] == {"names": ["b", "c"]}
    assert cn.convert(net, plan)[1].method.names == ("b", "c")


def test_without_statistics_of_a_batch():
    @cn.register_method("scaled", lambda channels: {"by": Parameter((1,), fill=3.0)}, batch_statistics=False)
    def scaled(x, batch, p):
        assert batch.mean.numel() == 0
        return p["by"], p["by"] * x.m

    layer = cn.norm_layer("scaled")(4)
    assert error(layer(image()), 3 * image()) <= COMPILED
    assert int(layer.bn.num_batches_tracked) == 0
    assert layer.by.shape == (1,)


@pytest.mark.untraced
def test_compiles_whole():
    torch.compiler.reset()
    cn.register_method("half_norm")(half)
    layer = randomize(cn.norm_layer("half_norm")(4))
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    assert error(compiled(image()), layer(image())) <= COMPILED


def test_subclasses_of_method():
    @cn.register_method("twice")
    class Twice(BN):
        def coefficients(self, x, batch, p):
            a, b = super().coefficients(x, batch, p)
            return 2 * a, 2 * b

    assert Twice.name == "twice"
    assert error(cn.norm_layer("twice")(4)(image()), 2 * cn.BN2d(4)(image())) <= COMPILED


@pytest.mark.parametrize(
    ("arguments", "given", "exception", "message"),
    [
        ({"name": "bn"}, half, ValueError, "is a method of calibnorm itself"),
        ({"name": "Half"}, half, ValueError, "must be a lower-case identifier"),
        ({"name": 3}, half, TypeError, "must be a string"),
        ({"name": "h", "parameters": {"bias": 0.0}}, half, ValueError, "cannot be called 'bias'"),
        ({"name": "h", "parameters": {"forward": 0.0}}, half, ValueError, "cannot be called 'forward'"),
        ({"name": "h"}, lambda x, batch, p, *, noise=1: (x.m, x.m), ValueError, "cannot be called 'noise'"),
        ({"name": "h"}, lambda x, batch, p, *, k: (x.m, x.m), TypeError, "option 'k' of 'h' needs a default"),
        ({"name": "h"}, lambda x, p: (x.m, x.m), TypeError, r"must take \(x, batch, p\)"),
        ({"name": "h"}, lambda x, batch, p: x.m, TypeError, "must return two tensors, .* not Tensor$"),
        (
            {"name": "h"},
            lambda x, batch, p: (x.m, 1.0),
            TypeError,
            r"must return two tensors, .* not \(Tensor, float\)$",
        ),
        ({"name": half}, half, TypeError, r"must be a string, as in @cn.register_method\('my_norm'\)$"),
        ({"name": "h"}, 3, TypeError, "'h': the decorator takes a function or a subclass of Method, not 3"),
        ({"name": "h", "batch_statistics": 1}, half, TypeError, "batch_statistics=1 must be True or False"),
        ({"name": "h", "replace": 1}, half, TypeError, "replace=1 must be True or False"),
        (
            {"name": "h", "parameters": ["k"]},
            half,
            TypeError,
            r"'h': parameters=\['k'\] must map names to initial values",
        ),
        (
            {"name": "h", "parameters": half},
            half,
            TypeError,
            "the method's own function goes below @cn.register_method",
        ),
        ({"name": "h", "parameters": {"k": "a"}}, half, TypeError, r"'h': parameters\['k'\]='a' must be a real number"),
        ({"name": "h"}, lambda x, batch, p: (x.m, x.m[:, :3]), ValueError, r"shift of 'h' has shape \(2, 3\)"),
        ({"name": "h"}, int, TypeError, "must be a subclass"),
    ],
    ids=range(19),
)
def test_refusals(arguments, given, exception, message):
    before = list(METHODS)
    with pytest.raises(exception, match=message):
        cn.register_method(**arguments)(given)
    assert list(METHODS) == before


def test_errors_of_the_function_say_where_they_come_from():
    with pytest.raises(KeyError) as caught:
        cn.register_method("h")(lambda x, batch, p: (p["weight"], x.m))
    assert "affine=False: use p.get" in caught.value.__notes__[0]
    assert caught.value.__notes__[0].endswith("p held nothing.")


def test_names_are_taken_once():
    cn.register_method("half_norm")(half)
    with pytest.raises(ValueError, match="replace=True"):
        cn.register_method("half_norm")
    assert cn.register_method("half_norm", replace=True)(half) is half


def test_a_process_that_does_not_know_the_method_says_so(tmp_path):
    cn.register_method("half_norm")(half)
    path = tmp_path / "layer.pickle"
    path.write_bytes(pickle.dumps(cn.norm_layer("half_norm")(4)))
    load = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    done = subprocess.run([sys.executable, "-c", load, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import what calls cn.register_method first" in done.stderr
