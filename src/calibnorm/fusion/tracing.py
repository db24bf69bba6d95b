"""What a module's own forward does, as torch.fx graphs whose every call of a child is one node."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from calibnorm.conversion import sources


class Trace(NamedTuple):
    """The graphs of one forward, one for each way that it can take; none where it could not be followed."""

    graphs: tuple[fx.Graph, ...]
    why: str = ""
    """Why there is no graph."""

    @property
    def single(self) -> bool:
        """Whether the forward is the same in every mode, so that one graph can stand for it."""
        return len(self.graphs) == 1


def has_forward(module: nn.Module) -> bool:
    """Whether a module's own forward may call norms: that of a Sequential or of a class outside torch.nn."""
    forward: Any = type(module).forward
    return is_sequential(module) or not (forward.__module__ or "").startswith("torch.nn.")


def is_sequential(module: nn.Module) -> bool:
    """Whether a module's forward is that of nn.Sequential, which calls its children one after the other."""
    return type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__


def trace(module: nn.Module, opened: frozenset[str] = frozenset()) -> Trace:
    """Follow the forward of a module in training and eval mode, with and without grad mode.

    Args:
        module: Any module; it is left as it was.
        opened: Children that are followed too; the others are leaves.
    """
    if why := _untraceable(module):
        return Trace((), why)
    graphs: dict[str, fx.Graph] = {}
    for training in (True, False):
        for takes_tensors in (True, False):
            try:
                graph, asked = _follow(module, opened, training, takes_tensors)
            except Exception as error:  # a forward may raise anything when its input is no tensor
                return Trace((), f"could not be followed ({_first_line(error)})")
            graphs.setdefault(graph.python_code("self").src, graph)
            if not asked:
                break
    return Trace(tuple(graphs.values()))


def _untraceable(module: nn.Module) -> str:
    if isinstance(module, fx.GraphModule):
        return "belongs to a torch.fx.GraphModule"
    if "forward" in module.__dict__:
        return "was replaced on the instance"
    if module._compiled_call_impl is not None:
        return "is compiled"
    return ""


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:70]}{'...' * (len(text) > 70)}"


def _follow(module: nn.Module, opened: frozenset[str], training: bool, takes_tensors: bool) -> tuple[fx.Graph, bool]:
    """Return the graph of one way through a forward, and whether the forward asked for the type of its input."""
    with _unchanged(module), torch.set_grad_enabled(training), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracer = _Tracer(opened, takes_tensors)
        module.__dict__["training"] = training  # of this module alone: its children are leaves
        graph = tracer.trace(module)
    if len(tracer.questions) > 1:
        raise TypeError("it asks several times for the type of its input")
    for node in graph.nodes:
        node.type = None
    return graph, bool(tracer.questions)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put the module and the random generators back as they were; refuse a forward that changed them."""
    held = dict(module.__dict__)
    # its parameters, buffers and modules are such dictionaries
    inner = {name: copy.copy(value) for name, value in held.items() if isinstance(value, dict | list | set)}
    states = [(get, put, get()) for get, put in _generators()]
    try:
        yield
    finally:
        module.__dict__["training"] = held["training"]
        changed = _ids(module.__dict__) != _ids(held) or any(_ids(held[name]) != _ids(v) for name, v in inner.items())
        if changed:
            module.__dict__.clear()
            module.__dict__.update(held)
            for name, value in inner.items():
                held[name].clear()
                (held[name].extend if isinstance(value, list) else held[name].update)(value)
        drawn = [(put, state) for get, put, state in states if not _equal(get(), state)]
        for put, state in drawn:
            put(state)
    if changed:
        raise TypeError("it sets attributes of the module")
    if drawn:
        raise TypeError("it draws random numbers")


def _generators() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    numpy: Any = sys.modules.get("numpy")
    own: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.get_rng_state, torch.set_rng_state),
        (random.getstate, random.setstate),
    ]
    return own if numpy is None else [*own, (numpy.random.get_state, numpy.random.set_state)]


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else str(a) == str(b)  # numpy's state holds an array


def _ids(values: Any) -> list[Any]:
    return [(key, id(value)) for key, value in values.items()] if isinstance(values, dict) else [id(v) for v in values]


def _context() -> tuple[Any, ...]:
    """Return what a ``with`` block can switch and a graph cannot hold."""
    autocast = [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


class _Tracer(fx.Tracer):
    """Children are leaves; buffers are nodes, so that a forward that changes one goes on doing it."""

    proxy_buffer_attributes = True

    def __init__(self, opened: frozenset[str], takes_tensors: bool) -> None:
        super().__init__()
        self.opened = opened
        self.answer: type = Tensor if takes_tensors else list
        self.questions: set[tuple[str, int]] = set()
        self.context = _context()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise TypeError("it switches grad mode or autocast")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """A proxy that notices ``isinstance(x, Tensor)`` of the forward that is traced, which fx alone answers with no.

    DenseNet's layers take a tensor or a list: both answers are followed.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame, tracer = sys._getframe(1), self.tracer
        within_torch = str(frame.f_globals.get("__name__", "")).startswith("torch.")
        # torch's functions, which are in C and have no frame, look at the class of their arguments too
        if within_torch or "isinstance" not in frame.f_code.co_names or not isinstance(tracer, _Tracer):
            return _Proxy
        tracer.questions.add((frame.f_code.co_filename, frame.f_lineno))
        return tracer.answer


def calls(module: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Yield the graph's calls of children, each with the child."""
    for node in graph.nodes:
        if node.op == "call_module":
            yield node, module.get_submodule(str(node.target))


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward or backward hook would see what fusion changes."""
    return any(getattr(module, name) for name in sources.HOOKS)
