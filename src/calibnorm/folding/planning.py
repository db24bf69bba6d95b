"""Which layers are folded: those whose gates can be held constant for the least price, within a budget for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import nn

from calibnorm import _checks
from calibnorm.conversion import reverting, sources
from calibnorm.folding import plans
from calibnorm.folding.lines import Distance, Seen
from calibnorm.folding.plans import FoldPlan, LayerFold, Whole
from calibnorm.folding.prices import Fold, Price, Stream, prices
from calibnorm.inspect.evaluating import Called, Images, evaluating, watching
from calibnorm.networks import finding
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm

CHOOSES, JUDGES = 0, 1
LEFT = "what it costs is more than is left of the tolerance"


def fold_plan(model: nn.Module, images: Images, *, tolerance: float | None = 0.02) -> FoldPlan:
    """Return what :func:`fold` would do to a network, and what it costs; nothing changes.

    Args:
        model: The network.
        images: As for :func:`fold`.
        tolerance: As for :func:`fold`.

    Returns:
        A plain dict, which JSON can hold: ``version``; ``tolerance``; ``layers`` by name (``fold``, whether it is
        folded, and ``why`` not; ``gate_varies``, ``layer_change``, ``logit_change`` and ``answers_changed``, what
        holding it constant alone costs; ``scale`` and ``shift``, the BatchNorm that it becomes); and ``whole``, what
        all that is folded costs. ``fold(model, plan)`` carries it out.

    Raises:
        TypeError: As for :func:`fold`.
        ValueError: As for :func:`fold`.

    >>> import torch, calibnorm as cn
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), cn.IEBN2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    >>> plan = cn.fold_plan(net, torch.randn(16, 3, 8, 8))
    >>> plan["layers"]["1"]["fold"], plan["layers"]["1"]["gate_varies"], plan["whole"]["images"]
    (True, 0.0, 8)
    """
    finding.check_unwrapped(model)
    if tolerance is not None and _checks.real("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance={tolerance!r} must be 0 or more, or None for no limit")
    with torch.random.fork_rng(devices=[]), evaluating(model):
        return _Planning(model, images).plan(tolerance)


def why_not(entry: Found, shared: set[int], exact: bool) -> str:
    """Return why a calibrated layer cannot become plain BatchNorm, or "".

    Args:
        entry: The layer.
        shared: The ids of the parameters that several modules hold.
        exact: Whether it has a constant gate.
    """
    layer = entry.module
    assert isinstance(layer, CalibratedNorm)
    if not layer.method.normalizes:
        return "normalizes nothing, so that no BatchNorm can take its place"
    if why := finding.refusal(layer):
        return why
    if exact:
        return reverting.unwritable(layer, shared) or ""
    if layer.method.spatial:
        return "uses a statistic over channels, which BatchNorm does not have"
    if getattr(layer.bn, "running_mean", None) is None:
        return "keeps no running statistics to fold into"
    return reverting.unwritable(layer, shared, ("weight", "bias")) or ""


class _Layer:
    """A calibrated layer while a fold is planned."""

    def __init__(self, entry: Found, shared: set[int]) -> None:
        assert isinstance(entry.module, CalibratedNorm)
        self.entry, self.module = entry, entry.module
        self.exact = reverting.constant_gate(entry.module) is not None
        self.why = why_not(entry, shared, self.exact)
        self.seen = Seen(entry.module, entry.title)
        self.change: float | None = 0.0 if self.exact else None
        self.price: Price | None = Price(0.0, 0.0) if self.exact else None

    @property
    def fold(self) -> Fold:
        """What is to become of it."""
        return Fold(self.entry, None if self.exact else self.seen.line)

    def called(self, _: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Note a call that a plain BatchNorm could not answer."""
        if len(args) + len(kwargs) > 1:
            self.why = self.why or "is called with a residual or a relu, which BatchNorm does not take"

    def row(self) -> LayerFold:
        """Return what the plan says of it."""
        line = None if self.exact or self.price is None else [numbers.tolist() for numbers in self.seen.line]
        scale, shift = line or (None, None)
        return LayerFold(
            layer=type(self.module).__name__,
            features=finding.num_features(self.module),
            fold=not self.why,
            why=self.why,
            scale=scale,
            shift=shift,
            gate_varies=self.seen.spread,
            layer_change=self.change,
            logit_change=None if self.price is None else self.price.logits,
            answers_changed=None if self.price is None else self.price.answers,
        )


class _Planning:
    """One network on one stream of images."""

    def __init__(self, model: nn.Module, images: Images) -> None:
        shared = sources.tied(model)
        self.model, self.stream = model, Stream(model, images)
        found = (entry for entry in finding.find_layers(model) if isinstance(entry.module, CalibratedNorm))
        self.layers = [_Layer(entry, shared) for entry in found]
        known = [each for each in self.layers if finding.refusal(each.module) is None]
        with ExitStack() as hooks:
            for each in known:
                hooks.enter_context(each.module.register_forward_pre_hook(each.called, with_kwargs=True))
            self._look(CHOOSES, {each.module: each.seen.see for each in known})
        for each in self.layers:
            if not (each.exact or each.why or each.seen.images):
                each.why = "was not called on the images"
        self.exact = [each for each in self.layers if each.exact and not each.why]
        self.others = [each for each in self.layers if not (each.exact or each.why)]

    def plan(self, tolerance: float | None) -> FoldPlan:
        """Choose on one half of the images, and measure on the other."""
        others = self._choose(tolerance)
        distances = [Distance(each.module, each.entry.title, each.seen.line) for each in self.others]
        self._look(JUDGES, {distance.layer: distance.see for distance in distances})
        *alone, whole = self._prices(JUDGES, [*([each] for each in self.others), [*self.exact, *others]])
        for each, distance, price in zip(self.others, distances, alone, strict=True):
            each.change, each.price = distance.value, price
            each.why = "" if each in others else LEFT
        read = [each.seen.values for each in self.layers]
        return FoldPlan(
            version=plans.VERSION,
            tolerance=tolerance,
            layers={each.entry.name: each.row() for each in self.layers},
            whole=Whole(
                images=self.stream.count(JUDGES),
                logit_change=whole.logits,
                answers_changed=whole.answers,
                saved=sum(n for n, each in zip(read, self.layers, strict=True) if not each.why) / max(sum(read), 1),
            ),
        )

    def _choose(self, tolerance: float | None) -> list[_Layer]:
        """Return the layers to fold, from those that cost least for what they save on, as many as the budget allows."""
        if tolerance is None or not self.others:
            return self.others
        if tolerance == 0 or self._fits(self.others, tolerance):
            return self.others if tolerance else []
        alone = self._prices(CHOOSES, [[each] for each in self.others])
        # Squares, since those are what adds up where the layers' changes have nothing to do with one another.
        worth = {each: price.logits**2 / each.seen.values for each, price in zip(self.others, alone, strict=True)}
        order = sorted(self.others, key=lambda each: worth[each])
        fits, too_many = 0, len(order)
        while too_many - fits > 1:
            half = (fits + too_many) // 2
            fits, too_many = (half, too_many) if self._fits(order[:half], tolerance) else (fits, half)
        return order[:fits]

    def _fits(self, others: list[_Layer], tolerance: float) -> bool:
        (price,) = self._prices(CHOOSES, [[*self.exact, *others]])
        return price.logits <= tolerance

    def _prices(self, half: int, variants: Iterable[Iterable[_Layer]]) -> list[Price]:
        return prices(self.model, self.stream.half(half), [[each.fold for each in layers] for layers in variants])

    def _look(self, half: int, watchers: Mapping[CalibratedNorm, Callable[[Called], object]]) -> None:
        with watching(watchers):
            for batch in self.stream.half(half):
                self.model(batch)
