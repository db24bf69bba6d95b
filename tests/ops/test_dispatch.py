"""Who runs the passes: the first backend that takes a plain tensor; none for anything traced or transformed."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from calibnorm.ops import dispatch, reference
from cases import each_layer, image, randomize


class Fake:
    """The reference, counting its calls; it would break any transformation, as a kernel would."""

    def __init__(self):
        self.calls = 0

    def __getattr__(self, name):
        def run(*args):
            self.calls += 1
            assert all(type(t) in (torch.Tensor, torch.nn.Parameter, bool, type(None)) for t in args)
            return getattr(reference, name)(*(t.detach() if isinstance(t, torch.Tensor) else t for t in args))

        return run


@pytest.fixture
def fake(monkeypatch):
    passes = Fake()
    backend = dispatch.Backend("fake", passes, lambda x: None if x.dtype == torch.float32 else "float32 alone")
    monkeypatch.setattr(dispatch, "BACKENDS", [backend, *dispatch.BACKENDS])
    return passes


class Subclass(torch.Tensor):
    pass


def layer_of(layer_type):
    return randomize(layer_type(4, track_running_stats=False))


@each_layer
def test_plain_tensors_go_to_the_first_backend_that_takes_them(fake, layer_type):
    layer = layer_of(layer_type)
    layer(image().requires_grad_()).sum().backward()
    assert fake.calls == 4
    layer.double()(image(torch.float64))
    assert fake.calls == 4, "float64 is not its dtype"


def test_parameters_as_input(fake):
    import calibnorm as cn

    layer_of(cn.IEBN2d)(torch.nn.Parameter(image()))
    assert fake.calls == 2


def by_jvp(layer, x):
    return jvp(layer, (x,), (torch.ones_like(x),))


def by_dual(layer, x):
    with forward_ad.dual_level():
        return layer(forward_ad.make_dual(x, torch.ones_like(x)))


TRANSFORMS = {
    "compile": lambda layer, x: torch.compile(layer, backend="eager", fullgraph=True)(x),
    "export": lambda layer, x: torch.export.export(layer, (x,)),
    "vmap": lambda layer, x: vmap(layer)(x[None]),
    "grad": lambda layer, x: grad(lambda t: layer(t).sum())(x),
    "jvp": by_jvp,
    "dual": by_dual,
    "jit.trace": lambda layer, x: torch.jit.trace(layer, x, check_trace=False),
    "subclass": lambda layer, x: layer(x.as_subclass(Subclass)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.untraced
@each_layer
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_no_backend_under_transformations(fake, layer_type, transform):
    layer = layer_of(layer_type).requires_grad_(False)
    transform(layer, image())
    assert fake.calls == 0
    torch._dynamo.reset()


def test_the_reference_takes_everything_and_stays_last():
    assert dispatch.BACKENDS[-1].passes is reference
    for dtype in (torch.float64, torch.bfloat16):
        assert dispatch.BACKENDS[-1].refuses(image(dtype)) is None
