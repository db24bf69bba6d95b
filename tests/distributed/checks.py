"""What both processes run; what one process makes of the whole batch, every rank computes for itself."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.methods.base import Batch, Instance
from calibnorm.nn import layer_type
from calibnorm.ops import synchronized
from cases import gradients, parameters, randn, randomize
from tolerances import COMPILED, ORACLE, error, reduction
from tracing import untraced

sync = nn.SyncBatchNorm.convert_sync_batchnorm
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(name: str, options: dict[str, Any], **arguments: Any) -> Any:
    """A layer of 4 channels whose every number is random; three batches old, so that BRN's limits are open."""
    layer = randomize(layer_type(name, 2)(4, **{"eps": 1e-3, "dtype": torch.float64, **arguments}, **options))
    if layer.track_running_stats:
        layer.bn.num_batches_tracked.fill_(3)
    return layer


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, mean: float = 0.0) -> Tensor:
    """Values whose instances and channels differ in mean."""
    each = randn(*shape[:2], *[1] * (len(shape) - 2), seed=seed + 1, dtype=torch.float64)
    return (mean + 2 * each + randn(*shape, seed=seed, dtype=torch.float64)).to(dtype)


def mine(rank: int, t: Tensor, cut: int) -> Tensor:
    """This rank's instances, of its own memory and in t's layout."""
    return (t[:cut] if rank == 0 else t[cut:]).detach().clone(memory_format=torch.preserve_format)


def summed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the ranks."""
    found = {name: t.detach().clone() for name, t in tensors.items()}
    for t in found.values():
        dist.all_reduce(t)
    return found


def assert_bit_equal(layer: nn.Module) -> None:
    """Every buffer has the same bits on both ranks."""
    for name, buffer in layer.named_buffers():
        of_ranks = [torch.empty_like(buffer) for _ in range(2)]
        dist.all_gather(of_ranks, buffer)
        assert torch.equal(*of_ranks), name


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert got.keys() == expected.keys()
    errors = {name: error(got[name], t) for name, t in expected.items()}
    assert max(errors.values(), default=0.0) <= bound, errors


def assert_buffers(layer: nn.Module, expected: nn.Module, bound: float) -> None:
    assert_near(dict(layer.named_buffers()), dict(expected.named_buffers()), bound)
    assert_bit_equal(layer)


def against_one_process(
    rank: int,
    name: str,
    options: dict[str, Any],
    arguments: dict[str, Any],
    cuts: Sequence[int] = (2,),
    shape: Sequence[int] = (4, 4, 3, 5),
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
    mean: float = 0.0,
    bounds: tuple[float, float] | None = None,
    relu: bool = False,
) -> None:
    """Values, all gradients and running statistics of two steps; ``bounds`` are for the pixels and for the rest."""
    for cut in cuts:
        own = {"dtype": torch.float64 if dtype is torch.float64 else torch.float32, **arguments}
        one = make(name, options, **own)
        two = sync(copy.deepcopy(one))
        assert one.bn.running_mean is None or isinstance(two.bn, nn.SyncBatchNorm)
        kind = torch.float32 if dtype is torch.float32 else torch.float64
        pixels, rest = bounds or ((ORACLE, ORACLE) if kind is torch.float64 else (reduction(kind, 60),) * 2)
        for step in range(2):
            x, dy, r = (
                batch(*shape, seed=s + 10 * step, dtype=dtype, mean=m).contiguous(memory_format=LAYOUTS[layout])
                for s, m in ((0, mean), (3, 0.0), (5, 0.0))
            )
            x, z = x.requires_grad_(), mine(rank, x, cut).requires_grad_()
            added = (r, mine(rank, r, cut)) if relu else (None, None)
            y, w = (layer(t, a, relu=relu) for layer, t, a in zip((one, two), (x, z), added, strict=True))
            assert w.dtype is dtype
            assert w.is_contiguous(memory_format=LAYOUTS[layout])
            wanted = gradients(y, {"input": x, **parameters(one)}, dy)
            found = gradients(w, {"input": z, **parameters(two)}, mine(rank, dy, cut))
            of_pixels = {
                "value": (w, mine(rank, y, cut)),
                "input": (found.pop("input"), mine(rank, wanted.pop("input"), cut)),
            }
            for what, (ours, theirs) in of_pixels.items():
                assert error(ours, theirs) <= pixels, (what, cut, step, error(ours, theirs))
            assert_near(summed(found), wanted, rest)
            # In float32 a buffer is rounded once; its float64 value shows what the merge of the processes loses.
            wide = own["dtype"] is torch.float64
            assert_buffers(two, one, ORACLE if wide else reduction(torch.float32, 60))


def by_hand(layer: Any, xs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the outputs, E and Var of a batch whose images differ in size, by the method's own functions."""
    p, c = parameters(layer), xs[0].shape[1]
    planes = [
        Instance(m := x.mean((2, 3)), v := x.var((2, 3), correction=0), *layer.method.instance_stats(m, v, p))
        for x in xs
    ]
    mean_NC, var_NC = (torch.cat([getattr(plane, name) for plane in planes]) for name in ("M", "V"))
    of_pixels = torch.cat([torch.full((len(x), c), float(x[0, 0].numel()), dtype=x.dtype) for x in xs])
    weight = torch.cat((of_pixels, torch.ones_like(mean_NC[:, c:])), dim=1)
    weight = weight / weight.sum(0)
    mean = (weight * mean_NC).sum(0)
    var = (weight * (var_NC + (mean_NC - mean) ** 2)).sum(0)
    ys = []
    for x, plane in zip(xs, planes, strict=True):
        scale, shift = layer.method.coefficients(plane, Batch(mean, var, layer.eps, None), p)
        scale, shift = (t.expand_as(plane.m)[:, :, None, None] for t in (scale, shift))
        ys.append(scale * (x - plane.m[:, :, None, None]) + shift)
    return ys, mean, var


def image_sizes_differ(rank: int, name: str, options: dict[str, Any]) -> None:
    layer = make(name, options, momentum=1.0)
    xs = [batch(2, 4, 3, 5).requires_grad_(), batch(3, 4, 2, 2, seed=4).requires_grad_()]
    dys = [batch(2, 4, 3, 5, seed=7), batch(3, 4, 2, 2, seed=8)]
    ys, mean, var = by_hand(layer, xs)
    leaves = {"0": xs[0], "1": xs[1], **parameters(layer)}
    wanted = gradients(torch.cat([y.flatten() for y in ys]), leaves, torch.cat([d.flatten() for d in dys]))
    two, z = sync(layer), xs[rank].detach().clone().requires_grad_()
    w = two(z)
    found = gradients(w, {"input": z, **parameters(two)}, dys[rank])
    assert error(w, ys[rank]) <= ORACLE
    assert error(found.pop("input"), wanted[str(rank)]) <= ORACLE
    assert_near(summed(found), {n: t for n, t in wanted.items() if n not in "01"}, ORACLE)
    values = 2 * 15 + 3 * 4
    assert error(two.bn.running_mean, mean[:4]) <= ORACLE
    assert error(two.bn.running_var, var[:4] * values / (values - 1)) <= ORACLE
    if len(mean) > 4:
        assert error(two.attention_mean, mean[4:]) <= ORACLE
        assert error(two.attention_var, var[4:] * 5 / 4) <= ORACLE
    assert_bit_equal(two)


class Counted:
    """The collectives within a ``with`` block."""

    def __enter__(self) -> list[str]:
        self.calls: list[str] = []
        self.kept = {name: getattr(synchronized, name) for name in ("_all_gather", "_all_reduce")}
        for name, function in self.kept.items():
            setattr(synchronized, name, lambda *a, n=name, f=function: self.calls.append(n) or f(*a))
        return self.calls

    def __exit__(self, *_: object) -> None:
        for name, function in self.kept.items():
            setattr(synchronized, name, function)


def one_collective_each_way(rank: int, name: str, options: dict[str, Any]) -> None:
    layer = sync(make(name, options))
    with Counted() as calls:
        y = layer(batch(2, 4, 3, 5).requires_grad_(), batch(2, 4, 3, 5), relu=True)
        assert calls == ["_all_gather"]
        y.sum().backward()
    assert calls == ["_all_gather", "_all_reduce"]


def silent(rank: int, how: str) -> None:
    """Rank 0 alone, which would wait forever for an exchange."""
    layer = make("gn" if how == "gn" else "rbn", {}, track_running_stats=how != "no statistics")
    if how == "frozen":
        cn.freeze_stats(layer)
    layer = sync(layer).train(how in ("frozen", "gn"))
    if rank == 0:
        x = batch(2, 4, 3, 5).requires_grad_()
        with Counted() as calls:
            layer(x).sum().backward()
        assert calls == []
        assert x.grad is not None


def all_empty(rank: int) -> None:
    """Nothing to normalize anywhere: no NaN, and the statistics stay."""
    layer = sync(make("rbn", {}))
    before = {name: b.clone() for name, b in layer.named_buffers()}
    x = batch(0, 4, 3, 5).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())
    assert torch.equal(layer.bn.running_mean, before["bn.running_mean"])
    assert torch.equal(layer.bn.running_var, before["bn.running_var"])


def refused(rank: int, name: str, options: dict[str, Any], shapes: Sequence[Sequence[int]]) -> str:
    """Return the message of a ValueError, before which nothing moved."""
    layer = sync(make(name, options))
    before = {name: b.clone() for name, b in layer.named_buffers()}
    try:
        layer(batch(*shapes[rank]))
    except ValueError as error:
        assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())
        return str(error)
    raise AssertionError("it was taken")


def own_group(rank: int) -> None:
    """A child's process group is followed: here one of this process alone."""
    groups = [dist.new_group([r]) for r in range(2)]
    layer = make("iebn", {})
    x = batch(3, 4, 3, 5, seed=rank)
    expected = copy.deepcopy(layer)(x)
    with Counted() as calls:
        assert error(sync(layer, groups[rank])(x), expected) <= ORACLE
    assert calls == []


def twice_differentiable(rank: int) -> None:
    """A gradient penalty: the gradient of a function of the input's gradient, as of one process."""

    def penalty(layer: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        (d,) = torch.autograd.grad((layer(x).sin() * w).sum(), x, create_graph=True)
        return (d.square() * w).sum()

    layer = make("rbn", {})
    two = sync(copy.deepcopy(layer))
    x, w = batch(4, 4, 3, 5).requires_grad_(), batch(4, 4, 3, 5, seed=9)
    leaves = {"input": x, **parameters(layer)}
    wanted = gradients(penalty(layer, x, w), leaves, torch.ones((), dtype=x.dtype))
    z = mine(rank, x, 3).requires_grad_()
    leaves = {"input": z, **parameters(two)}
    found = gradients(penalty(two, z, mine(rank, w, 3)), leaves, torch.ones((), dtype=x.dtype))
    assert error(found.pop("input"), mine(rank, wanted.pop("input"), 3)) <= ORACLE
    assert_near(summed(found), wanted, ORACLE)


def compiled(rank: int, name: str, options: dict[str, Any]) -> None:
    """One graph, the values and gradients of eager, the same statistics on both ranks."""
    torch._dynamo.reset()  # it compiles one function, here `forward`, eight times at most
    eager = sync(make(name, options, dtype=torch.float32))
    layer = copy.deepcopy(eager)
    graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for size in (2, 3):
        x = batch(size + rank, 4, 3, 5, seed=size + 5 * rank, dtype=torch.float32)
        both = []
        for module, of in ((graph, layer), (eager, eager)):
            z = x.clone().requires_grad_()
            if module is graph:
                torch._dynamo.mark_dynamic(z, 0)
            with untraced():
                y = module(z)
            leaves = {"input": z, **parameters(of)}
            both.append({"value": y, **gradients(y, leaves, batch(*x.shape, seed=20, dtype=torch.float32))})
        assert_near(*both, COMPILED)
    assert_buffers(layer, eager, COMPILED)


def waits_no_longer_than_the_timeout(rank: int) -> float:
    """Rank 1 never comes; return how long rank 0 waited for the error."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    layer = sync(make("rbn", {}), group)
    start = time.monotonic()
    if rank == 0:
        try:
            layer(batch(2, 4, 3, 5))
        except RuntimeError:
            return time.monotonic() - start
        raise AssertionError("nobody was there, and it did not raise")
    time.sleep(2)
    return 0.0


def other_rank_ends(rank: int) -> None:
    """Rank 1 is gone: rank 0 gets an error long before the group's timeout."""
    layer = sync(make("rbn", {}))
    layer(batch(2, 4, 3, 5))
    if rank == 1:
        os._exit(3)
    start = time.monotonic()
    try:
        layer(batch(2, 4, 3, 5))
    except RuntimeError:
        assert time.monotonic() - start < 20.0  # the timeout is 30 s; a busy machine may need some
        return
    raise AssertionError("nobody was there, and it did not raise")
