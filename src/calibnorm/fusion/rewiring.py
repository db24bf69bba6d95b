"""Which norms of a network can take over what follows them, and the change itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx, nn

from calibnorm.conversion import sources
from calibnorm.conversion.sources import Found
from calibnorm.fusion import forwards, matching, tracing
from calibnorm.fusion.matching import RELU, Match
from calibnorm.fusion.report import Fusion, FusionReport
from calibnorm.fusion.tracing import Trace
from calibnorm.nn import CalibratedNorm, layer_type
from calibnorm.nn import child as children
from calibnorm.nn.fused import Fused, save_as_batchnorm


class Rewiring:
    """One call of ``cn.fuse``: every forward is traced, from the outermost module in, before its norms are fused."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found = {id(entry.module): entry for entry in sources.find(model)}
        self.places = Counter(
            id(child) for module in model.modules() for child in module._modules.values() if child is not None
        )
        self.traces = {id(m): (name, m, tracing.trace(m)) for name, m in self._owners()}
        self.calls = Counter(
            id(child)
            for _, m, t in self.traces.values()
            for graph in t.graphs[:1]
            for _, child in tracing.calls(m, graph)
        )
        self.doubtful = self._doubtful()
        self.why: dict[int, str] = {}
        self.before: dict[str, str] = {
            entry.name: "already" for entry in self.found.values() if getattr(entry.module, "fused", None) is not None
        }

    def _owners(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose own forward may call a norm of this network."""
        inside = {id(m) for entry in self.found.values() for m in entry.module.modules()}
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if id(module) not in inside
            and tracing.has_forward(module)
            and any(id(m) in self.found for m in module.modules())
        ]

    def _doubtful(self) -> dict[int, str]:
        """Return Sequentials that a forward which could not be followed may use piece by piece, each with why."""
        doubtful: dict[int, str] = {}

        def visit(module: nn.Module, why: str) -> None:
            for child in module._modules.values():
                if child is not None and isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
                    doubtful.setdefault(id(child), why)
                    visit(child, why)

        for name, module, trace in self.traces.values():
            if not trace.graphs:
                visit(module, f"{_forward(name, module)} {trace.why}, and may use its parts one by one")
        return doubtful

    def run(self) -> nn.Module:
        """Fuse what can be fused, and return the network."""
        for name, module, trace in self.traces.values():
            self._fuse_within(name, module, trace)
        root = self.model
        for entry in self.found.values():
            if _own_relu(entry.module) and not (why := self._unfusable(entry)):
                new = self._put(entry, RELU)
                root = new if entry.module is self.model else root
            elif _own_relu(entry.module):
                self.why[id(entry.module)] = why
        return root

    def _fuse_within(self, name: str, module: nn.Module, trace: Trace) -> None:
        """Fuse the norms that one forward calls."""
        if forwards.is_rewritten(module):
            return
        title = _forward(name, module)
        if not trace.graphs:
            self._leave(module.children(), f"{title} {trace.why}")
            return
        if why := self.doubtful.get(id(module)):
            self._leave(module.children(), why)
            return
        obstacle = "is nn.Sequential's" if tracing.is_sequential(module) else forwards.why_not(module)
        if not obstacle and not trace.single:
            obstacle = "depends on the mode or on the type of its input"
        if not obstacle and (opened := self._opened(module, trace.graphs[0])):
            again = tracing.trace(module, opened)
            trace = again if again.single else trace
        matches = [self._matches(module, graph) for graph in trace.graphs]
        common = {key: found for key, found in matches[0].items() if all(key in other for other in matches)}
        alone = [key for key in common if self._relu_alone(module, trace.graphs, matches, key)]
        if len(alone) < len(common) and not obstacle:
            code = forwards.fused_code(trace.graphs[0], list(common.values()))
            if isinstance(code, forwards.Code):
                forwards.set_forward(module, code)
                for key, found in common.items():
                    self._put(self._entry(module, key), found.pattern)
                return
            obstacle = code
        for key in common:
            if key in alone:
                relu = module.get_submodule(str(common[key].relu.target))
                if not forwards.is_rewritten(relu):
                    forwards.set_forward(relu, forwards.PASS)
                self._put(self._entry(module, key), RELU)
            else:
                self._leave([module.get_submodule(key)], f"{title} would have to change, and {obstacle}")

    def _opened(self, module: nn.Module, graph: fx.Graph) -> frozenset[str]:
        """Return the Sequentials to follow, if this forward alone calls them."""
        opened = matching.to_open(module, graph)
        ids = [id(module.get_submodule(name)) for name in opened]
        return opened if all(self.places[i] == 1 and self.calls[i] == 1 for i in ids) else frozenset()

    def _matches(self, module: nn.Module, graph: fx.Graph) -> dict[str, Match]:
        found, left = matching.match(module, graph)
        for key, why in left.items():
            self.why.setdefault(id(module.get_submodule(key)), why)
        for key in list(found):
            if why := self._unfusable(self._entry(module, key)):
                self.why[id(module.get_submodule(key))] = why
                del found[key]
        return found

    def _entry(self, module: nn.Module, key: str) -> Found:
        return self.found[id(module.get_submodule(key))]

    def _relu_alone(
        self, module: nn.Module, graphs: tuple[fx.Graph, ...], matches: list[dict[str, Match]], key: str
    ) -> bool:
        """Whether a norm's ReLU module serves this forward's fused norms and nothing else."""
        found = matches[0][key]
        if found.add is not None or not matching.exclusive_relu(module, graphs, matches, key):
            return False
        relu = module.get_submodule(str(found.relu.target))
        here = sum(child is relu for _, child in tracing.calls(module, graphs[0]))
        return self.places[id(relu)] == 1 and self.calls[id(relu)] == here

    def _unfusable(self, entry: Found) -> str:
        """Return why a norm cannot take over what follows it, or ""."""
        layer: Any = entry.module
        calibrated, own_relu = isinstance(layer, CalibratedNorm), _own_relu(layer)
        if calibrated and (layer.fused is not None or layer.act == "relu"):
            return "rectifies already"
        if not own_relu and (getattr(layer, "act", None) is not None or getattr(layer, "drop", None) is not None):
            return "has an activation or dropout of its own"
        if tracing.has_hooks(layer):
            return "has hooks, which would see another output"
        if not own_relu and (len(entry.places) != 1 or self.calls[id(layer)] > 1):
            return "is called from several places"
        if isinstance(layer, nn.SyncBatchNorm):
            return "is a SyncBatchNorm, which has kernels of its own"
        child = sources.holder(layer)
        known = own_relu or children.is_batchnorm(child) or children.is_frozen(child)
        return "" if known and (calibrated or sources.refusal(layer) is None) else "is no BatchNorm that is understood"

    def _leave(self, modules: Any, why: str) -> None:
        for module in modules:
            for norm in module.modules() if isinstance(module, nn.ModuleList | nn.ModuleDict) else [module]:
                if id(norm) in self.found:
                    self.why[id(norm)] = why

    def _put(self, entry: Found, pattern: str) -> nn.Module:
        """Let a norm rectify, wrapped in a layer of this library where it is a plain one."""
        source, own_act = entry.module, _own_relu(entry.module)
        if isinstance(source, CalibratedNorm):
            source._modules.pop("act", None)
            source._modules.pop("drop", None)
            source.act, source.drop, source.fused = "relu", None, Fused(pattern, False, own_act)
            return source
        dims, training = sources.dims(source), source.training
        child, _, _ = sources.take_apart(source)
        layer = layer_type("bn", dims).around(child, act="relu")
        layer.training, layer.fused = training, Fused(pattern, True, own_act)
        save_as_batchnorm(layer)
        sources.replace(entry, layer)
        return layer

    def report(self, root: nn.Module) -> FusionReport:
        """Return what became of every norm; ``root`` is what :meth:`run` returned."""
        rows = FusionReport()
        old = {entry.name: key for key, entry in self.found.items()}
        for entry in sources.find(root):
            mark: Fused | None = getattr(entry.module, "fused", None)
            why = self.why.get(old[entry.name], "no forward that could be followed calls it")
            row = (mark.pattern, self.before.get(entry.name, "")) if mark is not None else ("", why)
            rows.append(Fusion(entry.title, type(entry.module).__name__, *row))
        return rows


def _forward(name: str, module: nn.Module) -> str:
    return f"the forward of {name or 'the model'} ({type(module).__name__})"


def _own_relu(module: Any) -> bool:
    """Whether a norm has a ReLU of its own as a module, and no dropout before it."""
    act, drop = getattr(module, "act", None), getattr(module, "drop", None)
    carries = isinstance(module, CalibratedNorm) or (sources.has_own_act(module) and not children.is_split(module))
    return (
        carries
        and isinstance(act, nn.Module)
        and matching.is_relu_module(act)
        and (drop is None or type(drop) is nn.Identity)
    )
