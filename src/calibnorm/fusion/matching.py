"""Where a graph has norm -> ReLU or norm -> add -> ReLU that one layer can do, and why not elsewhere."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from calibnorm.conversion import sources
from calibnorm.fusion.tracing import calls, has_hooks, is_sequential

RELU, ADD_RELU = "norm+relu", "norm+add+relu"

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)
_INPLACE_ADDS = (operator.iadd, "add_", "__iadd__")


class Match(NamedTuple):
    """One fusion in one graph."""

    norm: fx.Node
    relu: fx.Node
    add: fx.Node | None
    between: tuple[fx.Node, ...]
    """Identity modules on the way."""

    @property
    def pattern(self) -> str:
        """What becomes one layer."""
        return RELU if self.add is None else ADD_RELU


def match(module: nn.Module, graph: fx.Graph) -> tuple[dict[str, Match], dict[str, str]]:
    """Return the fusions of a graph by the norm's name in the module, and why its other norms have none."""
    found: dict[str, Match] = {}
    left: dict[str, str] = {}
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    for node, child in calls(module, graph):
        if not sources.is_norm(child):
            continue
        name = str(node.target)
        if any(target.startswith(f"{name}.") for target in read):
            result: Match | str = "is read without being called"
        else:
            result = _after(module, node)
        if name in found or name in left:  # called twice: act= would reach both calls
            found.pop(name, None)
            left[name] = "is called several times"
        elif isinstance(result, Match):
            found[name] = result
        else:
            left[name] = result
    return found, left


def _after(module: nn.Module, norm: fx.Node) -> Match | str:
    """Return what follows a norm: a match, or the reason why there is none."""
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return "is called with more than one tensor"
    end, following, between = _next(module, norm)
    if following is None:
        return f"its output is used {len(end.users)} times" if end.users else "its output is not used"
    if _is_relu(module, following):
        return Match(norm, following, None, between)
    if not _is_add(following):
        return f"{_describe(module, following)} follows, not a ReLU"
    last, relu, more = _next(module, following)
    if relu is None or not _is_relu(module, relu):
        return "is added to another tensor, and the sum goes " + (
            "to several places" if relu is None and last.users else f"to {_describe(module, relu)}, not to a ReLU"
        )
    why = _forbidden(module, norm, end, following)
    return why or Match(norm, relu, following, between + more)


def _next(module: nn.Module, node: fx.Node) -> tuple[fx.Node, fx.Node | None, tuple[fx.Node, ...]]:
    """Return the last Identity after a node (or the node), its only user if it has one, and the Identities."""
    passed: list[fx.Node] = []
    while True:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        if user is None or list(user.all_input_nodes).count(node) != 1 or _occurrences(user, node) != 1:
            return node, None, tuple(passed)
        if not (user.op == "call_module" and _is_identity(module.get_submodule(str(user.target)))):
            return node, user, tuple(passed)
        passed.append(user)
        node = user


def _occurrences(user: fx.Node, node: fx.Node) -> int:
    count = 0

    def visit(arg: fx.Node) -> fx.Node:
        nonlocal count
        count += arg is node
        return arg

    fx.map_arg((user.args, user.kwargs), visit)
    return count


def _is_identity(child: nn.Module) -> bool:
    return type(child) is nn.Identity and not has_hooks(child)


def is_relu_module(child: nn.Module) -> bool:
    """Whether a module computes a ReLU and nothing watches it."""
    return type(child).forward is nn.ReLU.forward and "forward" not in child.__dict__ and not has_hooks(child)


def _is_relu(module: nn.Module, node: fx.Node) -> bool:
    if len(node.args) != 1 or not node.kwargs.keys() <= {"inplace"}:
        return False
    if node.op == "call_module":
        return is_relu_module(module.get_submodule(str(node.target)))
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _is_add(node: fx.Node) -> bool:
    plain = len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
    return plain and (
        (node.op == "call_function" and node.target in _ADDS)
        or (node.op == "call_method" and node.target in ("add", "add_"))
    )


def _forbidden(module: nn.Module, norm: fx.Node, value: fx.Node, add: fx.Node) -> str | None:
    """Return why a residual cannot go through the norm, which then runs where the addition is; or None."""
    left, right = add.args
    residual = right if left is value else left
    assert isinstance(residual, fx.Node)
    if add.target in _INPLACE_ADDS and left is not value:
        return "is added in place to a tensor that others may hold"
    nodes = list(norm.graph.nodes)
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    passed = [node for node in nodes[nodes.index(norm) + 1 : nodes.index(add)] if node is not value]
    if passed and not (len(source.users) == 1 and _is_fresh(module, source)):
        return "what it normalizes may have changed when the sum is made"
    if any(_changes(module, user, residual) for user in residual.users if nodes.index(user) > nodes.index(add)):
        return "what it is added to is changed in place afterwards, and the gradient needs it"
    return None


def _is_fresh(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node makes a tensor that nobody else can hold."""
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), nn.modules.conv._ConvNd | nn.Linear
    )


def _changes(module: nn.Module, user: fx.Node, node: fx.Node) -> bool:
    """Whether a node may change one of its inputs in place."""
    if user.op == "call_module":
        return bool(getattr(module.get_submodule(str(user.target)), "inplace", False))
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    by_name = name.endswith("_") or (user.op == "call_function" and name.startswith("i") and hasattr(operator, name))
    return bool(user.kwargs.get("inplace")) or (user.op != "output" and by_name)


def _describe(module: nn.Module, node: fx.Node | None) -> str:
    if node is None:
        return "nothing"
    if node.op == "output":
        return "the output"
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def to_open(module: nn.Module, graph: fx.Graph) -> frozenset[str]:
    """Return the Sequentials that end in a norm whose output is added and rectified: that norm can take the residual.

    One for each sum, the left one, and none where the sum has a norm of the module itself.
    """
    opened: set[str] = set()
    for node in graph.nodes:
        if not _is_add(node):
            continue
        _, relu, _ = _next(module, node)
        if relu is None or not _is_relu(module, relu):
            continue
        operands = [_called(module, arg) for arg in node.args]
        if any(child is not None and sources.is_norm(child) for _, child in operands):
            continue
        for name, child in operands:
            if tail := _tail(name, child):
                opened.update(tail)
                break
    return frozenset(opened)


def _called(module: nn.Module, node: Any) -> tuple[str, nn.Module | None]:
    """Return the child whose output a node is, Identities aside."""
    while True:
        if node.op != "call_module" or len(node.users) != 1:
            return "", None
        child = module.get_submodule(str(node.target))
        if not _is_identity(child):
            return str(node.target), child
        node = node.args[0]


def _tail(name: str, child: nn.Module | None) -> list[str]:
    """Return the names of the Sequentials, from the outermost, at whose very end a norm is; empty where none is."""
    names: list[str] = []
    while child is not None and is_sequential(child) and not has_hooks(child) and len(child._modules):
        names.append(name)
        rest = [(key, c) for key, c in child._modules.items() if c is None or not _is_identity(c)]
        key, child = rest[-1] if rest else ("", None)
        name = f"{name}.{key}"
    return names if child is not None and sources.is_norm(child) else []


def exclusive_relu(module: nn.Module, graphs: tuple[fx.Graph, ...], matches: list[dict[str, Match]], name: str) -> bool:
    """Whether a norm's ReLU is a module whose every call, in every graph, follows a norm that it can be fused into."""
    target = matches[0][name].relu
    if target.op != "call_module":
        return False
    relu = module.get_submodule(str(target.target))
    fused = {m.relu for found in matches for m in found.values() if m.add is None}
    return all(node in fused for graph in graphs for node, child in calls(module, graph) if child is relu)
