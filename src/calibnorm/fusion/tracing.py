"""What a module's own forward does, as one torch.fx graph in which every call of a child is a node."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn


class Trace(NamedTuple):
    """A forward that can be followed."""

    graph: fx.Graph
    lists: bool
    """The forward asks for the type of its inputs, and the graph holds for lists."""


class Untraceable(Exception):
    """Why a forward cannot be followed."""


# Self, children and grad mode; each line differs from the one above in one of them, to see which of them matters.
_MODES = ((True, True, True), (True, False, True), (False, False, True), (False, False, False))


def follow(module: nn.Module) -> Trace:
    """Return the graph of a module's forward, which must be the same in every mode; the module stays as it was.

    Raises:
        Untraceable: No single graph stands for the forward.
    """
    if isinstance(module, fx.GraphModule):
        raise Untraceable("is a torch.fx graph already")
    if "forward" in vars(module):
        raise Untraceable("was replaced on the instance")
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except ValueError:
        raise Untraceable("has no signature") from None
    if any(p.default is not p.empty or p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise Untraceable("takes optional arguments")  # fx would take one that is None for a tensor
    first, *others = (_trace(module, *modes) for modes in _MODES)
    if any(_code(other) != _code(first) for other in others):
        raise Untraceable("depends on the mode")
    return first


def _code(trace: Trace) -> tuple[str, bool]:
    return trace.graph.python_code("self").src, trace.lists


def _trace(module: nn.Module, training: bool, children: bool, grad: bool) -> Trace:
    modes = {m: m.training for m in module.modules()}
    tracer = _Tracer()
    try:
        with _unchanged(module), torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracer.context = _context()
            try:
                for m in modes:
                    m.__dict__["training"] = training if m is module else children
                graph = tracer.trace(module)
            finally:
                for m, mode in modes.items():
                    m.__dict__["training"] = mode
    except Untraceable:
        raise
    except Exception as error:  # a forward may raise anything when its input is no tensor
        text = (str(error).splitlines() or [""])[0]
        raise Untraceable(f"could not be followed ({type(error).__name__}: {text[:70]})") from None
    for node in graph.nodes:
        node.type = None  # annotations, which may name what cannot be imported
    return Trace(graph, tracer.lists)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put the module and the random generators back as they were; refuse a forward that changed them."""
    held = dict(vars(module))
    inner = {name: copy.copy(value) for name, value in held.items() if isinstance(value, dict | list | set)}
    numpy: Any = sys.modules.get("numpy")
    generators: list[tuple[Any, Any]] = [
        (torch.get_rng_state, torch.set_rng_state),
        (random.getstate, random.setstate),
        *([] if numpy is None else [(numpy.random.get_state, numpy.random.set_state)]),
    ]
    states = [get() for get, _ in generators]
    try:
        yield
    finally:
        changed = _ids(vars(module)) != _ids(held) or any(_ids(held[name]) != _ids(was) for name, was in inner.items())
        if changed:
            vars(module).clear()
            vars(module).update(held)
            for name, was in inner.items():
                held[name].clear()
                (held[name].extend if isinstance(was, list) else held[name].update)(was)
        drawn = [put for (get, put), state in zip(generators, states, strict=True) if not _same(get(), state)]
        for (_, put), state in zip(generators, states, strict=True):
            put(state)
    if changed:
        raise Untraceable("sets attributes of its module")
    if drawn:
        raise Untraceable("draws random numbers")


def _ids(values: Any) -> list[Any]:
    return [(key, id(value)) for key, value in values.items()] if isinstance(values, dict) else [id(v) for v in values]


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else pickle.dumps(a) == pickle.dumps(b)  # numpy's holds an array


def _context() -> tuple[Any, ...]:
    """Return what a ``with`` block may switch and a graph cannot hold."""
    torch.autocast_increment_nesting()
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.autocast_decrement_nesting(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),  # activation checkpointing
    )


class _Tracer(fx.Tracer):
    """Children are leaves; buffers are nodes, so that a forward that changes one goes on doing it."""

    proxy_buffer_attributes = True
    lists = False
    context: tuple[Any, ...]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise Untraceable("switches grad mode, autocast or checkpointing")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        for kind in (dict, list, tuple):  # OrderedDict, say, would come back as a dict
            if issubclass(type(a), kind) and type(a) is not kind and not hasattr(a, "_fields"):
                raise Untraceable(f"passes or returns a {type(a).__name__}")
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """A proxy that notices two things that fx alone passes over in silence.

    ``x += y`` stays in place; fx makes it ``x + y``. And ``isinstance(x, Tensor)``, which fx answers with a no, is
    answered as for a list where x is an input (it is one in DenseNet's layers), and the graph is used for lists alone.
    It could not be a tensor, for torch's functions in C, which look at the class too, would take it for one.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame, tracer = sys._getframe(1), self.tracer
        if str(frame.f_globals.get("__name__", "")).startswith("torch.") or "isinstance" not in frame.f_code.co_names:
            return _Proxy
        if self.node.op != "placeholder":
            raise Untraceable("asks for the type of what it has computed")
        assert isinstance(tracer, _Tracer)
        tracer.lists = True
        return list


def _in_place(name: str) -> Any:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))
