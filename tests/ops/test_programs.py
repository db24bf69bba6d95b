"""Coefficient steps as programs: every operation, every method, random ones, and what is left to torch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import calibnorm as cn
from calibnorm.methods import IEBN, METHODS, RBN, Method, reparameterize
from calibnorm.methods.an import AN
from calibnorm.methods.bcn import BCN
from calibnorm.methods.composed import Composed
from calibnorm.methods.frn import FRN
from calibnorm.methods.group import GN, LN
from calibnorm.methods.se import SE
from calibnorm.methods.sn import SN
from calibnorm.ops import Step
from calibnorm.ops.cpu import passes, traced
from calibnorm.ops.programs import program as layout
from calibnorm.ops.programs import program_of
from calibnorm.ops.programs.lowering import CODES
from calibnorm.ops.programs.recording import Refused
from calibnorm.ops.three_steps import StepByStep, Wanted
from cases import EVERY_METHOD, gradients, layer_of, randomize
from drawn import randn
from layer_checks import both_ways, call_of, moved
from pass_checks import laid
from registries import taken_back
from tolerances import error, reduction

pytestmark = pytest.mark.skipif(passes.unavailable() is not None, reason=str(passes.unavailable()))

STEP_BY_STEP = StepByStep(passes)
CLOSE = 1e-12
"""A few hundred float64 operations, with sums in another order."""
CHANNELS = 12


def groups(t: Tensor) -> Tensor:
    return t.view(-1, 3, 4)


def cut(t: Tensor) -> Tensor:
    return t.view(len(t), 2, 3, t.shape[1] // 6)


def halves(t: Tensor) -> Tensor:
    return t.view(*t.shape[:-1], 2, t.shape[-1] // 2)


# Functions of m and v, (N, C), and of f and g, (C,), and w, (C, C).
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "arithmetic": lambda m, v, f, g, w: (m + v * f - g / v) * 2.0 - (3.0 - m) / 7.0,
    "scaled addition": lambda m, v, f, g, w: torch.add(m, v, alpha=3.0) + torch.sub(f, g, alpha=0.5),
    "one number": lambda m, v, f, g, w: m * f[3] + g[:1],
    "powers": lambda m, v, f, g, w: v**2 + v**3 + v**0.5 + v**-0.5 + v**-1 + v**1.7 + v.square() + 2.0**m,
    "roots": lambda m, v, f, g, w: v.sqrt() + v.rsqrt() + v.reciprocal() + v.log() + m.neg() + (m - 1.0).abs(),
    "exponentials": lambda m, v, f, g, w: (20.0 * (m - 1)).exp() + torch.expm1(m) + torch.log1p(v) + torch.erf(m),
    "exponentials far out": lambda m, v, f, g, w: torch.exp(1500.0 * (m - 1.0)).clamp(max=1e300),
    "gates": lambda m, v, f, g, w: torch.sigmoid(9.0 * (m - 1)) * torch.tanh(3.0 * (m - 1)) + torch.relu(m - 1),
    "tanh near 0": lambda m, v, f, g, w: 1e8 * torch.tanh(1e-8 * m) + 1e3 * torch.tanh(0.016 * m),
    "trigonometry": lambda m, v, f, g, w: m.sin() * v.cos(),
    "signs": lambda m, v, f, g, w: (m - 1).sign() + torch.sgn(v - 1),
    "clamps": lambda m, v, f, g, w: m.clamp(0.8, 1.2) + v.clamp_min(1.0) + m.clamp_max(0.9) + v.clamp(max=1.1),
    "larger and smaller": lambda m, v, f, g, w: torch.maximum(m, v) + torch.minimum(m, f),
    "comparisons": lambda m, v, f, g, w: sum(c.double() for c in (m < v, m <= f, m > g, m >= 1.0, m == m, m != v)),
    "choices": lambda m, v, f, g, w: torch.where((m < v) & ~(m < 1.0) | (v > f), m, g).masked_fill(v > 1.2, 7.0),
    "softmax": lambda m, v, f, g, w: torch.softmax(m, 1) * torch.softmax(f, 0) + groups(m).softmax(-1).flatten(1),
    "sums over channels": lambda m, v, f, g, w: m - m.mean(1, keepdim=True) + v.sum(-1, keepdim=True) * f.mean(),
    "sums over instances": lambda m, v, f, g, w: m - m.mean(0) + v.sum(0) * f + (m * v).mean(),
    "twice over instances": lambda m, v, f, g, w: m - (m - m.mean(0)).square().mean(0) + m.sum(),
    "groups": lambda m, v, f, g, w: (groups(m) - groups(v).mean(-1, keepdim=True)).reshape(m.shape),
    "groups of one": lambda m, v, f, g, w: m.view(-1, 12, 1).mean(-1).expand_as(v) * v,
    "halves": lambda m, v, f, g, w: m.chunk(2, 1)[0].mean(1, keepdim=True) * v + torch.stack(m.unbind(1), 1),
    "parts": lambda m, v, f, g, w: torch.cat([m[:, 4:], f.expand_as(m)[:, :4]], 1) + m[:, 2:3],
    "every third": lambda m, v, f, g, w: m * v[:, 1::3].sum(1, keepdim=True),
    "matrices": lambda m, v, f, g, w: m @ w.t() + v @ w + torch.relu(m @ w[:5].t()) @ w[:5],
    "products over instances": lambda m, v, f, g, w: (m.t() @ v).mean(0) + m,
    "changes in place": lambda m, v, f, g, w: m.clone().mul_(v).add_(f).sub_(1.0),
    "made numbers": lambda m, v, f, g, w: torch.zeros_like(m) + torch.ones_like(f) * torch.full((), 2.0).double() + m,
    "number of instances": lambda m, v, f, g, w: m / m.shape[0] + v * m.shape[0],
}  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 700])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation(name: str, n: int) -> None:
    function = FUNCTIONS[name]
    shapes = ((CHANNELS,), (CHANNELS,), (CHANNELS, CHANNELS))

    def one_result(*tensors: Tensor) -> list[Tensor]:
        return [function(*tensors).expand(len(tensors[0]), CHANNELS)]

    program = program_of(one_result, 2, CHANNELS, shapes)
    given = [
        0.3 + torch.rand(s, generator=torch.Generator().manual_seed(i)).double()
        for i, s in enumerate([(n, CHANNELS)] * 2 + [*shapes])
    ]
    (found,), (expected,) = traced.run(program, given, 1), one_result(*given)
    assert error(found, expected) <= CLOSE * (n if "instances" in name else 1)


def test_every_instruction_is_met() -> None:
    """All that C knows, the functions above and the methods' gradients use."""
    met: set[str] = set()

    class Layout(layout._Layout):
        def _schedule(self) -> None:
            met.update(i.code for i in self.instructions)
            super()._schedule()

    original, layout._Layout = layout._Layout, Layout  # type: ignore[misc]
    try:
        for function in FUNCTIONS.values():
            program_of(
                lambda m, *rest, f=function: [f(m, *rest).expand_as(m)],
                2,
                CHANNELS,
                ((CHANNELS,), (CHANNELS,), (CHANNELS, CHANNELS)),
            )
        traced._made.cache_clear()
        for name, options in EVERY_METHOD:
            layer = layer_of(name, options)
            layer(randn(4, 4, 3, 3)).sum().backward()
    finally:
        layout._Layout = original  # type: ignore[misc]
    assert met == set(CODES)


OWN = torch.full((), 2.0, dtype=torch.float64)
FALLEN: dict[str, Callable[..., Tensor]] = {
    "a value is looked at": lambda m, v: m if float(m[0, 0]) > 0.0 else v,
    "one instance": lambda m, v: m * v[0],
    "instances in another order": lambda m, v: m.flip(0),
    "instances behind each other": lambda m, v: torch.cat([m, v], 0)[: len(m)],
    "a softmax over instances": lambda m, v: torch.softmax(m, 0),
    "a constant of several numbers": lambda m, v: m * torch.arange(m.shape[1]),
    "some instances": lambda m, v: m - v[: len(v) // 2].mean(0),
    "the parity of their number": lambda m, v: m * (len(m) % 4),
    "random numbers": lambda m, v: m * torch.rand_like(m),
    "another dtype": lambda m, v: m.float().double() * v,
    "an operation without a rule": lambda m, v: torch.cumsum(m, 1),
    "several results": lambda m, v: torch.sort(m, 1)[0],
    "a tensor of its own": lambda m, v: m * OWN,
    "four dimensions": lambda m, v: (cut(m) * cut(v).mean((1, 3), keepdim=True) * cut(v).mean(2, True)).flatten(1),
    "what it was given": lambda m, v: m.add_(v),
}  # fmt: skip


@pytest.mark.parametrize("name", FALLEN)
def test_what_is_not_understood_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        program_of(lambda m, v: [FALLEN[name](m, v)], 2, CHANNELS, ())


SHAPES = [(3, 6, 4, 6), (7, 68), (2, 4, 257, 256), (2, 4, 3, 2, 5)]
"""Small; one pixel a plane; planes that are cut; 3d. Nearly those of test_fused."""
METHODS_HERE: dict[str, Method] = {
    "gn": GN(groups=2),
    "ln": LN(),
    "se": SE(reduction=2),
    "sn": SN(),
    "bcn": BCN(groups=2),
    "an": AN(mixtures=3),
    "frn": FRN(),
    "iebn, fc": IEBN(operator="fc", reduction=2, position="both"),
    "rbn over gn": Composed(RBN(), GN(groups=2)),
}


ENDS = ("none", "residual", "relu", "relu and residual")
CASES = [
    *(
        (name, SHAPES[0], end, dtype)
        for name in METHODS_HERE
        for end in ENDS
        for dtype in (torch.float64, torch.float32)
    ),
    *((name, shape, "relu and residual", torch.float32) for name in METHODS_HERE for shape in SHAPES[1:]),
]


@pytest.mark.parametrize(("name", "shape", "end", "dtype"), CASES, ids=str)
def test_one_call_equals_the_layer_step_by_step(
    name: str, shape: tuple[int, ...], end: str, dtype: torch.dtype
) -> None:
    method = METHODS_HERE[name]
    # An has more statistics than channels have: layers give it those.
    for given in (False, True) if method.batch_statistics and name != "an" else (False,):
        check_one_call(method, shape, given, end, dtype)


def check_one_call(method: Method, shape: tuple[int, ...], given: bool, end: str, dtype: torch.dtype) -> None:
    call = call_of(method, shape[1], given, end, shape, dtype)
    x, dy = randn(*shape, seed=1, dtype=dtype, mean=1.0), randn(*shape, seed=2, dtype=dtype)
    assert traced._coefficients(x, call) is not None
    assert traced._vjp(x, call) is not None
    found = list(zip(*(both_ways(how, x, dy, call, True) for how in (traced, STEP_BY_STEP)), strict=True))
    assert len(found) == 4 + ("residual" in end) + len(call.tensors)
    assert all(a.dtype == b.dtype and error(a, b) <= max(reduction(dtype, 64), 1e-11) for a, b in found)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", METHODS_HERE)
def test_same_bits_with_one_and_more_threads(name: str, layout: str) -> None:
    for shape in ((40, 68, 20, 20), (300, 200, 1, 1)):
        call = moved(
            call_of(METHODS_HERE[name], shape[1], False, "relu and residual", shape, torch.float32),
            "cpu",
            torch.float32,
            layout,
        )
        x, dy = laid(randn(*shape, seed=1), layout), laid(randn(*shape, seed=2), layout)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(list(both_ways(traced, x, dy, call, True)))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_gradients_have_the_dtypes_of_their_tensors_and_only_wanted_ones_are_found() -> None:
    shape = (3, 4, 5, 5)
    call = call_of(SE(reduction=2), 4, False, "none", shape, torch.float32)
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float32, torch.float16, torch.float32)
    call = call._replace(tensors=tuple(t.to(dtype) for t, dtype in zip(call.tensors, dtypes, strict=True)))
    x = randn(*shape, seed=1).bfloat16()
    found = list(zip(*(both_ways(how, x, x, call, True) for how in (traced, STEP_BY_STEP)), strict=True))
    assert tuple(a.dtype for a, _ in found[-6:]) == dtypes
    assert all(error(a, b) <= reduction(b.dtype, 64) for a, b in found)
    done = traced.forward(x, call)
    asked = Wanted(False, False, (True, False, True, False, True, False))
    some = traced.backward(x, x, done.moments, call._replace(found=done.statistics), asked)
    assert some.x is None
    assert [g is not None for g in some.tensors] == list(asked.tensors)


UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.sigmoid, torch.tanh, torch.relu, torch.sin, torch.erf, lambda t: t.square(), lambda t: torch.exp(-t.abs()),
    lambda t: (1.0 + t * t).rsqrt(), lambda t: t.clamp(-0.7, 0.9), lambda t: torch.softmax(t, -1),
    lambda t: t - t.mean(-1, keepdim=True), lambda t: torch.log1p(t * t), lambda t: torch.where(t > 0.1, t, 0.2 * t),
    lambda t: halves(t).mean(-1, keepdim=True).expand_as(halves(t)).reshape(t.shape),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.mul, torch.sub, torch.maximum, torch.minimum, lambda a, b: a / (1.0 + b * b),
    lambda a, b: torch.where(a > b, a, 0.5 * b),
]  # fmt: skip


def random_method(seed: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """A coefficient function whose gate is drawn: ten operations on what it is given, and on one another."""
    draw = random.Random(seed)
    steps = [
        (draw.choice(UNARY), None) if draw.random() < 0.5 else (draw.choice(BINARY), draw.random()) for _ in range(10)
    ]
    places = [draw.random() for _ in steps]

    def coefficients(x: Any, batch: Any, p: Any, *, slope: float = 0.5) -> tuple[Tensor, Tensor]:
        a, b = batch.standardize(x.m) if seed % 2 else batch.standardize_by(x.m, x.m.mean(1, keepdim=True), x.v)
        known = [x.m, x.v, b, p["one"], slope * p["two"]]
        for (function, other), place in zip(steps, places, strict=True):
            of = [known[int(place * len(known))], *([] if other is None else [known[int(other * len(known))]])]
            known.append(function(*of))
        gate = torch.sigmoid(known[-1] + 0.3 * known[-2] - 0.2 * b)
        return reparameterize(a * gate, b * gate, p.get("weight"), p.get("bias"))

    return coefficients


@pytest.fixture
def registered() -> Iterator[Callable[..., Any]]:
    """Register a method for one test; return what makes its layers."""

    def register(function: Any, **options: Any) -> Any:
        cn.register_method("for_a_test", replace="for_a_test" in METHODS, **options)(function)
        return cn.norm_layer("for_a_test", dtype=torch.float64)

    with taken_back():
        yield register


def results(layer: Any, x: Tensor, backend: str) -> list[Tensor]:
    layer, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
    with cn.use_backend(backend):
        y = layer(leaf, relu=True)
        found = gradients(y, {"x": leaf, **dict(layer.named_parameters())}, randn(*y.shape, seed=9, dtype=y.dtype))
    return [y, *found.values(), *layer.buffers()]


@pytest.mark.parametrize("seed", range(10))
def test_random_registered_methods(seed: int, registered: Callable[..., Any]) -> None:
    of_batch = bool(seed % 2)
    make = registered(random_method(seed), parameters={"one": 0.3, "two": -0.4}, batch_statistics=of_batch)
    layer, x = randomize(make(8)), randn(6, 8, 3, 4, seed=seed, dtype=torch.float64)
    traced._made.cache_clear()
    for training in (True, False):
        layer.train(training)
        for ours, theirs in zip(results(layer, x, "cpu"), results(layer, x, "reference"), strict=True):
            assert error(ours, theirs) <= 1e-10
    made = [traced._made(*key) for key in keys_of(layer, of_batch)]
    assert None not in made
    leaf = x.clone().requires_grad_()
    layer.train().bn.track_running_stats = False
    with cn.use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *_: layer(leaf), [leaf, *layer.parameters()], fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *_: layer(leaf), [leaf, *layer.parameters()], fast_mode=True)


def keys_of(layer: Any, of_batch: bool) -> list[tuple[Any, ...]]:
    """What the programs of a layer are made from, in training: its coefficients' and its gradients'."""
    step = Step(layer.method, ("weight", "bias", *layer.gates()), layer.bn.eps, None)
    shapes = tuple((8,) for _ in step.names)
    return [(step, 8, shapes, (), False, 2), (step, 8, shapes, ((8,), (8,)) if of_batch else (), False, 4)]


@pytest.mark.parametrize("name", [name for name in FALLEN if name not in ("random numbers", "what it was given")])
def test_what_is_refused_runs_step_by_step(name: str, registered: Callable[..., Any]) -> None:
    def coefficients(x: Any, batch: Any, p: Any) -> tuple[Tensor, Tensor]:
        a, b = batch.standardize(x.m)
        return a + FALLEN[name](x.m, x.v).expand_as(b), b

    layer, x = registered(coefficients)(CHANNELS), randn(6, CHANNELS, 3, 4, seed=1, dtype=torch.float64)
    for ours, theirs in zip(results(layer, x, "cpu"), results(layer, x, "reference"), strict=True):
        assert error(ours, theirs) <= CLOSE


def test_a_program_that_finds_something_else_is_not_used(registered: Callable[..., Any]) -> None:
    """A method with a state, against the rules: what was recorded is not what it computes later."""
    calls = []

    def coefficients(x: Any, batch: Any, p: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return batch.standardize(x.m)[0] * len(calls), x.m

    layer = registered(coefficients)(4)
    layer(randn(3, 4, 2, 2, seed=1, dtype=torch.float64))
    before = len(calls)
    layer(randn(3, 4, 2, 2, seed=1, dtype=torch.float64))
    assert len(calls) == before + 1


def test_a_method_that_fails_says_so_itself(registered: Callable[..., Any]) -> None:
    def coefficients(x: Any, batch: Any, p: Any) -> tuple[Tensor, Tensor]:
        if len(x.m) > 2:
            raise ValueError("no more than two")
        a, b = batch.standardize(x.m)
        return a, b

    layer = registered(coefficients)(4)
    assert layer(randn(2, 4, 2, 2, dtype=torch.float64)).shape == (2, 4, 2, 2)
    with pytest.raises(ValueError, match="no more than two"):
        layer(randn(3, 4, 2, 2, dtype=torch.float64))
