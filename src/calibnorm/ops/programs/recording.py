"""A coefficient step written down: the torch operations of one call on (N, C) numbers, for any number of instances.

Operations are seen where torch dispatches them, so a method writes what it likes, and autograd's own derivatives are
written down like everything else. A tensor is known by its memory: views cost nothing and need no names. Everything is
recorded twice, with two numbers of instances, and what differs between the two is N: the dimension that instances
are along, and numbers such as the 1 / N of a mean. What is not understood is refused, and such a step runs in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

COUNTS = (11, 13)
"""Numbers of instances that are recorded; no tensor but those of instances has both."""


class Refused(Exception):
    """The step cannot be written down; the text says why."""


class Place(NamedTuple):
    """A tensor in memory: which memory, and where in it."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Entry(NamedTuple):
    """One operation of a recording."""

    name: str
    out: Place
    arguments: tuple[Any, ...]


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations on some given tensors, in their order.

    Attributes:
        entries: The operations but views, which are places in memory and nothing else.
        sizes: Numbers that a memory holds.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[Entry] = []
        self.sizes: list[int] = []
        self.constants: dict[int, Tensor] = {}
        self._memories: dict[int, int] = {}
        self._alive: list[Tensor] = []  # or another tensor would get the same memory
        for t in given:
            self._add(t)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its machinery, a second of imports, would be for torch.compile, under which nothing is recorded

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and write it down."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _CONSTANT:  # the only ways to a tensor from nothing
            out = func(*args, **kwargs)
            self._add(out, any_dtype=True)
            if out.numel():
                self.constants[self._memories[out.untyped_storage()._cdata]] = out.detach().clone()
            return out
        given = tuple(self._seen(a) for a in args)
        named = tuple((key, self._seen(value)) for key, value in kwargs.items() if key in _MEANT)
        out = func(*args, **kwargs)
        results = out if isinstance(out, list | tuple) else [out]
        if not all(isinstance(t, Tensor) for t in results):
            raise Refused(f"{name} returns no tensor")
        if all(t.untyped_storage()._cdata in self._memories for t in results) and not func._schema.is_mutable:
            self._alive += results
            return out  # views
        if len(results) > 1:
            raise Refused(f"{name} returns several tensors")
        self._add(out)
        self.entries.append(Entry(name, self.place(out), given + named))
        return out

    def _add(self, t: Tensor, any_dtype: bool = False) -> None:
        self._alive.append(t)
        key = t.untyped_storage()._cdata
        if key not in self._memories:
            if not any_dtype and t.dtype not in (torch.float64, torch.bool):
                raise Refused(f"{t.dtype} numbers")
            self._memories[key] = len(self.sizes)
            self.sizes.append(t.untyped_storage().nbytes() // t.element_size())

    def _seen(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            return self.place(a)
        return tuple(map(self._seen, a)) if isinstance(a, list | tuple) else a

    def place(self, t: Tensor) -> Place:
        """Return where a tensor lies."""
        memory = self._memories.get(t.untyped_storage()._cdata)
        if memory is None:
            raise Refused("a tensor from elsewhere")
        return Place(memory, int(t.storage_offset()), tuple(t.shape), t.stride())


_CONSTANT = frozenset({"scalar_tensor", "lift_fresh", "arange", "full", "ones", "zeros", "eye", "linspace"})
_MEANT = frozenset({"alpha"})
"""What keywords say beside the dtype and the device, which are one."""
