"""The whole layer of any method in one C call a direction, by the programs of its coefficient step.

A program is made at the first call of its kind, and compared once with what it was recorded from, on other numbers and
another number of instances. Where there is none, the layer runs step by step.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from calibnorm.ops import programs
from calibnorm.ops.coefficients import Call, Step
from calibnorm.ops.cpu import ghosts, passes
from calibnorm.ops.cpu.passes import CODES, address, library, ran, wide
from calibnorm.ops.inputs import dense, in_two_layouts, like
from calibnorm.ops.programs import Program, Shapes
from calibnorm.ops.statistics import WholeBatch
from calibnorm.ops.three_steps import Gradients, Normalized, StepByStep, Wanted

STEP_BY_STEP = StepByStep(passes)
_JOB = "4q4i9P"
"""``cn_traced_job`` of ``csrc/programs.h``, without its tensors."""
_NO_STATISTICS = (torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64))
_OTHER_COUNT, _CLOSE = 5, 1e-10


def forward(x: Tensor, call: Call) -> Normalized:
    """Return y, the moments where a backward may want them, and the statistics used."""
    program = _coefficients(x, call) if x.numel() else None
    if program is None:
        return _without(call).forward(x, call)
    x, rows = dense(x)
    n, c, *_ = x.shape
    y, residual = torch.empty_like(x), like(call.residual, x)
    moments = None
    if torch.is_grad_enabled() and x.numel() != n * c:
        moments = torch.empty((2, n, c), dtype=torch.float64, device=x.device)
    given = call.statistics or ()
    tensors, narrow = _alike((*call.tensors, *given))
    statistics = given or tuple([torch.empty(shape, dtype=torch.float64, device=x.device) for shape in program.outputs])
    job = _job(
        x, rows, call.relu, narrow, 0, moments, (program, None), (x, residual, None, y, None),
        [*map(address, tensors), *map(address, () if given else statistics)],
    )  # fmt: skip
    ran(library().traced_forward(job))
    mean, var = statistics or _NO_STATISTICS
    return Normalized(y, moments, (mean, var))


def backward(dy: Tensor, x: Tensor, moments: Tensor | None, call: Call, wanted: Wanted) -> Gradients:
    """Return the gradients in two passes over pixels."""
    known = _statistics(call) or call.step.reduction is None  # as autograd has it, but for whoever calls by hand
    program = _vjp(x, call) if x.numel() and known else None
    coefficients = _coefficients(x, call) if call.relu else None
    if program is None or (call.relu and coefficients is None):
        return _without(call).backward(dy, x, moments, call, wanted)
    x, rows = dense(x)
    d_x, dy_x, residual = torch.empty_like(x) if wanted.x else None, like(dy, x), like(call.residual, x)
    masked = None if residual is None else torch.empty_like(x)
    statistics, found_statistics = call.statistics or (), () if call.statistics else _statistics(call)
    tensors, narrow = _alike((*call.tensors, *statistics))
    found = [torch.empty_like(t) if want else None for t, want in zip(tensors, wanted.tensors, strict=False)]
    job = _job(
        x, rows, call.relu, narrow, len(found_statistics), moments, (coefficients, program),
        (x, residual, dy_x, d_x, masked), [*map(address, (*tensors, *found_statistics, *found))],
    )  # fmt: skip
    ran(library().traced_backward(job))
    if not narrow:
        found = [None if g is None else g.to(t.dtype) for g, t in zip(found, call.tensors, strict=True)]
    return Gradients(d_x, (dy if masked is None else masked) if wanted.residual else None, found)


def prepared(x: Tensor, call: Call) -> Callable[[Tensor, Tensor | None, bool], Tensor] | None:
    """Return the forward of a layer in evaluation, without gradients, or None where it has no program.

    See :func:`calibnorm.ops.cpu.fused.prepared`.
    """
    program, tensors = _coefficients(x, call), (*call.tensors, *(call.statistics or ()))
    if program is None or not (call.statistics or not program.outputs):
        return None
    places = struct.pack(f"{len(tensors)}P", *map(address, tensors))

    def run(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        x, rows = dense(in_two_layouts(x))
        y, residual = torch.empty_like(x), like(residual, x)
        job = _job(x, rows, relu, True, 0, None, (program, None), (x, residual, None, y, None), ()) + places
        ran(library().traced_forward(job))
        return y

    return run


def _without(call: Call) -> StepByStep:
    """Return what runs a layer that has no program."""
    return ghosts.LAYERS if ghosts.takes(call) else STEP_BY_STEP


def _alike(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], bool]:
    """Return tensors as C reads them, in a row and all in one dtype, and whether that is float32, not float64."""
    for t in tensors:
        if t.dtype is not torch.float32 or not t.is_contiguous() or t.is_neg():
            return [*map(wide, tensors)], False
    return tensors, True


def _job(
    x: Tensor,
    rows: bool,
    relu: bool,
    narrow: bool,
    wide: int,
    moments: Tensor | None,
    pair: tuple[Program | None, Program | None],
    pixels: Sequence[Tensor | None],
    tensors: Sequence[int],
) -> bytes:
    n, c, *_ = x.shape
    m = v = 0
    if moments is not None:
        m = moments.data_ptr()
        v = m + 8 * n * c
    of_programs = [0 if program is None else program.address for program in pair]
    return struct.pack(
        f"{_JOB}{len(tensors)}P",
        n, c, x.numel() // (n * c), wide, CODES[x.dtype], rows, relu, narrow,
        m, v, *of_programs, *map(address, pixels), *tensors,
    )  # fmt: skip


def _coefficients(x: Tensor, call: Call) -> Program | None:
    """Return the program of the coefficients, of this call's statistics where it has some."""
    statistics = _statistics(call)
    shapes = tuple([t.shape for t in call.tensors])
    return _made(call.step, x.shape[1], shapes, tuple([t.shape for t in statistics]), bool(statistics), 2)


def _vjp(x: Tensor, call: Call) -> Program | None:
    """Return the program of the gradients."""
    shapes = tuple([t.shape for t in call.tensors])
    statistics = tuple([t.shape for t in _statistics(call)])
    return _made(call.step, x.shape[1], shapes, statistics, call.statistics is not None, 4)


def _statistics(call: Call) -> Sequence[Tensor]:
    """Return the given statistics, or those that forward found, if the method uses any."""
    found = call.statistics or call.found
    return found if found is not None and found[0].numel() else ()


@functools.lru_cache(maxsize=1024)
def _made(step: Step, channels: int, shapes: Shapes, statistics: Shapes, given: bool, rows: int) -> Program | None:
    """Return the program of a kind of call, or None where there is none: of gradients, where ``rows`` is 4."""
    if not given and not (step.reduction is None or isinstance(step.reduction, WholeBatch)):
        return None  # ghost batches are as many as the instances make
    make = programs.gradients if rows == 4 else programs.coefficients
    return made(make(step, len(shapes), given), rows, channels, (*shapes, *statistics))


def made(function: programs.Function, rows: int, channels: int, fixed: Shapes) -> Program | None:
    """Return the program of a function of ``rows`` tensors (N, C) and of fixed ones, or None where there is none."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            program = programs.program_of(function, rows, channels, fixed)
        except Exception:  # refused, or the method fails: on real numbers, step by step, it may say so itself
            return None
        return program if _agrees(program, function, rows, channels) else None


def _agrees(program: Program, function: programs.Function, rows: int, channels: int) -> bool:
    """Whether a program finds what the function does of numbers that neither has met."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(_OTHER_COUNT, channels)] * rows + [*program.inputs]
    given = [0.25 + torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu") for shape in shapes]
    expected = function(*given)
    found = run(program, given, len(expected) - len(program.outputs))
    return all(_close(ours, theirs.double()) for ours, theirs in zip(found, expected, strict=True))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are one, whatever their order of additions."""
    if not ours.numel():
        return True
    size = theirs.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(ours, theirs, rtol=0.0, atol=_CLOSE * max(1.0, size), equal_nan=True)


def run(program: Program, given: Sequence[Tensor], rows_out: int) -> list[Tensor]:
    """Run a program by itself, on contiguous float64 tensors; so many of its results are (N, C)."""
    n, c = given[0].shape
    shapes = [(n, c)] * rows_out + [*program.outputs]
    found = [given[0].new_empty(shape) for shape in shapes]
    text = struct.pack(f"{len(given) + len(found)}P", *map(address, (*given, *found)))
    ran(library().program(program.address, n, c, len(given) - len(program.inputs), rows_out, text))
    return found
