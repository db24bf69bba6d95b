"""Gates that are held constant: exact where they are constant, priced where they are not, and nothing on an error."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import calibnorm as cn
from cases import SHAPES, randn
from conversion.helpers import convert, norms, relative, settle, small, snapshot
from conversion.test_revert import EXACT
from tolerances import rounding

IMAGES = (24, 3, 5, 5)


def images(seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images whose channels differ in mean from one to the next."""
    return randn(*IMAGES, seed=seed, dtype=dtype) + randn(24, 3, 1, 1, seed=seed + 1, dtype=dtype)


def looking(method: str = "iebn", by: float = 0.5, **options: Any) -> Any:
    """A small network whose gates look at the image."""
    net = convert(small().double(), method, **options)
    with torch.no_grad():
        for layer in norms(net).values():
            for gate in layer.gates().values():
                gate.add_(by * torch.linspace(-1.0, 1.0, gate.numel(), dtype=torch.float64).view_as(gate))
    return net


@torch.no_grad()
def train_constants(net: nn.Module) -> None:
    """Move gamma, beta and those gates that keep the gate constant."""
    for name, p in net.named_parameters():
        if name.rpartition(".")[2] in ("gate_bias", "scale_bias") or ".bn." in f".{name}":
            p.add_(torch.linspace(-0.3, 0.4, p.numel(), dtype=p.dtype).view_as(p))


CONSTANT = [*EXACT, ("iebn", {"gate_input": "standardized", "position": "both"}), ("ghost", {"size": 2})]


@pytest.mark.parametrize("into_convolutions", [False, True])
@pytest.mark.parametrize(("method", "options"), CONSTANT, ids=str)
def test_constant_gates_fold_exactly(method: str, options: dict[str, Any], into_convolutions: bool) -> None:
    net, x = convert(small().double(), method, **options), images()
    train_constants(net)
    expected = net(x)
    cn.fold(net, x, tolerance=0, into_convolutions=into_convolutions)
    assert relative(net(x), expected) <= 1e-10
    kinds = {type(layer) for layer in (net.bn1, net.layer1[1], net.downsample[1])}
    plain = {cn.BN2d} if "act" in options else {nn.BatchNorm2d}
    assert kinds == ({nn.ReLU} if "act" in options else {nn.Identity} if into_convolutions else plain) or (
        kinds == plain and not into_convolutions
    )


@pytest.mark.parametrize(
    ("method", "position"), [*itertools.product(["iebn"], ["gamma", "beta", "both"]), ("rbn", None)]
)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("how", ["plain", "frozen", "preserved", "shared", "no affine"])
def test_constant_gates_of_every_rank_and_history(dims: int, how: str, method: str, position: str | None) -> None:
    options: dict[str, Any] = {} if position is None else {"position": position}
    if how == "no affine" and position == "beta":
        pytest.skip("beta is what its gate multiplies")
    batchnorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    shape = (8, *SHAPES[dims][1:])
    net: Any = nn.Sequential(batchnorm(4, affine=how != "no affine"), nn.ReLU(), batchnorm(4)).double()
    if how == "shared":
        net[2] = net[0]
    convert(settle(net, shape), method, preserve=how == "preserved", **options)
    train_constants(net)
    if how == "frozen":
        cn.freeze_stats(net)
    x = randn(*shape, seed=5, dtype=torch.float64)
    expected = net(x)
    plain = cn.fold(net, x, tolerance=0)
    assert [type(module) for module in plain] == [batchnorm, nn.ReLU, batchnorm]
    assert relative(plain(x), expected) <= 1e-10
    assert how != "shared" or plain[0] is plain[2]


def test_an_exact_fold_has_an_inverse() -> None:
    net, x = convert(small().double(), "iebn", position="both"), images()
    train_constants(net)
    expected, made = net(x), cn.plan(net)
    cn.fold(net, x, tolerance=0)
    for layer in made["layers"].values():
        layer["preserve"] = True
    convert(net, made)
    assert {type(layer) for layer in norms(net).values()} == {cn.IEBN2d}
    assert relative(net(x), expected) <= 1e-10


def test_the_line_is_the_least_squares_one() -> None:
    """Against torch's own least squares over all pixels of a channel, for a method that is no gate."""
    layer: Any = convert(settle(nn.Sequential(nn.BatchNorm2d(4)).double(), (8, 4, 3, 3)), "in")
    x = randn(12, 4, 3, 3, seed=3, dtype=torch.float64) + 3 * randn(12, 4, 1, 1, seed=4, dtype=torch.float64)
    plan = cn.fold_plan(layer, x, tolerance=None)
    half = x[::2]
    y = layer(half)
    for channel in range(4):
        flat = half[:, channel].flatten()
        design = torch.stack([flat, torch.ones_like(flat)], 1)
        scale, shift = torch.linalg.lstsq(design, y[:, channel].flatten()[:, None]).solution.flatten().tolist()
        assert plan["layers"]["0"]["scale"][channel] == pytest.approx(scale, rel=1e-2)
        assert plan["layers"]["0"]["shift"][channel] == pytest.approx(shift, rel=1e-2, abs=1e-2)
    judged = x[1::2]
    before = layer(judged)
    after = cn.fold(layer, plan)(judged)
    spread = (before - before.mean((0, 2, 3), keepdim=True)).square().sum()
    change = ((after - before).square().sum() / spread).sqrt().item()
    assert plan["layers"]["0"]["layer_change"] == pytest.approx(change, rel=1e-9)
    assert plan["whole"]["logit_change"] == pytest.approx(plan["layers"]["0"]["logit_change"], rel=1e-9)


def test_prices_are_those_of_the_half_that_did_not_choose() -> None:
    net, x = looking(), images()
    plan = cn.fold_plan(net, x, tolerance=None)
    judged = x[1::2]
    before = net(judged)
    after = cn.fold(copy.deepcopy(net), plan)(judged)
    expected = ((after - before).square().sum() / (before - before.mean(0)).square().sum()).sqrt().item()
    assert plan["whole"]["images"] == 12
    assert plan["whole"]["logit_change"] == pytest.approx(expected, rel=1e-6)
    assert plan["whole"]["answers_changed"] == (after.argmax(1) != before.argmax(1)).double().mean().item()
    for name, layer in plan["layers"].items():
        assert layer["gate_varies"] == pytest.approx(
            next(g.spread for g in cn.inspect.gates(net, x[::2]) if g.layer == name), rel=1e-9
        )
    other = x.clone()
    other[1::2] += 1  # which the lines must not see
    again = cn.fold_plan(net, other, tolerance=None)
    assert [layer["scale"] for layer in again["layers"].values()] == [v["scale"] for v in plan["layers"].values()]


def test_the_budget_is_for_the_whole_and_spent_where_it_costs_least() -> None:
    net, x = looking(by=0.02), images()
    with torch.no_grad():
        net.layer1[1].gate_weight.add_(3.0)  # this one looks
    none, all_ = (cn.fold_plan(net, x, tolerance=t) for t in (0, None))
    assert [layer["fold"] for layer in none["layers"].values()] == [False] * 3
    assert [layer["fold"] for layer in all_["layers"].values()] == [True] * 3
    assert none["whole"] == {"images": 12, "logit_change": 0.0, "answers_changed": 0.0, "saved": 0.0}
    assert all_["whole"]["logit_change"] > 0.05
    texts: list[str] = []
    net = cn.fold(net, x, tolerance=0.05, report=texts.append)
    assert [type(norm) for norm in norms(net).values()] == [nn.BatchNorm2d, cn.IEBN2d, nn.BatchNorm2d]
    assert "3 calibrated layers: 2 folded, 1 left" in texts[0]
    assert re.search(r"layer1\.1 +IEBN2d +as it is .*what it costs is more than is left of the tolerance", texts[0])


@pytest.mark.parametrize("method", ["se", "gn", "bcn", "ilm", "frn", "rbn"])
def test_every_method_of_numbers_can_be_held_constant(method: str) -> None:
    options = {"se": {"reduction": 2}, "gn": {"groups": 2}, "bcn": {"groups": 2}, "ilm": {"groups": 2, "key_size": 2}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = looking(method, include="*", **options.get(method, {}))
    x = images()
    plan = cn.fold_plan(net, x, tolerance=None)
    assert 0 < plan["whole"]["logit_change"] < math.inf
    cn.fold(net, json.loads(json.dumps(plan)))
    assert {type(layer) for layer in norms(net).values()} == {nn.BatchNorm2d}


def test_what_cannot_be_folded_is_left_and_says_why() -> None:
    norm: Any = nn.Sequential(
        cn.RBN2d(3, center_stat="spatial_mean", init=(0.5, 0.5, 1.0)),
        cn.IEBN2d(3, track_running_stats=False, init=(0.5, -1.0)),
        cn.SE2d(3, alone=True, reduction=1),
        cn.IEBN2d(3, init=(0.5, -1.0)),
        cn.IEBN2d(3, init=(0.5, -1.0)),
    ).double()
    norm[4].bn.weight = norm[3].bn.weight
    norm.add_module("unused", nn.Identity())
    norm.unused.add_module("inner", cn.IEBN2d(3, init=(0.5, -1.0)).double())
    plan = cn.fold_plan(norm.eval(), images(), tolerance=None)
    whys = [layer["why"] for layer in plan["layers"].values()]
    wanted = [
        "a statistic over channels",
        "no running",
        "normalizes nothing",
        "shares its weight",
        "shares",
        "not called",
    ]
    assert all(part in why for part, why in zip(wanted, whys, strict=True)), whys
    before = snapshot(norm)
    cn.fold(norm, plan, into_convolutions=True)
    assert snapshot(norm) == before


class Residual(nn.Module):
    """A forward that calls a layer of this library with more than an input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = cn.IEBN2d(3), cn.IEBN2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(x), residual=x).mean((2, 3))


def test_a_layer_that_is_called_with_a_residual_stays() -> None:
    net = Residual().double().eval()
    why = {name: layer["why"] for name, layer in cn.fold_plan(net, images())["layers"].items()}
    assert why == {"norm": "is called with a residual or a relu, which BatchNorm does not take", "other": ""}
    cn.fold(net, images())
    assert [type(norm) for norm in norms(net).values()] == [cn.IEBN2d, nn.BatchNorm2d]


def test_a_loader_is_streamed_and_the_network_stays_as_it_was() -> None:
    net, x = looking().train(), images()
    net.layer1.eval()
    loader = DataLoader(TensorDataset(x, torch.arange(24)), batch_size=5, shuffle=True)
    before, state = snapshot(net), torch.get_rng_state()
    plan = cn.fold_plan(net, loader)
    assert snapshot(net) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert plan["whole"]["images"] == 12
    singles = cn.fold_plan(net, [x[i : i + 1] for i in range(24)], tolerance=None)
    at_once = cn.fold_plan(net, x, tolerance=None)
    for name, layer in singles["layers"].items():
        torch.testing.assert_close(layer["scale"], at_once["layers"][name]["scale"], rtol=1e-9, atol=1e-9)
    assert singles["whole"] == pytest.approx(at_once["whole"], rel=1e-9)


def test_an_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = looking(), images()
    before = snapshot(net)
    moving = [x[:12] + torch.rand(1), x[12:]]

    class Random(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([batch + len(calls) for calls in [seen.append(0) or seen] for batch in moving])

    seen: list[int] = []
    bad: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (iter([x]), {}, ValueError, "images is an iterator, which can be read once"),
        (Random(), {}, ValueError, "images are others when they are read again"),
        (x[:3], {}, ValueError, "images holds 3 images, and it takes 4 or more"),
        ([], {}, ValueError, "images holds no batch"),
        ("abc", {}, TypeError, "images must be batches of images"),
        (x * torch.nan, {}, ValueError, "output is not finite"),
        (x, {"tolerance": -1}, ValueError, "tolerance=-1 must be 0 or more"),
        (x, {"tolerance": "2 %"}, TypeError, "tolerance='2 %' must be a real number"),
        (x, {"into_convolutions": 1}, TypeError, "into_convolutions=1 must be True or False"),
        (x, {"report": 1}, TypeError, "report=1 must be a function of a text"),
        ({"layers": {}}, {}, ValueError, "the plan is not one of cn.fold"),
    ]
    for given, options, kind, message in bad:
        with pytest.raises(kind, match=message):
            cn.fold(net, given, **options)
    with pytest.raises(TypeError, match="the network returns dict, and"):
        cn.fold(nn.Sequential(net, Wrap()), x)
    with pytest.raises(TypeError, match="model must be"):
        cn.fold("net", x)  # type: ignore[arg-type]

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("calibnorm.folding.convolutions._fused", fails)
    with pytest.raises(MemoryError):
        cn.fold(net, x, tolerance=None, into_convolutions=True)
    assert snapshot(net) == before


class Wrap(nn.Module):
    def forward(self, x: Tensor) -> dict[str, int]:
        return {"loss": 1}


def test_a_plan_for_another_network_is_refused() -> None:
    x = images()
    plan = cn.fold_plan(looking(), x, tolerance=None)
    other = looking("rbn")
    before = snapshot(other)
    with pytest.raises(ValueError, match="bn1: the plan was made for a IEBN2d of 4 channels, and this is a RBN2d of 4"):
        cn.fold(other, plan)
    with pytest.raises(ValueError, match="does not name the calibrated layer"):
        cn.fold(other, {**plan, "layers": {}})
    with pytest.raises(ValueError, match=r"must hold layer, features"):
        cn.fold(other, {**plan, "layers": {"bn1": {}}})
    short = {**plan, "layers": {**plan["layers"], "bn1": {**plan["layers"]["bn1"], "scale": [1.0]}}}
    with pytest.raises(ValueError, match="must have 4 numbers in scale and shift"):
        cn.fold(looking(), short)
    exact = cn.fold_plan(convert(small().double(), "iebn"), x)
    with pytest.raises(ValueError, match="made when its gate was constant, and it is not now"):
        cn.fold(looking(), exact)
    tied = looking()
    tied.downsample[1].bn.weight = tied.layer1[1].bn.weight
    with pytest.raises(ValueError, match=r"cannot be folded as the plan says: its BatchNorm takes over .* shares"):
        cn.fold(tied, plan)
    assert snapshot(other) == before


def test_what_is_plain_already_stays() -> None:
    net, texts = small(), list[str]()
    before = snapshot(net)
    assert cn.fold(net, images(dtype=torch.float32), report=texts.append) is net
    assert texts == ["0 calibrated layers: 0 folded, 0 left"]
    assert snapshot(net) == before


def test_a_layer_by_itself_and_gates_without_affine() -> None:
    layer: Any = settle(cn.IEBN2d(4, affine=False, init=(0.5, -1.0)).double(), (8, 4, 3, 3))
    x = randn(8, 4, 3, 3, seed=2, dtype=torch.float64)
    expected = layer(x)
    plan = cn.fold_plan(layer, x, tolerance=None)
    plain = cn.fold(layer, plan)
    assert type(plain) is nn.BatchNorm2d
    assert relative(plain(x), expected) < 0.5
    shape = (1, 4, 1, 1)
    line = x * torch.tensor(plan["layers"][""]["scale"]).view(shape) + torch.tensor(plan["layers"][""]["shift"]).view(
        shape
    )
    assert relative(plain(x), line) <= rounding(torch.float32)


def test_a_channel_that_never_varies_keeps_the_mean_of_its_gates() -> None:
    layer: Any = settle(cn.IEBN2d(4, init=(0.5, -1.0)).double(), (8, 4, 3, 3))
    x = randn(8, 4, 3, 3, seed=2, dtype=torch.float64)
    x[:, 1] = 0.25
    gate = torch.sigmoid(layer.gate_weight[1] * 0.25 + layer.gate_bias[1])
    scale = gate * layer.weight[1] / (layer.bn.running_var[1] + layer.eps).sqrt()
    assert cn.fold_plan(layer, x, tolerance=None)["layers"][""]["scale"][1] == pytest.approx(scale.item(), rel=1e-9)


def test_a_trained_network_whose_gates_look_is_not_folded_blindly() -> None:
    """Half the images are brighter, and what they show is the same: the gate learns to take the brightness out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), cn.IEBN2d(4, gate_input="mean"), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        )
        labels = torch.arange(128) % 2
        scale = torch.where(torch.arange(128) // 2 % 2 == 0, 1.0, 8.0)[:, None, None, None]
        x = scale * (1 + labels[:, None, None, None] * torch.eye(6)[None, None] + 0.1 * torch.randn(128, 1, 6, 6))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    texts: list[str] = []
    right = (net.eval()(x).argmax(1) == labels).double().mean()
    cn.fold(net, x, report=texts.append)
    assert "1 calibrated layers: 0 folded, 1 left" in texts[0]
    assert type(net[1]) is cn.IEBN2d
    assert (net(x).argmax(1) == labels).double().mean() == right > 0.9
    cn.fold(net, x, tolerance=None, report=texts.append)
    changed = float(re.search(r"change by ([\d.e+-]+) %", texts[1])[1])  # type: ignore[index]
    assert changed > 2
