"""Another forward for one module, which stays what it is: its class becomes a subclass of its own class."""

from __future__ import annotations

import copy
import functools
import itertools
import linecache
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

from calibnorm.fusion.tracing import Trace
from calibnorm.nn.plain_modules import is_identity

_SIMPLE = (bool, int, float, str, type(None))
_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_number = itertools.count()


class Rewiring(NamedTuple):
    """A forward, and when it stands for the original one."""

    original: type[nn.Module]
    run: Callable[..., Any]
    inputs: int = 1
    lists: bool = False
    """The inputs must be lists."""
    settings: tuple[Any, ...] | None = None
    """What :func:`settings` returned when the original forward was traced; None where that does not matter."""

    def holds(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        """Whether the fused forward does what the original one would do now.

        torch.compile, export and tracing get the original: it is what their own fusers know.
        """
        return not (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or _has_any_global_hook()  # type: ignore[no-untyped-call]
            or len(args) != self.inputs
            or any(type(arg) is not list if self.lists else isinstance(arg, fx.Proxy) for arg in args)
            or (self.settings is not None and settings(module) != self.settings)
        )


def settings(module: nn.Module) -> tuple[Any, ...]:
    """Return what a forward may branch on: the module's simple attributes, and which children there are."""
    simple = tuple((k, v) for k, v in vars(module).items() if k != "training" and isinstance(v, _SIMPLE))
    return simple, tuple((k, None if v is None else is_identity(v)) for k, v in module._modules.items())


class Rewired:
    """What a module's new class adds to its own."""

    _rewiring: Rewiring

    def _get_name(self) -> str:
        return f"{self._rewiring.original.__name__}[fused]"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the original class: a file holds the network as it was, and no generated code."""
        reduced: Any = object.__reduce_ex__(self, 1)
        make, (_, *rest), *state = reduced
        return make, (self._rewiring.original, *rest), *state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy as torch does; the copy is fused too."""
        kind: Any = type(self)
        new = memo[id(self)] = kind.__new__(kind)
        # Not self.__getstate__, which refuses where the class has been parametrized since.
        new.__dict__ = copy.deepcopy(nn.Module.__getstate__(self), memo)  # type: ignore[no-untyped-call, arg-type]
        return new

    def __prepare_scriptable__(self) -> Any:
        """Give torch.jit.script the original."""
        original = self._rewiring.original
        plain = original.__new__(original)
        plain.__dict__ = self.__dict__
        return plain


def why_not(module: nn.Module) -> str:
    """Return why a module's class cannot become another, or "" if it can."""
    kind = type(module)
    if "parametrizations" in module._modules:
        return "it is parametrized, which changes the class too"
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _PICKLING):
        return "it has a pickle of its own"
    if hasattr(kind, "__deepcopy__") or hasattr(kind, "__copy__") or hasattr(kind, "__prepare_scriptable__"):
        return "it has a copy of its own"
    if "__init_subclass__" in {name for base in kind.__mro__[:-1] for name in vars(base)}:
        return "its class watches over its subclasses"
    return ""


def traced(module: nn.Module, trace: Trace) -> type[nn.Module]:
    """Return the class whose forward is a graph."""
    code = trace.graph.python_code("self")
    filename = f"<calibnorm.fuse {type(module).__qualname__} {next(_number)}>"
    space = dict(code.globals)
    exec(compile(code.src, filename, "exec"), space)
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)  # for tracebacks
    inputs = sum(node.op == "placeholder" for node in trace.graph.nodes)
    return rewired(Rewiring(type(module), space["forward"], inputs, trace.lists, settings(module)))


def rewired(rewiring: Rewiring) -> type[nn.Module]:
    """Return a subclass whose forward is the new one wherever that holds, and else the original one."""
    original, run = rewiring.original, rewiring.run

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs or not rewiring.holds(self, args):
            return original.forward(self, *args, **kwargs)
        return run(self, *args)

    body = {
        "forward": forward,
        "_rewiring": rewiring,
        # The name stays: other software knows modules by it.
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    metaclass: Any = type(original)
    kind: type[nn.Module] = metaclass(original.__name__, (Rewired, original), body)
    return kind


def original(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class as it was before its forward was changed; one that others have derived from it is theirs."""
    rewiring: Rewiring | None = vars(kind).get("_rewiring")
    return kind if rewiring is None else rewiring.original
