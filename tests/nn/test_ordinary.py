"""A layer's ordinary call does in a row what the long way does part by part, and leaves it everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.nn import ordinary
from cases import image, randn, randomize
from pass_checks import laid

LAYERS: dict[str, Callable[[], Any]] = {
    "bn": lambda: cn.BN2d(5),
    "iebn": lambda: cn.IEBN2d(5, position="both", noise=(0.8, 0.5)),
    "iebn, standardized": lambda: cn.IEBN2d(5, gate_input="standardized", act="relu"),
    "rbn": lambda: cn.RBN2d(5),
    "rbn, noise in training": lambda: cn.RBN2d(
        5, center_stat="std", scale_stat="std", noise=(2.0, 0.1), noise_in="train"
    ),
    "rbn, double": lambda: cn.RBN2d(5, dtype=torch.float64),
    "gn": lambda: cn.GN2d(5, groups=1, noise=(0.8, 0.5)),
    "se": lambda: cn.SE2d(5, reduction=2),
    "iebn over sn": lambda: cn.IEBN2d(5, over="sn"),
}


def outcome(layer: Any, x: Tensor, residual: Tensor | None, relu: bool) -> Iterator[Tensor]:
    """Everything that a call and its backward find and leave."""
    x = x.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    y = layer(x, residual, relu=relu)
    y.backward(randn(*y.shape, seed=9).to(y.dtype))
    yield from (y, x.grad)
    leaves = [*layer.parameters()] if residual is None else [residual, *layer.parameters()]
    yield from (leaf.grad for leaf in leaves if leaf.grad is not None)
    yield from layer.buffers()
    with torch.no_grad():
        yield layer(x, residual, relu=relu)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_long_way(name: str, mode: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        layer = randomize(LAYERS[name]())
    layer.train(mode != "eval")
    layer.frozen = mode == "frozen"
    for dtype, extra in ((torch.float32, True), (torch.bfloat16, False), (torch.float64, True)):
        x, residual = (laid(randn(3, 5, 4, 6, seed=seed).to(dtype), layout) for seed in (1, 2))
        found = []
        for long in (False, True):
            with monkeypatch.context() as patch:
                if long:
                    patch.setattr(ordinary, "normalized", lambda *_: None)
                elif mode == "train" or name != "bn":
                    assert ordinary.normalized(copy.deepcopy(layer), x, residual, extra) is not None
                found.append(list(outcome(copy.deepcopy(layer), x, residual if extra else None, extra)))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


def _hooked(layer: Any) -> None:
    layer.bn.register_forward_pre_hook(lambda *_: None)


def _own_forward(layer: Any) -> None:
    layer.bn.forward = layer.bn.forward


def _parametrized(layer: Any) -> None:
    nn.utils.parametrizations.weight_norm(layer, "gate_weight", dim=None)


def _pruned(layer: Any) -> None:
    nn.utils.prune.l1_unstructured(layer.bn, "weight", 1)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": _hooked,
    "forward of its own": _own_forward,
    "computed gate": _parametrized,
    "computed gamma": _pruned,
    "synchronized": lambda layer: setattr(layer, "bn", nn.SyncBatchNorm(4)),
    "without affine": lambda layer: setattr(layer, "bn", nn.BatchNorm2d(4, affine=False)),
    "without statistics": lambda layer: setattr(layer, "bn", nn.BatchNorm2d(4, track_running_stats=False)),
    "average": lambda layer: setattr(layer.bn, "momentum", None),
    "eps that is no float": lambda layer: setattr(layer.bn, "eps", 1),
    "gates of another shape": lambda layer: setattr(layer, "gate_bias", nn.Parameter(torch.zeros(1))),
    "statistics of another shape": lambda layer: setattr(layer.bn, "running_var", torch.ones(5)),
    "other channels": lambda layer: setattr(layer.bn, "num_features", 8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_leaves_to_the_long_way(change: Callable[[Any], Any]) -> None:
    layer = cn.IEBN2d(4)
    assert ordinary.normalized(layer, image(), None, False) is not None
    change(layer)
    before = [b.clone() for b in layer.buffers()]
    assert ordinary.normalized(layer, image(), None, False) is None
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@pytest.mark.parametrize(
    ("x", "residual"),
    [
        (torch.zeros(2, 4, 3), None),
        (torch.zeros(2, 5, 3, 3), None),
        (torch.zeros(0, 4, 3, 3), None),
        (torch.zeros(1, 4, 1, 1), None),
        (torch.zeros(2, 4, 3, 3, dtype=torch.int32), None),
        (torch.zeros(2, 4, 3, 3, device="meta"), None),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 1, 1)),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3, dtype=torch.float64)),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3, device="meta")),
        ("no tensor", None),
        (torch.zeros(2, 4, 3, 3), "no tensor"),
    ],
    ids=str,
)
def test_leaves_inputs_to_the_long_way(x: Any, residual: Any) -> None:
    assert ordinary.normalized(cn.RBN2d(4), x, residual, False) is None


def test_leaves_methods_of_other_statistics_and_plain_eval_to_the_long_way() -> None:
    x = image()
    for layer in (cn.AN2d(4), cn.GhostBN2d(4, size=2), cn.BRN2d(4), cn.RBN2d(4, scale_stat="spatial_std")):
        assert ordinary.normalized(layer, x, None, False) is None
    with cn.use_backend("reference"):
        assert ordinary.normalized(cn.BN2d(4).eval(), x, None, False) is None
    assert ordinary.normalized(cn.IN2d(4), x[..., :1], None, False) is None  # which refuses planes of one pixel


def test_one_value_is_taken_with_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of one, of one pixel, has no variance, but with the running statistics needs none."""
    layer, x = cn.RBN2d(4).eval(), randn(1, 4, 1, 1)
    y = ordinary.normalized(layer, x, None, False)
    assert y is not None
    monkeypatch.setattr(ordinary, "normalized", lambda *_: None)
    assert torch.equal(y, layer(x))
