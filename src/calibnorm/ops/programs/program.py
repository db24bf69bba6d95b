"""The coefficient step of any method as a program for the kernels, forward and back, made once for a kind of call.

A program runs in stages, by turns over all numbers without instances and over blocks of instances, in which what an
instance needs stays in the caches. A sum over instances belongs to the first: it needs all of them.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibnorm.ops.programs.lowering import BY_ROWS, CODES, SUMS, Instruction, Lowering, Operand
from calibnorm.ops.programs.recording import COUNTS, Recording, Refused
from calibnorm.ops.programs.tensors import Number, Where

_LOCAL, _WHOLE, _FIXED, _NUMBER, _ROWS_IN, _FIXED_IN, _ROWS_OUT, _FIXED_OUT = range(8)
"""Where a memory lies, as ``csrc/programs.h`` counts it."""
_HEAD, _MEMORY, _STAGE = struct.Struct("8q"), struct.Struct("3qdq"), struct.Struct("3q")
_INSTRUCTION, _OPERAND = struct.Struct("6q"), struct.Struct("5q")
_NONE = Operand(0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Program:
    """Instructions, and the tensors that they take and leave, in bytes that C reads."""

    text: bytes
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of the tensors without instances that it takes."""
    outputs: tuple[tuple[int, ...], ...]
    """and of those that it leaves."""

    @functools.cached_property
    def address(self) -> int:
        """Where the bytes lie."""
        return ctypes.cast(ctypes.c_char_p(self.text), ctypes.c_void_p).value or 0


Shapes = tuple[tuple[int, ...], ...]
Function = Callable[..., Sequence[Tensor]]
"""A function of tensors with instances, (N, C), and of tensors without."""


def program_of(function: Function, rows: int, channels: int, fixed: Sequence[tuple[int, ...]]) -> Program:
    """Return the program of a function of ``rows`` tensors (N, C) and of ``fixed`` ones of these shapes.

    Raises:
        Refused: It does what programs cannot.
    """
    recordings, found = [], []
    for count in COUNTS:
        draw = torch.Generator().manual_seed(0)
        shapes = [(count, channels)] * rows + [*fixed]
        given = [0.5 + torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu") for shape in shapes]
        recording = Recording(given)
        with recording:
            results = function(*given)
        found.append([recording.place(t) for t in results])
        recordings.append(recording)
    lowered = Lowering(*recordings)
    outputs = [lowered.where(one, other) for one, other in zip(*found, strict=True)]
    return _Layout(lowered, rows, rows + len(fixed), outputs).program(fixed)


class _Layout:
    """Decides when every instruction runs and where every memory lies."""

    def __init__(self, lowered: Lowering, rows: int, given: int, outputs: Sequence[Where]) -> None:
        self.lowered = lowered
        self.kinds: dict[int, tuple[int, int]] = {}
        self.shapes: list[tuple[int, ...]] = []
        for i in range(given):
            self.kinds[i] = (_ROWS_IN, i) if i < rows else (_FIXED_IN, i - rows)
        counts = {_ROWS_OUT: 0, _FIXED_OUT: 0}
        for out in outputs:
            kind = _ROWS_OUT if any(size is None for size, _ in out.dims) else _FIXED_OUT
            self.kinds[self._own(out)] = kind, counts[kind]
            counts[kind] += 1
            if kind == _FIXED_OUT:
                self.shapes.append(tuple(size for size, _ in out.dims if size is not None))
        self._drop_unused()
        self._schedule()
        self._place()

    def _own(self, out: Where) -> int:
        """Return the memory of an output: what it has where it lies there alone and in order, else a new one."""
        lowered, fresh = self.lowered, self.lowered.new(out)
        same = out._replace(memory=fresh.memory) == fresh
        taken = {*self.kinds, *lowered.numbers}
        if same and lowered.sizes[out.memory] == lowered.sizes[fresh.memory] and out.memory not in taken:
            return out.memory
        lowered.elementwise("copy", fresh, out)
        return fresh.memory

    def _drop_unused(self) -> None:
        needed = {memory for memory, (kind, _) in self.kinds.items() if kind in (_ROWS_OUT, _FIXED_OUT)}
        kept = []
        for instruction in reversed(self.lowered.instructions):
            if instruction.to.memory in needed:
                if self.kinds.get(instruction.to.memory, (_FIXED, 0))[0] in (_ROWS_IN, _FIXED_IN):
                    raise Refused("a change of what it was given")
                kept.append(instruction)
                needed |= {operand.memory for operand in instruction.of}
        self.instructions = kept[::-1]

    def _schedule(self) -> None:
        """Give every instruction a stage: even ones without instances, odd ones over them."""
        written: dict[int, int] = {}
        read: dict[int, int] = {}
        self.stages: list[int] = []
        for instruction in self.instructions:
            to = instruction.to.memory
            over_rows = self.lowered.of_rows[to]
            after = [written.get(operand.memory, 0) for operand in instruction.of]
            stage = max([*after, written.get(to, 0), read.get(to, 0)])
            stage += stage % 2 != over_rows
            self.stages.append(stage)
            written[to] = stage
            for operand in instruction.of:
                read[operand.memory] = max(stage, read.get(operand.memory, 0))
        order = sorted(range(len(self.stages)), key=lambda i: self.stages[i])
        self.instructions = [self.instructions[i] for i in order]
        self.stages = [self.stages[i] for i in order]

    def _place(self) -> None:
        """Give every memory its kind and its place in the scratch."""
        uses: dict[int, list[int]] = {}
        for i, instruction in enumerate(self.instructions):
            for operand in (instruction.to, *instruction.of):
                uses.setdefault(operand.memory, []).append(i)
        self.local = self.whole = self.fixed = 0
        free: dict[int, list[int]] = {}
        ends: dict[int, list[tuple[int, int]]] = {}
        for memory, at in sorted(uses.items(), key=lambda item: item[1][0]):
            size = self.lowered.sizes[memory]
            if memory in self.kinds:  # of the caller
                continue
            if not self.lowered.of_rows[memory]:
                self.kinds[memory] = _NUMBER if memory in self.lowered.numbers else _FIXED, self.fixed
                self.fixed += size
            elif len({self.stages[i] for i in at}) > 1:
                self.kinds[memory] = _WHOLE, self.whole
                self.whole += size
            else:
                for over in [end for end in ends if end < at[0]]:
                    for its_size, place in ends.pop(over):
                        free.setdefault(its_size, []).append(place)
                if (dying := self._in_place(memory, uses)) is not None:
                    place = self.kinds[dying][1]
                    ends[at[0]].remove((size, place))
                elif free.get(size):
                    place = free[size].pop()
                else:
                    place, self.local = self.local, self.local + size
                self.kinds[memory] = _LOCAL, place
                ends.setdefault(at[-1], []).append((size, place))

    def _in_place(self, memory: int, uses: Mapping[int, Sequence[int]]) -> int | None:
        """Return an operand's memory that the first instruction may overwrite: it reads each number where it writes it.

        The fewer memories a unit has, the more of them the first cache holds.
        """
        at = uses[memory][0]
        i = self.instructions[at]
        if i.to.memory != memory or i.code in (*BY_ROWS, *SUMS):
            return None
        for operand in i.of:
            dying = operand.memory
            if (
                operand._replace(memory=memory) == i.to
                and self.lowered.sizes[dying] == self.lowered.sizes[memory]
                and sum(other.memory == dying for other in i.of) == 1
                and uses[dying][-1] == at
                and self.kinds[dying][0] == _LOCAL
            ):
                return dying
        return None

    def program(self, inputs: Sequence[tuple[int, ...]]) -> Program:
        """Return the program."""
        memories = sorted(self.kinds)
        index = {memory: i for i, memory in enumerate(memories)}
        stages = [[stage, self.stages.index(stage), self.stages.count(stage)] for stage in sorted(set(self.stages))]
        parts = [
            _HEAD.pack(
                len(memories), len(stages), len(self.instructions),
                self.local, self.whole, self.fixed, len(inputs), len(self.shapes),
            )
        ]  # fmt: skip
        for memory in memories:
            number = self.lowered.numbers.get(memory, Number(0.0))
            parts.append(_MEMORY.pack(*self.kinds[memory], self.lowered.sizes[memory], *number))
        parts += [_STAGE.pack(*stage) for stage in stages]
        parts += [self._packed(instruction, index) for instruction in self.instructions]
        return Program(b"".join(parts), tuple(inputs), tuple(self.shapes))

    def _packed(self, i: Instruction, index: dict[int, int]) -> bytes:
        operands = [i.to, *i.of]
        # One long row instead of many, where every operand goes on so, or is one number.
        each = i.a * i.b
        flat = i.rows and all(
            (o.row, o.a if i.a > 1 else i.b, o.b) in ((each, i.b, 1), (0, 0, 0)) or not (o.row or o.a or o.b)
            for o in operands
        )
        flat = flat and i.code not in (*SUMS, *BY_ROWS)
        head = _INSTRUCTION.pack(CODES.index(i.code), i.rows, flat, i.a, i.b, len(i.of))
        padded = [*operands, *[_NONE] * (4 - len(operands))]
        return head + b"".join(_OPERAND.pack(index.get(o.memory, 0), *o[1:]) for o in padded)
