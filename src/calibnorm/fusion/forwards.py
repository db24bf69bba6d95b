"""Another forward for one module, which stays what it is: its class becomes a subclass of its own class."""

from __future__ import annotations

import copy
import importlib
import linecache
from functools import cache
from types import CodeType, ModuleType
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, fx, nn

from calibnorm import _checks
from calibnorm.fusion.matching import Match
from calibnorm.nn import CalibratedNorm


class Code(NamedTuple):
    """A forward as plain data, which pickle can hold."""

    source: str
    names: tuple[tuple[str, str, str], ...] = ()
    """What the source refers to: name, module, and qualified name in the module ("" for the module itself)."""


PASS = Code("def forward(self, input):\n    return input\n")
"""The forward of a ReLU whose work the norm before it does."""


def norm_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """Return relu(layer(x)): by the layer alone where it does that, and right whatever has been put in its place."""
    y: Tensor = layer(x)
    return y if _rectifies(layer) else torch.relu(y)


def norm_add_relu(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """Return relu(layer(x) + residual): by the layer alone where it does that and the residual is like x.

    One that must be broadcast, or that makes the sum wider, is added as the network wrote it.
    """
    if not _rectifies(layer):
        return torch.relu(layer(x) + residual)
    if isinstance(x, fx.Proxy) or _alike(x, residual):  # type: ignore[unreachable]
        y: Tensor = layer(x, residual)
        return y
    # A shallow copy, which shares the child and every tensor, not a switch on the layer that other threads would see.
    plain = copy.copy(layer)
    plain.act = None  # type: ignore[assignment]
    return torch.relu(plain(x) + residual)


def _rectifies(layer: nn.Module) -> bool:
    return isinstance(layer, CalibratedNorm) and layer.act == "relu"


def _alike(x: Tensor, residual: Tensor) -> bool:
    same_shape = not _checks.sizes_known() or x.shape == residual.shape
    return same_shape and x.dtype == residual.dtype and x.device == residual.device


def fused_code(graph: fx.Graph, matches: list[Match]) -> Code | str:
    """Rewrite the graph of a forward and return its code, or why it has none that could be kept."""
    for found in matches:
        _rewrite(graph, found)
    code = graph.python_code("self")
    used = _names(compile(code.src, "<fused>", "exec"))
    names = []
    for name, value in code.globals.items():
        if name not in used:  # fx lists more: inf, device, ...
            continue
        if (place := _importable(value)) is None:
            return f"refers to {value!r:.60}, which cannot be imported by name"
        names.append((name, *place))
    return Code(code.src, tuple(sorted(names)))


def _rewrite(graph: fx.Graph, found: Match) -> None:
    place = found.norm if found.add is None else found.add
    with graph.inserting_before(place):
        layer = graph.create_node("get_attr", str(found.norm.target))
        if found.add is None:
            new = graph.call_function(norm_relu, (layer, found.norm.args[0]))
        else:
            left, right = found.add.args
            residual = right if left in (found.norm, *found.between) else left
            new = graph.call_function(norm_add_relu, (layer, found.norm.args[0], residual))
    found.relu.replace_all_uses_with(new)
    order = list(graph.nodes)
    gone = [found.norm, *found.between, found.relu, *([] if found.add is None else [found.add])]
    for node in sorted(gone, key=order.index, reverse=True):
        graph.erase_node(node)


def _names(code: CodeType) -> set[str]:
    """Return every name that code and the functions in it look up."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _importable(value: Any) -> tuple[str, str] | None:
    """Return where something can be imported from: module and qualified name."""
    if isinstance(value, ModuleType):
        return value.__name__, ""
    if isinstance(value, float):  # inf and nan have no literal
        return "math", str(value)
    where, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    for module, qualified in ((where, name), ("torch", name), ("torch.nn.functional", name), ("builtins", name)):
        if isinstance(module, str) and isinstance(qualified, str) and _find(module, qualified) is value:
            return module, qualified
    return None


def _find(module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    return found


def why_not(module: nn.Module) -> str:
    """Return why a module's class cannot become another, or "" if it can."""
    kind = type(module)
    if "parametrizations" in module._modules:
        return "is parametrized, which changes the class too"
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return "has a pickle of its own"
    if hasattr(kind, "__deepcopy__") or hasattr(kind, "__copy__"):
        return "has a copy of its own"
    return ""


def set_forward(module: nn.Module, code: Code) -> None:
    """Give one module another forward."""
    kind: Any = type(module)
    module.__class__ = _class(kind, code)


def is_rewritten(module: nn.Module) -> bool:
    """Whether :func:`set_forward` changed a module."""
    return isinstance(module, _Rewritten)


def restore_forward(module: nn.Module) -> None:
    """Undo :func:`set_forward`."""
    module.__class__ = vars(type(module))["_original"]


def is_buried(module: nn.Module) -> bool:
    """Whether somebody (torch.nn.utils.parametrize, say) has changed the class of a rewritten module again."""
    return is_rewritten(module) and "_original" not in vars(type(module))


class _Rewritten:
    """What a class with another forward adds to the class it comes from."""

    _original: type
    _code: Code

    def _get_name(self) -> str:
        return f"{self._original.__name__}[fused]"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class itself has no place to be imported from: its original and the code have.
        reduced: Any = object.__reduce_ex__(self, 2)
        return (_new, (self._original, tuple(self._code)), *reduced[2:])


def _new(original: Any, code: tuple[Any, ...]) -> Any:
    """Make the instance that pickle and deepcopy then fill."""
    kind = _class(original, Code(*code))
    return kind.__new__(kind)


@cache
def _class(original: Any, code: Code) -> Any:
    """Return the subclass, one for all blocks of the same code: torch.compile then compiles them once."""
    filename = f"<calibnorm.fuse {original.__qualname__} {crc32(code.source.encode()):x}>"
    linecache.cache[filename] = (len(code.source), None, code.source.splitlines(keepends=True), filename)
    space: dict[str, Any] = {name: _find(module, qualified) for name, module, qualified in code.names}
    missing = [f"{module}.{qualified}" for name, module, qualified in code.names if space[name] is None]
    if missing:
        raise ImportError(f"a fused {original.__name__} refers to {', '.join(missing)}, which this installation lacks")
    exec(compile(code.source, filename, "exec"), space)
    body = {
        "forward": space["forward"],
        "_original": original,
        "_code": code,
        # The name stays: other software knows blocks by it.
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (_Rewritten, original), body)
