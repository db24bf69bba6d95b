"""Which normalization is the last of a residual branch: where the SE paper puts its block; found by tracing.

The network is traced with torch.fx; every module without a normalization in it stays whole, so that only what lies
between the normalizations must be traceable.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from calibnorm.conversion.selection import in_shortcut
from calibnorm.networks import finding
from calibnorm.networks.finding import Found

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
# What may stand between the normalization and the addition: modules that do nothing, or drop a branch in training.
_TRANSPARENT = ("Identity", "Dropout", "Dropout2d", "DropPath", "StochasticDepth", "DropBlock2d")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return finding.is_norm(m) or not any(finding.is_norm(inner) for inner in m.modules())


def leave_inner(model: nn.Module, found: list[Found]) -> dict[str, str]:
    """Return the names of the normalizations that are not the last of a residual branch, each with that reason.

    Raises:
        ValueError: The network has no such normalization, or cannot be traced.
    """
    remedy = "name the layers with include=, such as include='*.bn2'"
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a network's forward raises when it meets a proxy
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"the residual branches of {type(model).__name__} were not found ({why}); {remedy}") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    depth = _depths(graph, modules)
    last: set[int] = set()
    additions = 0
    for node in graph.nodes:
        inputs = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
        if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS or len(inputs) < 2:
            continue
        additions += 1
        ends = [end for end in map(_through, inputs, [modules] * 2) if _norm(end, modules) is not None]
        branches = [end for end in ends if not in_shortcut(model, str(end.target))]
        if branches:
            last.add(id(_norm(max(branches, key=depth.__getitem__), modules)))
    if found and not any(id(entry.module) in last for entry in found):
        what = "no residual branches" if not additions else "no residual branch that ends in a normalization"
        alone = "behind a branch that ends in a convolution put SE2d(alone=True), or " if additions else ""
        raise ValueError(f"{type(model).__name__} has {what}, after which 'se' would go; {alone}{remedy}")
    return {entry.name: "not the last of a residual branch" for entry in found if id(entry.module) not in last}


def _norm(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return module if module is not None and finding.is_norm(module) else None


def _through(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """Return what a node passes on, or the node itself."""
    while node.op == "call_module" and type(modules[str(node.target)]).__name__ in _TRANSPARENT:
        before: Any = node.args[0]
        node = before
    return node


def _depths(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, int]:
    """Return for every node the most normalizations on a way to it: of two branches the shortcut has fewer."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = before + (_norm(node, modules) is not None)
    return depth
