"""A layer's prepared call in evaluation gives what an ordinary one gives, and sees whatever has changed."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import calibnorm as cn
from calibnorm.nn import evaluation, ordinary
from cases import image, randn, randomize
from pass_checks import laid

LAYERS: dict[str, Callable[[], Any]] = {
    "bn": lambda: cn.BN2d(4),
    "ghost": lambda: cn.GhostBN2d(4, size=2),
    "brn": lambda: cn.BRN2d(4),
    "iebn": lambda: cn.IEBN2d(4),
    "iebn, both": lambda: cn.IEBN2d(4, position="both", act="relu"),
    "iebn, standardized": lambda: cn.IEBN2d(4, gate_input="standardized"),
    "rbn": lambda: cn.RBN2d(4),
    "rbn, deviations": lambda: cn.RBN2d(4, center_stat="std", scale_stat="std"),
    "gn": lambda: cn.GN2d(4, groups=2),
    "ln": lambda: cn.LN2d(4),
    "in": lambda: cn.IN2d(4),
    "frn": lambda: cn.FRN2d(4),
    "se": lambda: cn.SE2d(4, reduction=2),
    "sn": lambda: cn.SN2d(4),
    "iebn over sn": lambda: cn.IEBN2d(4, over="sn"),
    "rbn, noise in training": lambda: cn.RBN2d(4, noise=(0.8, 0.5), noise_in="train"),
}

pytestmark = pytest.mark.skipif(not cn.backends()["cpu"].runs, reason="the kernels do not run here")


def prepared(make: Callable[[], Any] = LAYERS["rbn"]) -> Any:
    """Return a layer in evaluation, after a call that prepared the next."""
    with torch.no_grad():
        layer = randomize(make()).eval()
        layer(image())
    return layer


def takes(layer: Any, x: Tensor) -> bool:
    with torch.no_grad():
        return evaluation.normalized(layer, x, None, False) is not None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_ordinary_call(name: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = prepared(LAYERS[name])
    one_pixel = layer.method.own_values(4, 1) is None  # where an instance's own statistics may not be of one value
    for shape in ((3, 4, 5, 6), (1, 4, 1, 1 if one_pixel else 2), (2, 4, 30, 40)):
        x, residual = (laid(randn(*shape, seed=seed).to(dtype), layout) for seed in (1, 2))
        for ending in ({}, {"relu": True}, {"residual": residual}, {"residual": residual, "relu": True}):
            with torch.no_grad():
                with monkeypatch.context() as patch:
                    patch.setattr(ordinary, "normalized", None)  # nobody calls it
                    y = layer(x, **ending)
                expected = copy.deepcopy(layer)(x, **ending)
            assert torch.equal(y, expected)
            assert y.stride() == expected.stride()


def _data(tensor: Callable[[Any], Tensor]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        tensor(layer).data = tensor(layer).data * 3.0 + 1.0

    return change


def _batchnorm(layer: Any) -> None:
    layer.bn = copy.deepcopy(layer.bn)
    layer.bn.weight.data.fill_(5.0)


def _same_place(layer: Any) -> None:
    """What was freed may be given out again, for numbers of another dtype."""
    kept = layer.bn.weight.data
    layer.bn.weight.data = kept.view(torch.float64).repeat(2)
    layer.bn.weight.data = kept.view(torch.int32).to(torch.float64)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda layer: layer.weight.data.mul_(3.0),
    "statistics in place": lambda layer: layer.bn.running_mean.add_(2.0),
    "a parameter": lambda layer: setattr(layer, "scale_weight", nn.Parameter(torch.full((4,), 2.0))),
    "data": _data(lambda layer: layer.scale_bias),
    "data of gamma": _data(lambda layer: layer.weight),
    "a buffer": lambda layer: setattr(layer.bn, "running_var", torch.full((4,), 9.0)),
    "state": lambda layer: layer.load_state_dict(randomize(cn.RBN2d(4), seed=7).state_dict()),
    "state, assigned": lambda layer: layer.load_state_dict(randomize(cn.RBN2d(4), seed=7).state_dict(), assign=True),
    "dtype": lambda layer: layer.double().weight.data.mul_(3.0),
    "dtype, same place": _same_place,
    "strides": lambda layer: setattr(layer.weight, "data", torch.arange(8.0)[::2]),
    "child": _batchnorm,
    "synchronized child": lambda layer: setattr(layer, "bn", synchronized(layer.bn)),
    "frozen child": lambda layer: setattr(layer, "bn", frozen(layer.bn)),
    "eps": lambda layer: setattr(layer.bn, "eps", 0.5),
    "method": lambda layer: setattr(layer, "method", cn.RBN2d(4, scale_stat="std").method),
    "class of the child": lambda layer: (
        setattr(layer.bn, "__class__", nn.SyncBatchNorm) or layer.bn.weight.data.mul_(2.0)
    ),
    "noise": lambda layer: setattr(layer, "noise", (0.5, 0.5)),
    "act": lambda layer: setattr(layer, "act", "relu"),
    "act, a module": lambda layer: setattr(layer, "act", nn.SiLU()),
    "training": lambda layer: layer.train(),
    "frozen training": lambda layer: cn.freeze_stats(layer.train()),
    "reset": lambda layer: layer.reset_parameters(),
    "hook": lambda layer: layer.bn.register_forward_hook(lambda *_: torch.zeros(2, 4, 6, 6)),
    "computed gamma": lambda layer: nn.utils.prune.l1_unstructured(layer.bn, "weight", 2),
    "computed gate": lambda layer: nn.utils.parametrize.register_parametrization(layer, "scale_bias", nn.Tanh()),
    "without statistics": lambda layer: (
        layer.bn.register_buffer("running_mean", None) or layer.bn.register_buffer("running_var", None)
    ),
}


def synchronized(bn: nn.BatchNorm2d) -> nn.Module:
    bn.weight.data.mul_(2.0)
    return nn.SyncBatchNorm.convert_sync_batchnorm(bn)


def frozen(bn: nn.BatchNorm2d) -> nn.Module:
    from torchvision.ops import FrozenBatchNorm2d

    found = FrozenBatchNorm2d(4)
    found.load_state_dict({k: v + 1.0 for k, v in bn.state_dict().items() if k != "num_batches_tracked"})
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = prepared(), image()
    with torch.no_grad():
        before = layer(x)
        change(layer)
        new = copy.deepcopy(layer)
        monkeypatch.setattr(evaluation, "normalized", lambda *_: None)
        expected = new(x)
        monkeypatch.undo()
        y = layer(x)
        assert torch.equal(y, expected)
        assert layer.training or not torch.equal(y, before)
        assert torch.equal(layer(x), new(x))  # prepared anew, where that can be


WRONG: dict[str, Callable[[Any], Any]] = {
    "shape of gamma": lambda layer: setattr(layer.weight, "data", layer.weight.data[:3]),
    "shape of a gate": lambda layer: setattr(layer.scale_weight, "data", layer.scale_weight.data[:1]),
    "shape of a statistic": lambda layer: setattr(layer.bn.running_var, "data", layer.bn.running_var.data[:2]),
    "dimensions of gamma": lambda layer: setattr(layer.weight, "data", layer.weight.data.view(1, 4)),
    "channels": lambda layer: setattr(layer.bn, "num_features", 5),
    "momentum": lambda layer: setattr(layer.bn, "momentum", 5.0),
    "class of the child": lambda layer: setattr(layer.bn, "__class__", type("Own", (nn.BatchNorm2d,), {"forward": id})),
    "forward of its own": lambda layer: setattr(layer.bn, "forward", layer.bn.forward),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_an_ordinary_call_refuses_is_refused(change: Callable[[Any], Any]) -> None:
    layer = prepared()
    change(layer)
    with torch.no_grad(), pytest.raises((ValueError, TypeError)):
        layer(image())


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 4, 3), torch.zeros(2, 5, 3, 3), torch.zeros(2, 4, 3, 3, dtype=torch.int32), "no tensor"],
    ids=str,
)
def test_wrong_inputs_are_refused(x: Any) -> None:
    layer = prepared()
    with torch.no_grad(), pytest.raises((ValueError, TypeError)):
        layer(x)


def test_a_residual_that_does_not_fit_is_refused() -> None:
    layer = prepared()
    with torch.no_grad(), pytest.raises(ValueError, match="residual"):
        layer(image(), image()[:1])


def test_is_left_to_others_where_they_must_see_it() -> None:
    layer, x = prepared(), image()
    assert takes(layer, x)
    assert evaluation.normalized(layer, x, None, False) is None  # gradients
    with cn.use_backend("reference"):
        assert not takes(layer, x)
    with FlopCounterMode(display=False):
        assert not takes(layer, x)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not takes(layer, x)
    finally:
        handle.remove()
    assert not takes(layer, x[:0])
    assert not takes(layer, torch._neg_view(x))
    assert not takes(layer, nn.Parameter(x).to("meta"))
    assert takes(layer, x)


def test_instances_of_one_value_are_refused() -> None:
    layer = prepared(LAYERS["in"])
    with torch.no_grad(), pytest.raises(ValueError, match="one value"):
        layer(image()[..., :1, :1])


def test_statistics_of_the_instance_are_prepared_in_training_too() -> None:
    layer = cn.GN2d(4, groups=2)
    with torch.no_grad():
        y = layer(image())
    assert layer.training
    assert takes(layer, image())
    with torch.no_grad():
        assert torch.equal(layer(image()), y)


def test_other_dtypes_and_what_has_no_job_prepare_nothing() -> None:
    for make in (lambda: cn.RBN2d(4, dtype=torch.float64), lambda: cn.AN2d(4)):
        assert "_prepared" not in prepared(make).__dict__
    with torch.no_grad(), cn.use_backend("reference"):
        layer = cn.RBN2d(4).eval()
        layer(image())
    assert "_prepared" not in layer.__dict__


def test_a_synchronized_child_is_a_plain_one_in_evaluation() -> None:
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(prepared())
    assert type(layer.bn) is nn.SyncBatchNorm
    with torch.no_grad():
        layer(image())
    assert takes(layer, image())


def test_nothing_is_kept_alive() -> None:
    layer = prepared()
    replaced = [weakref.ref(layer.bn), weakref.ref(layer.bn.weight), weakref.ref(layer.scale_bias)]
    layer.bn, layer.scale_bias = nn.BatchNorm2d(4).eval(), nn.Parameter(torch.ones(4))
    gc.collect()
    assert [kept() for kept in replaced] == [None] * 3


def test_a_copy_is_made_while_another_thread_runs_the_layer() -> None:
    layer, x, failed = prepared(), image(), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def serve() -> None:
        for _ in range(300):
            with torch.no_grad():
                layer(x)
                with cn.use_backend("reference"):
                    layer(x)

    thread = threading.Thread(target=serve)
    thread.start()
    while thread.is_alive():
        try:
            layer.__reduce_ex__(2)
        except RuntimeError as error:
            failed.append(error)
    sys.setswitchinterval(interval)
    assert not failed


def test_a_named_backend_refuses_the_same_once_prepared() -> None:
    layer = prepared()
    with torch.no_grad(), cn.use_backend("cpu"), pytest.raises(TypeError, match="int64"):
        layer(image().long())


@pytest.mark.parametrize("grad", [False, True])
def test_a_lazily_negated_residual_is_added_negated(grad: bool) -> None:
    x, residual = image(), torch.ones_like(image())
    with torch.set_grad_enabled(grad):
        for layer in (prepared(), prepared().train()):
            bare, y = copy.deepcopy(layer)(x), layer(x, torch._neg_view(residual))
            torch.testing.assert_close(y, bare - 1.0)


def test_lazily_negated_weights_are_read_negated() -> None:
    layer = prepared()
    plain = copy.deepcopy(layer)
    plain.bn.weight = nn.Parameter(-layer.bn.weight.detach())
    layer.bn.weight = nn.Parameter(torch._neg_view(layer.bn.weight.detach()))
    with torch.no_grad():
        assert torch.equal(layer(image()), plain(image()))
    assert torch.equal(layer.train()(image()), plain.train()(image()))


def test_an_input_is_refused_before_the_residual_of_an_activation() -> None:
    for layer in (prepared(), cn.RBN2d(4)):
        layer.act = nn.Tanh()
        with pytest.raises(TypeError, match="input must be a Tensor, not list"):
            layer([1.0], image())
        with pytest.raises(ValueError, match="input has 5 channels"):
            layer(torch.zeros(2, 5, 3, 3), image())
        layer.bn = nn.Identity()
        with pytest.raises(TypeError, match="Identity"):
            layer(image(), image())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 5, 1, 1), (2, 37, 30, 40), (1, 3, 260, 255)], ids=str)
def test_plain_batchnorm_is_torchs(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """Large means and few numbers included: there are no moments in it."""
    with torch.no_grad():
        layer = randomize(cn.BN2d(shape[1])).eval()
        layer.bn.running_mean.add_(100.0)
        x, residual = (laid((randn(*shape, seed=seed) + 100.0).to(dtype), layout) for seed in (1, 2))
        expected = copy.deepcopy(layer.bn).double()(x.double())
        near = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(layer(x).double(), expected, **near)
        y = layer(x, residual, relu=True)
        torch.testing.assert_close(y.double(), torch.relu(expected + residual.double()), **near)


@pytest.mark.parametrize("name", [*LAYERS, "rbn, spatial"])
def test_gradients_change_no_bit_of_a_value(name: str) -> None:
    """Reentrant checkpoints and comparisons of modes count on that."""
    layer = prepared(LAYERS.get(name, lambda: cn.RBN2d(4, center_stat="spatial_mean", scale_stat="spatial_std")))
    for layout in ("contiguous", "channels_last", "strided"):
        x, residual = (laid(randn(3, 4, 7, 5, seed=seed), layout) for seed in (1, 2))
        with torch.no_grad():
            y = layer(x, residual, relu=True)
        z = layer(x, residual, relu=True)
        assert z.requires_grad
        assert torch.equal(y, z)


def test_copies_and_pickles_hold_nothing_of_it() -> None:
    layer = prepared()
    assert "_prepared" in layer.__dict__
    for new in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert "_prepared" not in new.__dict__
        with torch.no_grad():
            assert torch.equal(new(image()), layer(image()))
    assert len(pickle.dumps(layer)) == len(pickle.dumps(copy.deepcopy(layer)))


def test_modules_behind_a_layer_are_called_once_prepared() -> None:
    """timm's BatchNormAct2d brings its dropout and its activation as modules."""
    for act, drop in (
        (nn.ReLU6(), nn.Identity()),
        (nn.ReLU(), nn.Identity()),
        (nn.Identity(), None),
        (None, nn.Dropout()),
    ):
        layer, x = prepared(), image()
        with torch.no_grad():
            y, residual = layer(x), randn(*x.shape, seed=3)
            layer.act, layer.drop = act, drop
            if isinstance(drop, nn.Dropout):
                drop.eval()
            for extra in (None, residual):
                expected = y if extra is None else y + extra
                expected = expected if act is None else act(expected)
                torch.testing.assert_close(layer(x, extra), expected)
                torch.testing.assert_close(layer(x, extra, relu=True), torch.relu(expected))
