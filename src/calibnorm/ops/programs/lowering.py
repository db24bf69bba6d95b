"""From recorded torch operations to instructions for the kernels: what each operation is in their terms.

An instruction computes ``to = code(from, ...)`` over the instances (where it has some) and at most two more dimensions,
with a stride of every operand along each. Broadcasting is a stride of 0; so is, of ``to``, a dimension that is summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from calibnorm.ops.programs.recording import COUNTS, Entry, Place, Recording, Refused
from calibnorm.ops.programs.rules import RULES
from calibnorm.ops.programs.tensors import Number, Where

CODES = (
    "copy", "add", "sub", "mul", "div", "maximum", "minimum", "where", "sum", "product_sum",
    "neg", "abs", "sign", "square", "cube", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sigmoid", "tanh", "pow",
    "sigmoid_backward", "tanh_backward", "softmax", "softmax_backward",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
    "exp_minus_1", "log_plus_1", "sin", "cos", "erf",
)  # fmt: skip
"""The instructions, in the order of ``csrc/programs.h``."""


class Operand(NamedTuple):
    """An operand of an instruction: its memory, its first number, and strides: of instances, then two more."""

    memory: int
    offset: int
    row: int
    a: int
    b: int


class Instruction(NamedTuple):
    """``to = code(*of)`` over instances, where ``rows``, and A by B numbers each."""

    code: str
    rows: bool
    a: int
    b: int
    to: Operand
    of: tuple[Operand, ...]


class Lowering:
    """Two recordings of a step as one list of instructions."""

    def __init__(self, first: Recording, second: Recording) -> None:
        if len(first.entries) != len(second.entries) or first.constants.keys() != second.constants.keys():
            raise Refused("what is computed depends on the number of instances")
        self.sizes: list[int] = []
        self.of_rows: list[bool] = []
        for sizes in zip(first.sizes, second.sizes, strict=True):
            self._memory(sizes)
        self.numbers: dict[int, Number] = {}
        self.instructions: list[Instruction] = []
        for memory, t in first.constants.items():
            self._constant(memory, t.double().flatten().tolist(), second.constants[memory].double().flatten().tolist())
        for one, other in zip(first.entries, second.entries, strict=True):
            self._lower(one, other)

    def _memory(self, sizes: tuple[int, int]) -> int:
        one, other = sizes
        rows = one != other
        if rows and (one * COUNTS[1] != other * COUNTS[0] or one % COUNTS[0]):
            raise Refused("memory that is not so many numbers an instance")
        self.sizes.append(one // COUNTS[0] if rows else one)
        self.of_rows.append(rows)
        return len(self.sizes) - 1

    def _constant(self, memory: int, one: list[float], other: list[float]) -> None:
        if len(set(one)) > 1 or len(set(other)) > 1:
            raise Refused("a constant of several numbers")
        to = self.whole(memory)
        self.elementwise("copy", to, self.number(both(one[0], other[0])))

    def whole(self, memory: int) -> Where:
        """Return all of a memory as a tensor of one dimension, or two with instances."""
        size = self.sizes[memory]
        return Where(memory, 0, ((None, size), (size, 1)) if self.of_rows[memory] else ((size, 1),))

    def new(self, like: Where) -> Where:
        """Return memory for a tensor of another's shape."""
        sizes, stride = [], 1
        for size, _ in reversed(like.dims):
            if size is not None:
                sizes.append((size, stride))
                stride *= size
        rows = any(size is None for size, _ in like.dims)
        self.sizes.append(stride)
        self.of_rows.append(rows)
        inner = iter(reversed(sizes))
        dims = tuple((None, stride) if size is None else next(inner) for size, _ in like.dims)
        return Where(len(self.sizes) - 1, 0, dims)

    def number(self, value: Number | float) -> Where:
        """Return a number as a tensor."""
        number = value if isinstance(value, Number) else Number(float(value))
        for memory, known in self.numbers.items():
            if known == number:
                return Where(memory, 0, ())
        memory = self._memory((1, 1))
        self.numbers[memory] = number
        return Where(memory, 0, ())

    def where(self, one: Place, other: Place) -> Where:
        """Return where a tensor lies, from its places in both recordings."""
        if one.memory != other.memory or one.offset != other.offset or len(one.shape) != len(other.shape):
            raise Refused("tensors of different places")
        memory, rows = one.memory, self.of_rows[one.memory]
        dims: list[tuple[int | None, int]] = []
        for n1, n2, s1, s2 in zip(one.shape, other.shape, one.strides, other.strides, strict=True):
            if n1 == n2:
                dims.append((n1, 0 if n1 == 1 else s1))
            elif (n1, n2) == COUNTS:
                dims.append((None, s1))
            else:
                raise Refused("a dimension that depends on the number of instances")
            if s1 != s2 and n1 != 1:
                raise Refused("a stride that depends on the number of instances")
        of_instances = [stride for size, stride in dims if size is None]
        last = one.offset + sum((size - 1) * stride for size, stride in dims if size)
        if of_instances[1:] or (rows and (of_instances != [self.sizes[memory]] or last >= self.sizes[memory])):
            raise Refused("instances that meet in another way than by a sum")
        if not rows and any(of_instances):
            raise Refused("numbers of instances that depend on no instance")
        return Where(memory, one.offset, tuple(dims))

    def _lower(self, one: Entry, other: Entry) -> None:
        name = one.name
        lower = RULES.get(name.removesuffix("_"))
        if lower is None or name != other.name or len(one.arguments) != len(other.arguments):
            raise Refused(f"the operation {name}")
        out = self.where(one.out, other.out)
        arguments = [self._argument(a, b) for a, b in zip(one.arguments, other.arguments, strict=True)]
        lower(self, out, *arguments)

    def _argument(self, one: Any, other: Any) -> Any:
        if isinstance(one, Place):
            return self.where(one, other)
        if isinstance(one, tuple):
            return tuple(self._argument(a, b) for a, b in zip(one, other, strict=True))
        return both(one, other)

    def elementwise(self, code: str, out: Where, *of: Where | Number | float) -> None:
        """Compute over out's shape, to which the rest is broadcast."""
        operands = [t if isinstance(t, Where) else self.number(t) for t in of]
        rank = len(out.dims)
        strides = [[0] * (rank - len(t.dims)) + [s if n != 1 else 0 for n, s in t.dims] for t in operands]
        self.emit(
            code, [size for size, _ in out.dims], (out, [s for _, s in out.dims]), *zip(operands, strides, strict=True)
        )

    def emit(
        self,
        code: str,
        domain: Sequence[int | None],
        to: tuple[Where, Sequence[int]],
        *of: tuple[Where, Sequence[int]],
    ) -> None:
        """Add an instruction over a domain; every operand comes with its strides along that."""
        tensors = (to, *of)
        if 0 in domain:
            return
        kept: list[tuple[int, list[int]]] = []
        row = [0] * len(tensors)
        for i, size in enumerate(domain):
            strides = [t[1][i] for t in tensors]
            if size is None:
                row = strides
            elif size > 1:
                if (
                    kept
                    and all(a == b * size for a, b in zip(kept[-1][1], strides, strict=True))
                    and code not in BY_ROWS
                ):
                    kept[-1] = (kept[-1][0] * size, strides)
                else:
                    kept.append((size, strides))
        if len(kept) > 2:
            raise Refused("an operation over more than two dimensions")
        none = (1, [0] * len(tensors))
        (a, along_a), (b, along_b) = [*[none] * (2 - len(kept)), *kept]
        if b < SHORT <= a and code not in BY_ROWS:
            (a, along_a), (b, along_b) = (b, along_b), (a, along_a)
        operands = [
            Operand(t[0].memory, t[0].offset, *strides)
            for t, *strides in zip(tensors, row, along_a, along_b, strict=True)
        ]
        self.instructions.append(Instruction(code, None in domain, a, b, operands[0], tuple(operands[1:])))


SHORT = 8
"""A loop of fewer numbers costs more than its numbers: the longer one is the inner one."""
SUMS = ("sum", "product_sum")
"""Instructions that add to what is there."""
BY_ROWS = ("softmax", "softmax_backward")
"""Instructions over whole rows of B numbers, so that B stays what it is."""


def both(one: Any, other: Any) -> Any:
    """Return an argument from both recordings: a number that differs is one times a power of N."""
    if one == other or (one != one and other != other):
        return one
    if isinstance(one, int | float) and isinstance(other, int | float):
        for power in (1, -1):
            value = one / COUNTS[0] ** power
            if math.isclose(value * COUNTS[1] ** power, other, rel_tol=1e-15):
                return Number(value, power)
    raise Refused(f"{one} with {COUNTS[0]} instances and {other} with {COUNTS[1]}")
