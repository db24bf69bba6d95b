"""Conversions of timm's layers, conversions twice and of nothing; what is refused, and what is said."""

from __future__ import annotations

import copy
import inspect
import logging
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import calibnorm as cn
from calibnorm.conversion.checking import OF_CONVERT
from cases import randn
from conversion.helpers import convert, relative, small, snapshot

METHODS = ["bn", "iebn", "rbn"]
each_method = pytest.mark.parametrize("method", METHODS)


def test_act_and_drop_of_timm_stay():
    layer = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=partial(nn.Dropout, 0.5))
    act, drop, child, x = layer.act, layer.drop, layer, randn(6, 4, 3, 3)
    torch.manual_seed(0)
    expected = copy.deepcopy(layer)(x)
    new = cn.convert(layer, "iebn", preserve=True)
    assert new.act is act
    assert new.drop is drop
    assert new.bn is child
    assert type(child) is nn.BatchNorm2d
    torch.manual_seed(0)
    torch.testing.assert_close(new(x), expected)


def test_an_activation_twice_is_refused():
    with pytest.raises(ValueError, match=r"\(model\): act='relu' was given, but this BatchNormAct2d has an activation"):
        cn.convert(BatchNormAct2d(4), "rbn", act="relu")
    layer = cn.convert(BatchNormAct2d(4, apply_act=False), "rbn", act="relu")
    assert layer(randn(4, 4, 3, 3)).detach().min() == 0.0


def test_another_class_of_that_name_is_not_taken_for_timms():
    stranger = type(
        "BatchNormAct2d", (nn.BatchNorm2d,), {"forward": lambda self, x: super(nn.BatchNorm2d, self).forward(x)}
    )
    with pytest.raises(ValueError, match="own forward computes something that is not known"):
        cn.convert(nn.Sequential(stranger(4)), "iebn")


@pytest.mark.parametrize("options", [{}, {"operator": "fc"}], ids=str)
def test_the_random_numbers_stay_as_they_were(options):
    net = small()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    cn.plan(net, "iebn", **options)
    convert(net, "iebn", **options)
    assert torch.equal(torch.rand(4), expected)


def test_fc_gates_depend_on_the_seed_and_differ_by_layer():
    def weights(seed):
        net = small()
        torch.manual_seed(seed)
        convert(net, "iebn", operator="fc")
        return net.layer1[1].fc1_weight, net.downsample[1].fc1_weight

    first, second = weights(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, weights(1)[0])
    assert not torch.equal(first, weights(2)[0])


@each_method
def test_converting_twice_changes_nothing(method):
    net, texts = small(), []
    convert(net, method, preserve=True, report=texts.append)
    before = snapshot(net)
    cn.convert(net, method, report=texts.append)
    assert snapshot(net) == before
    assert texts[0].startswith("3 normalizations: 3 converted, 0 done already, 0 left")
    assert texts[1].startswith("3 normalizations: 0 converted, 3 done already, 0 left")
    assert f"layer1.1: already {type(net.bn1).__name__}" in texts[1]


def test_an_activation_of_a_layer_is_no_difference():
    net = convert(small(), "iebn", act="relu")
    layer = net.bn1
    cn.convert(net, "iebn")
    assert net.bn1 is layer


def test_a_model_without_batchnorm():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="Sequential has no BatchNorm; nothing was converted"):
        assert cn.convert(net, "iebn", skip="shortcut") is net
    with pytest.warns(UserWarning, match="Small has 3 BatchNorms, of which none was selected"):
        cn.convert(small(), "iebn", where=lambda name, module: False)


def test_what_the_report_says(caplog):
    texts = []
    with caplog.at_level(logging.INFO, "calibnorm"):
        convert(small(), "iebn", position="both", exclude="layer1.*", report=texts.append)
    assert texts[0].splitlines() == [
        "3 normalizations: 2 converted, 0 done already, 1 left",
        "bn1: BatchNorm2d -> IEBN2d(4, position='both')",
        "layer1.1: left, in exclude",
        "downsample.1: BatchNorm2d -> IEBN2d(6, position='both')",
    ]
    assert caplog.messages == texts
    cn.convert(nn.BatchNorm1d(2), "rbn", report=texts.append)
    assert texts[1].endswith("(model): BatchNorm1d -> RBN1d(2)")


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_batchnorm_with_its_own_forward_is_refused_by_name():
    net = small()
    net.layer1[1] = Doubling(6)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"layer1\.1 is a .*Doubling, whose own forward .* leave it out with exclude="):
        cn.convert(net, "iebn")
    assert snapshot(net) == before
    net.bn1.forward = lambda x: x  # patched on the instance, as accelerate does
    with pytest.raises(ValueError, match=r"bn1 is a .*BatchNorm2d, whose own forward"):
        cn.convert(net, "iebn", exclude="layer1.*")
    del net.bn1.forward
    convert(net, "iebn", exclude="layer1.*")
    assert type(net.layer1[1]) is Doubling
    assert isinstance(net.bn1, cn.IEBN2d)


def test_a_subclass_that_changes_no_forward_is_converted():
    kind = type("Named", (nn.BatchNorm2d,), {})
    layer = cn.convert(kind(4), "iebn")
    assert type(layer.bn) is kind


def test_lazy_batchnorm_is_refused_by_name_and_listed():
    net = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(
        ValueError, match=r"0 is a .*LazyBatchNorm2d, whose channels are not known yet; run one forward"
    ):
        cn.convert(net, "iebn")
    assert cn.plan(net)["left"] == {"0": "plain LazyBatchNorm2d"}
    assert cn.summary(net)[0].parameters == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("change", [partial(cn.convert, method="iebn"), cn.revert], ids=["convert", "revert"])
def test_wrapped_networks_are_refused(change, tmp_path):
    net = small()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [DistributedDataParallel(copy.deepcopy(net))]
    finally:
        dist.destroy_process_group()
    wrapped += [torch.compile(net), nn.Sequential(torch.compile(net))]
    for model in wrapped:
        with pytest.raises(ValueError, match=r"is wrapped in .*change the network first, then wrap it"):
            change(model)
    with pytest.raises(ValueError, match="ScriptModule"):
        change(nn.Sequential(torch.jit.trace(net, randn(2, 3, 5, 5))))
    assert type(net.bn1) is nn.BatchNorm2d


@pytest.mark.untraced
def test_a_network_with_compile_of_its_own_forward():
    """nn.Module.compile keeps the module: the next call sees the new layers."""
    net, x = small(), randn(4, 3, 5, 5, seed=5)
    expected = net(x)
    net.compile(backend="eager")
    net(x)
    convert(net, "iebn")
    twin = convert(small(), "iebn")
    torch.testing.assert_close(net(x), twin(x))
    assert relative(net(x), expected) > 0.01


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["ibn"], {}, ValueError, "method='ibn' is not known; choose one of .*'iebn'"),
        ([None], {}, ValueError, "method=None is not known"),
        ([cn.IEBN2d], {}, ValueError, "method=<class .* is not known"),
        (["iebn"], {"preserve": 1}, TypeError, "preserve=1 must be True or False"),
        (["iebn"], {"position": "x"}, ValueError, "position='x' is not known"),
        (
            ["iebn"],
            {"positoin": "x"},
            TypeError,
            "'positoin' is not an option of 'iebn', which takes operator, position",
        ),
        (["rbn"], {"preserv": True}, TypeError, "'preserv' is not an option of 'rbn', .*; did you mean preserve"),
        (["iebn"], {"eps": 1e-3}, ValueError, "eps=0.001 belongs to the BatchNorm"),
        (["iebn"], {"num_features": 3}, ValueError, "num_features=3 belongs to the BatchNorm"),
        (["iebn"], {"report": True}, TypeError, "report=True must be a function"),
        (["iebn"], {"noise": (0, 0)}, ValueError, r"noise=\(0, 0\) would erase"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    net = small()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        cn.convert(net, *arguments, **options)
    assert snapshot(net) == before


def test_arguments_that_a_mistyped_one_may_have_meant():
    kinds = inspect.signature(cn.convert).parameters.values()
    assert [kind.name for kind in kinds if kind.kind is kind.KEYWORD_ONLY] == list(OF_CONVERT)


@pytest.mark.parametrize(
    "function",
    [
        partial(cn.convert, method="bn"),
        cn.revert,
        cn.plan,
        cn.summary,
        cn.freeze_stats,
        partial(cn.param_groups, weight_decay=0),
    ],
)
def test_no_module(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
        function("resnet18")


def test_running_out_of_memory_changes_nothing(monkeypatch):
    net = small()
    before, calls = snapshot(net), []
    create = cn.IEBN2d._create_gates

    def third_fails(self, channels, device, dtype):
        calls.append(str(device))
        if calls.count("cpu") == 3:
            raise MemoryError
        create(self, channels, device, dtype)

    monkeypatch.setattr(cn.IEBN2d, "_create_gates", third_fails)
    with pytest.raises(MemoryError):
        convert(net, "iebn")
    assert snapshot(net) == before


def test_gamma_init_multiplies_and_a_zero_stays():
    net = timm.create_model("resnet18", num_classes=2)
    assert not net.layer1[0].bn2.weight.any(), "timm starts the last gamma of a branch at zero"
    cn.convert(net, "bn", gamma_init=0.25)
    assert not net.layer1[0].bn2.weight.any()
    assert torch.equal(net.bn1.weight, torch.full((64,), 0.25))
    cn.convert(net, "bn", gamma_init=0.25)
    assert torch.equal(net.bn1.weight, torch.full((64,), 0.25)), "multiplied twice"


def test_gamma_init_inside_a_device_context():
    net = small()
    expected = net.bn1.weight.detach() * 0.25
    with torch.device("meta"):
        convert(net, "bn", gamma_init=0.25)
    assert torch.equal(net.bn1.weight, expected)


@pytest.mark.parametrize("method", ["iebn", "rbn", "gn"])
def test_a_network_without_memory_converts(method):
    """FakeTensorMode: shapes and dtypes alone, and no value that could say whether the network has been trained."""
    with FakeTensorMode():
        try:
            nn.BatchNorm2d(4, device="meta")
        except AssertionError:
            pytest.skip("this torch makes no BatchNorm on the meta device there")
        net = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), method)
        assert net(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("method", ["iebn", "rbn"])
def test_a_network_that_was_converted_in_inference_mode_trains(method, preserve):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.inference_mode():
        convert(net, method, preserve=preserve)
    net(randn(2, 3, 8, 8).float()).square().sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in net.parameters())


class Doubled(cn.IEBN2d):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


def set_on_the_instance():
    layer = cn.IEBN2d(4)
    layer.forward = partial(torch.mul, other=2)
    return layer


@pytest.mark.parametrize("make", [lambda: Doubled(4), set_on_the_instance], ids=["subclass", "instance"])
def test_a_layer_with_a_forward_of_its_own_is_refused_by_name(make):
    """As a BatchNorm with one is: neither another method nor BatchNorm would compute what it adds."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), make())
    before = snapshot(net)
    for change in (partial(cn.convert, net, "gn"), partial(cn.revert, net), partial(cn.revert, net, lossy=True)):
        with pytest.raises(ValueError, match=r"^1 is a .*, whose own forward computes something that is not known"):
            change()
    assert snapshot(net) == before
    cn.convert(net, "iebn")  # it is that already
    assert snapshot(net) == before
