"""What is refused, how, and what a refused or empty batch leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import each_layer, each_layout, each_mode, image, randn, randomize

ARGUMENTS = [
    ({"num_features": 0}, ValueError, "num_features=0"),
    ({"num_features": -3}, ValueError, "num_features=-3"),
    ({"num_features": 4.0}, TypeError, "num_features=4.0"),
    ({"num_features": True}, TypeError, "num_features=True"),
    ({"eps": 0}, ValueError, "eps=0"),
    ({"eps": -1e-5}, ValueError, "eps=-1e-05"),
    ({"eps": math.nan}, ValueError, "eps=nan"),
    ({"eps": math.inf}, ValueError, "eps=inf"),
    ({"eps": "1e-5"}, TypeError, "eps='1e-5'"),
    ({"momentum": -0.1}, ValueError, "momentum=-0.1"),
    ({"momentum": 1.5}, ValueError, "momentum=1.5"),
    ({"momentum": math.nan}, ValueError, "momentum=nan"),
    ({"momentum": "0.1"}, TypeError, "momentum='0.1'"),
    ({"affine": 1}, TypeError, "affine=1"),
    ({"track_running_stats": None}, TypeError, "track_running_stats=None"),
    ({"noise": (0.0, 0.0)}, ValueError, r"noise=\(0, 0\)"),
    ({"noise": (0.5, math.nan)}, ValueError, r"noise\[1\]=nan"),
    ({"noise": 0.5}, ValueError, "noise=0.5"),
    ({"noise": ("a", 0.5)}, TypeError, r"noise\[0\]='a'"),
    ({"noise_in": "test"}, ValueError, "noise_in='test'"),
    ({"act": "gelu"}, ValueError, "act='gelu'"),
]


@each_layer
@pytest.mark.parametrize(
    ("wrong", "exception", "named"), ARGUMENTS, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_wrong_arguments(layer_type, wrong, exception, named):
    with pytest.raises(exception, match=named):
        layer_type(**{"num_features": 4, **wrong})


OPTIONS = [
    (cn.IEBN2d, {"operator": "conv"}, ValueError, "operator='conv'"),
    (cn.IEBN2d, {"position": "alpha"}, ValueError, "position='alpha'"),
    (cn.IEBN2d, {"activation": "gelu"}, ValueError, "activation='gelu'"),
    (cn.IEBN2d, {"init": (0.0,)}, ValueError, r"init=\(0.0,\)"),
    (cn.IEBN2d, {"init": (0.0, math.inf)}, ValueError, r"init\[1\]=inf"),
    (cn.IEBN2d, {"init": (1.0, 0.0), "operator": "identity"}, ValueError, "init=.*operator='identity'"),
    (cn.IEBN2d, {"reduction": 0, "operator": "fc"}, ValueError, "reduction=0"),
    (cn.IEBN2d, {"reduction": 2.0, "operator": "fc"}, ValueError, "reduction=2.0"),
    (cn.IEBN2d, {"reduction": 4}, ValueError, "reduction=4.*operator='fc'"),
    (cn.IEBN2d, {"position": "beta", "affine": False}, ValueError, "position='beta'.*affine=False"),
    (cn.RBN2d, {"centering": 1}, TypeError, "centering=1"),
    (cn.RBN2d, {"scaling": "no"}, TypeError, "scaling='no'"),
    (cn.RBN2d, {"center_stat": "max"}, ValueError, "center_stat='max'"),
    (cn.RBN2d, {"scale_stat": "var"}, ValueError, "scale_stat='var'"),
    (cn.RBN2d, {"restrict": "relu"}, ValueError, "restrict='relu'"),
    (cn.RBN2d, {"init": (0.0, -1.0)}, ValueError, r"init=\(0.0, -1.0\)"),
    (cn.BN2d, {"gamma_init": math.nan}, ValueError, "gamma_init=nan"),
    (cn.BN2d, {"gamma_init": "1"}, TypeError, "gamma_init='1'"),
    (cn.BN2d, {"gamma_init": 0.5, "affine": False}, ValueError, "gamma_init=0.5.*affine=True"),
]


@pytest.mark.parametrize(("layer_type", "wrong", "exception", "named"), OPTIONS)
def test_wrong_options(layer_type, wrong, exception, named):
    with pytest.raises(exception, match=named):
        layer_type(4, **wrong)


FORWARDS = [
    (torch.zeros(2, 4), ValueError, r"2 dimensions, shape \(2, 4\).*expected 4"),
    (torch.zeros(2, 4, 3), ValueError, "3 dimensions"),
    (torch.zeros(2, 4, 3, 3, 3), ValueError, "5 dimensions"),
    (torch.zeros(2, 5, 3, 3), ValueError, r"5 channels, shape \(2, 5, 3, 3\).*expected 4"),
    (torch.zeros(2, 4, 3, 3, dtype=torch.int64), TypeError, "dtype torch.int64.*floating point"),
    (torch.zeros(2, 4, 3, 3, dtype=torch.bool), TypeError, "dtype torch.bool"),
    (torch.zeros(2, 4, 3, 3, dtype=torch.complex64), TypeError, "dtype torch.complex64"),
    ([[1.0]], TypeError, "Tensor, not list"),
    (None, TypeError, "Tensor, not NoneType"),
    (torch.zeros(1, 4, 1, 1), ValueError, r"shape \(1, 4, 1, 1\) has one value per channel.*eval"),
]


def buffers(layer):
    return {name: b.clone() for name, b in layer.named_buffers()}


def assert_same(before, layer):
    after = buffers(layer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_layer
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("x", "exception", "named"), FORWARDS, ids=[m for _, _, m in FORWARDS])
def test_a_refused_forward_changes_nothing(layer_type, x, exception, named, momentum):
    layer = randomize(layer_type(4, momentum=momentum))
    before = buffers(layer)
    with pytest.raises(exception, match=f"{layer_type.__name__}.*{named}"):
        layer(x)
    assert_same(before, layer)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize("method", ["bn", "iebn", "rbn", "ghost", "brn"])
def test_one_value_names_the_layer_in_its_network_and_the_remedy_helps(method, wrap):
    """A batch of one image meets a norm behind global pooling (DeepLab's ASPP) somewhere inside a network."""
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net = cn.convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), pooling), method)
    where = rf"{type(pooling[2]).__name__} \({'module.' if wrap is nn.DataParallel else ''}2\.2\)"
    with pytest.raises(ValueError, match=rf"^{where}: .*one value per channel.*cn\.freeze_stats\(model\)"):
        wrap(net.train())(torch.randn(1, 3, 5, 5))
    cn.freeze_stats(net)
    before = buffers(net)
    assert wrap(net.train())(torch.randn(1, 3, 5, 5)).isfinite().all()
    assert_same(before, net)


def test_one_value_outside_a_network():
    with pytest.raises(ValueError, match=r"^IEBN2d: input of shape \(1, 4, 1, 1\)"):
        cn.IEBN2d(4)(torch.zeros(1, 4, 1, 1))
    with pytest.raises(ValueError, match=r"^GN2d: input of shape .* one value in a group"):
        cn.GN2d(4, groups=4)(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("layer_type", [cn.BN1d, cn.IEBN1d, cn.RBN1d], ids=lambda t: t.__name__)
def test_one_value_a_channel_1d(layer_type):
    for shape in ((1, 4), (1, 4, 1)):
        with pytest.raises(ValueError, match="one value per channel"):
            layer_type(4)(torch.zeros(shape))
        assert layer_type(4).eval()(torch.zeros(shape)).shape == shape


@each_layer
def test_eps_changed_later(layer_type):
    """The child's eps is read at each forward; 0 is legal where the statistics are frozen."""
    layer = randomize(layer_type(4))
    layer.eps = 0.0
    before = buffers(layer)
    with pytest.raises(ValueError, match="eps=0"):
        layer(image())
    assert_same(before, layer)
    assert layer.eval()(image()).isfinite().all()


@each_layer
def test_a_wrong_residual_changes_nothing(layer_type):
    layer = randomize(layer_type(4))
    before = buffers(layer)
    for residual in (torch.zeros(4, 4, 3, 4), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"residual has shape .*expected \(4, 4, 3, 5\)"):
            layer(image(), residual)
    with pytest.raises(TypeError, match="residual must be a Tensor, not float"):
        layer(image(), 1.0)
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=rf"residual has dtype {dtype}, the input torch.float32; .*residual.to"):
            layer(image(), image(dtype))
    with pytest.raises(ValueError, match=r"residual is on meta, the input on cpu; pass residual.to"):
        layer(image(), image().to("meta"))
    assert_same(before, layer)


@each_layer
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_a_wrong_tensor_in_the_child(layer_type, name):
    layer = randomize(layer_type(4))
    setattr(layer.bn, name, type(getattr(layer.bn, name))(torch.ones(3)))
    before = buffers(layer)
    with pytest.raises(ValueError, match=rf"bn.{name} has shape \(3,\) instead of \(4,\)"):
        layer(image())
    assert_same(before, layer)


@pytest.mark.parametrize(
    ("layer_type", "name"), [(cn.RBN2d, "center_weight"), (cn.RBN2d, "scale_bias"), (cn.IEBN2d, "gate_weight")]
)
def test_a_wrong_gate(layer_type, name):
    """A single number would be broadcast, and by the C kernels read past its end."""
    layer = randomize(layer_type(4))
    setattr(layer, name, torch.nn.Parameter(torch.ones(1)))
    before = buffers(layer)
    with pytest.raises(ValueError, match=rf"{layer_type.__name__}: {name} has shape \(1,\) instead of \(4,\)"):
        layer(image())
    assert_same(before, layer)


def test_gates_follow_the_child():
    """A pruned network: fewer channels in the child and in the gates; with the gates left as they were, a refusal."""
    layer = cn.IEBN2d(6)
    layer.bn = torch.nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match=r"gate_weight has shape \(6,\) instead of \(4,\)"):
        layer(image())
    for name in layer.gates():
        setattr(layer, name, torch.nn.Parameter(torch.ones(4)))
    assert layer(image()).shape == image().shape


@each_layer
def test_numbers_of_numpy(layer_type):
    np = pytest.importorskip("numpy")
    layer = layer_type(np.int64(4), eps=np.float32(1e-3), momentum=np.float32(0.5))
    layer(image()).sum().backward()
    layer.eps, layer.momentum = np.float32(1e-3), np.float32(0.5)
    layer(image()).sum().backward()
    assert layer.eval()(image()).isfinite().all()
    for wrong in (np.float32(4), np.bool_(True)):
        with pytest.raises(TypeError, match="num_features="):
            layer_type(wrong)


@each_layer
def test_wrong_channels_without_any_tensor(layer_type):
    layer = layer_type(4, affine=False, track_running_stats=False)
    with pytest.raises(ValueError, match="5 channels"):
        layer(torch.zeros(2, 5, 3, 3))


@each_layer
@each_mode
@each_layout
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 0, 0), (0, 4, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_batch(layer_type, training, layout, shape, dtype):
    layer = randomize(layer_type(4)).train(training)
    before = buffers(layer)
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    y = layer(x)
    assert y.shape == shape
    assert y.dtype == dtype
    assert_same(before, layer)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert torch.equal(p.grad, torch.zeros_like(p)), name


@each_layer
def test_training_goes_on_after_an_empty_batch(layer_type):
    """Sums over no values must not have left a NaN anywhere."""
    layer, other = randomize(layer_type(4)), randomize(layer_type(4))
    layer(torch.zeros(0, 4, 3, 3)).sum().backward()
    x = randn(4, 4, 3, 3)
    assert torch.equal(layer(x), other(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), other.buffers(), strict=True))
