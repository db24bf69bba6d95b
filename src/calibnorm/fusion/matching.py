"""Where a graph has norm -> ReLU or norm -> add -> ReLU that one call can do, and why not elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from calibnorm.fusion.calls import norm_relu
from calibnorm.networks import finding
from calibnorm.nn.plain_modules import is_identity, is_relu

# What a node may call, function or method, and the name that calls.norm_relu has for it.
_RELUS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.relu_: "relu_", torch.relu_: "relu_"} | {
    name: name for name in ("relu", "relu_")
}
_ADDS: dict[Any, str] = {operator.add: "add", torch.add: "add", operator.iadd: "iadd", "add": "add", "add_": "iadd"}


class Match(NamedTuple):
    """One fusion in one graph."""

    norm: fx.Node
    relu: fx.Node
    add: fx.Node | None
    between: tuple[fx.Node, ...]
    """Identity modules on the way."""

    @property
    def residual(self) -> Any:
        """What is added; read from the graph, since rewriting another match may have put a new node there."""
        assert self.add is not None
        left, right = self.add.args
        return right if left in (self.norm, *self.between) else left

    @property
    def pattern(self) -> str:
        """What becomes one call."""
        return "norm + ReLU" if self.add is None else "norm + add + ReLU"


def find(
    module: nn.Module, graph: fx.Graph, unfusable: Callable[[nn.Module], str]
) -> list[tuple[nn.Module, Match | str]]:
    """Return every norm that a graph calls, with the match or the reason why there is none.

    Args:
        module: Whose forward the graph is.
        graph: Its calls of children are nodes.
        unfusable: Returns why a norm cannot take over what follows it, or "".
    """
    found: list[tuple[nn.Module, Match | str]] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_module" and finding.is_norm(norm := module.get_submodule(str(node.target))):
            match = unfusable(norm) or _after(module, node)
            if isinstance(match, Match) and match.relu in taken:
                match = "is added to another norm's output, which takes it as its residual"
            elif isinstance(match, Match):
                taken.add(match.relu)
            found.append((norm, match))
    return found


def _after(module: nn.Module, norm: fx.Node) -> Match | str:
    """Return what follows a call of a norm: a match, or the reason why there is none."""
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return "is called with more than one tensor"
    value, user, between = _next(module, norm)
    if user is None:
        return f"its output is used {len(value.users)} times" if value.users else "its output is not used"
    if _is_relu(module, user):
        return Match(norm, user, None, between)
    if not _is_add(user):
        return f"{_describe(module, user)} follows, not a ReLU"
    _, relu, more = _next(module, user)
    if relu is None:
        return "is added to another tensor, and the sum is used several times"
    if not _is_relu(module, relu):
        return f"is added to another tensor, and {_describe(module, relu)} follows, not a ReLU"
    if _ADDS[user.target] == "iadd" and user.args[0] is not value:
        return "is added in place to a tensor that others may hold"
    found = Match(norm, relu, user, between + more)
    return _moves_badly(module, found) or found


def _next(module: nn.Module, node: fx.Node) -> tuple[fx.Node, fx.Node | None, tuple[fx.Node, ...]]:
    """Return the last Identity after a node (or the node), its only user if it is used once, and the Identities."""
    passed: list[fx.Node] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.all_input_nodes.count(node) != 1 or sum(arg is node for arg in user.args) != 1:
            break  # x + x
        child = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if not is_identity(child) or "." in str(user.target):
            return node, user, tuple(passed)
        passed.append(user)
        node = user
    return node, None, tuple(passed)


def _is_relu(module: nn.Module, node: fx.Node) -> bool:
    if len(node.args) != 1 or not node.kwargs.keys() <= {"inplace"}:
        return False
    if node.op == "call_module":
        return is_relu(module.get_submodule(str(node.target)))
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _is_add(node: fx.Node) -> bool:
    tensors = len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
    return tensors and node.op in ("call_function", "call_method") and node.target in _ADDS


def _moves_badly(module: nn.Module, found: Match) -> str:
    """Return why a norm cannot run where the addition is, after what the network computes between the two; or ""."""
    assert found.add is not None
    nodes = list(found.norm.graph.nodes)
    start, end = nodes.index(found.norm), nodes.index(found.add)
    others = [n for n in nodes[start + 1 : end] if n not in found.between and n.op != "get_attr"]
    source = found.norm.args[0]
    assert isinstance(source, fx.Node)
    if others and not (len(source.users) == 1 and _is_fresh(module, source)):
        return "what it normalizes may have changed when the sum is made"
    if any(_changes(module, user) for user in found.residual.users if nodes.index(user) > end):
        return "what it is added to is changed in place afterwards, and the gradient needs it"
    return ""


def _is_fresh(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node makes a tensor that nobody else can hold."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), kinds)


def _changes(module: nn.Module, user: fx.Node) -> bool:
    """Whether a node may change one of its inputs in place."""
    if user.op == "call_module":
        return bool(getattr(module.get_submodule(str(user.target)), "inplace", False))
    name = _name(user)
    in_place = name.endswith("_") or (user.op == "call_function" and name.startswith("i") and hasattr(operator, name))
    return bool(user.kwargs.get("inplace")) or (user.op != "output" and in_place)


def _name(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def _describe(module: nn.Module, node: fx.Node) -> str:
    if node.op == "output":
        return "the end of the forward"
    return type(module.get_submodule(str(node.target))).__name__ if node.op == "call_module" else _name(node)


def rewrite(graph: fx.Graph, found: Match) -> None:
    """Put the fused call into the graph."""
    with graph.inserting_before(found.norm if found.add is None else found.add):
        layer = graph.create_node("get_attr", str(found.norm.target))
        relu: Any
        if found.relu.op == "call_module":
            relu = graph.create_node("get_attr", str(found.relu.target))
        else:
            relu = "relu_" if found.relu.kwargs.get("inplace") else _RELUS[found.relu.target]
        added = () if found.add is None else (_ADDS[found.add.target], found.residual)
        call = graph.call_function(norm_relu, (layer, found.norm.args[0], relu, *added))
    found.relu.replace_all_uses_with(call)
    order = list(graph.nodes)
    gone = [found.norm, *found.between, found.relu, *([] if found.add is None else [found.add])]
    for node in sorted(gone, key=order.index, reverse=True):
        graph.erase_node(node)
