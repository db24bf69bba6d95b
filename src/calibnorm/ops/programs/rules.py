"""What each of torch's operations is in instructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from calibnorm.ops.programs.recording import Refused
from calibnorm.ops.programs.tensors import Number, Where

if TYPE_CHECKING:
    from calibnorm.ops.programs.lowering import Lowering

Rule = Callable[..., None]


def _same(code: str, count: int) -> Rule:
    """The operation of a name that the kernels have too, of so many tensors."""

    def rule(to: Lowering, out: Where, *of: Any) -> None:
        to.elementwise(code, out, *of[:count])

    return rule


def _with_alpha(code: str) -> Rule:
    def rule(to: Lowering, out: Where, x: Any, y: Any, alpha: Any = ("alpha", 1)) -> None:
        if alpha[1] != 1:
            scaled = to.new(out)
            to.elementwise("mul", scaled, y, alpha[1])
            y = scaled
        to.elementwise(code, out, x, y)

    return rule


def _divided(to: Lowering, out: Where, x: Any, y: Any, *_: Any) -> None:
    if isinstance(y, int | float) and math.frexp(y)[0] == 0.5:  # the reciprocal of a power of 2 is exact
        to.elementwise("mul", out, x, 1.0 / y)
    else:
        to.elementwise("div", out, x, y)


def _power(to: Lowering, out: Where, x: Where, exponent: Any) -> None:
    simple = {1: "copy", 2: "square", 3: "cube", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if exponent in simple:
        to.elementwise(simple[exponent], out, x)
    else:
        to.elementwise("pow", out, x, exponent)


def _sum(to: Lowering, out: Where, x: Where, dims: Any = None, keep: Any = False, _: Any = None) -> None:
    _reduce(to, out, x, dims, keep)


def _mean(to: Lowering, out: Where, x: Where, dims: Any = None, keep: Any = False, _: Any = None) -> None:
    sizes = _reduce(to, out, x, dims, keep)
    to.elementwise("mul", out, out, Number(1.0 / math.prod(n for n in sizes if n is not None), -sizes.count(None)))


def _reduce(to: Lowering, out: Where, x: Where, dims: Any, keep: bool) -> list[int | None]:
    """Sum; return the sizes of what was summed."""
    rank = len(x.dims)
    gone = {d % rank for d in dims} if dims else set(range(rank))
    left = iter(out.dims)
    strides = []
    for i in range(rank):
        stride = next(left)[1] if keep or i not in gone else 0
        strides.append(0 if i in gone else stride)
    to.elementwise("copy", out, 0.0)
    to.emit("sum", [n for n, _ in x.dims], (out, strides), (x, [s for _, s in x.dims]))
    return [x.dims[i][0] for i in gone]


def _matrix(to: Lowering, out: Where, x: Where, y: Where) -> None:
    """``x @ y``: products summed over the dimension in the middle, the instances' or another."""
    (p, xp), (q, xq) = x.dims
    (_, yq), (m, ym) = y.dims
    if [p, q, m].count(None) != 1 or m is None:
        raise Refused("a product of matrices without instances")
    domain: list[tuple[int | None, int, int, int]] = [
        (p, out.dims[0][1], xp, 0), (q, 0, xq, yq), (m, out.dims[1][1], 0, ym)
    ]  # fmt: skip
    # Neighbours in memory last: of y, or where its rows are far apart of both x and y.
    domain.sort(key=lambda dim: (dim[0] is not None, dim[3] == 1))
    to.elementwise("copy", out, 0.0)
    sizes, *strides = zip(*domain, strict=True)
    to.emit("product_sum", sizes, *zip((out, x, y), strides, strict=True))


def _concatenated(to: Lowering, out: Where, parts: Sequence[Where], dim: Any = 0) -> None:
    at = 0
    for part in parts:
        size = part.dims[dim][0]
        if size is None:
            raise Refused("instances behind each other")
        to.elementwise("copy", _slice(out, dim, at, size), part)
        at += size


def _stacked(to: Lowering, out: Where, parts: Sequence[Where], dim: int = 0) -> None:
    for i, part in enumerate(parts):
        to.elementwise("copy", _selected(out, dim, i), part)


def _selected(t: Where, dim: int, index: int) -> Where:
    dim %= len(t.dims)
    size, stride = t.dims[dim]
    if size is None:
        raise Refused("one instance")
    return Where(t.memory, t.offset + index % size * stride, (*t.dims[:dim], *t.dims[dim + 1 :]))


def _slice(t: Where, dim: int, start: int, size: int) -> Where:
    dim %= len(t.dims)
    stride = t.dims[dim][1]
    dims = (*t.dims[:dim], (size, stride), *t.dims[dim + 1 :])
    return Where(t.memory, t.offset + start * stride, dims)


def _slice_backward(to: Lowering, out: Where, d: Where, _: Any, dim: int, start: int, end: int, step: int) -> None:
    size, stride = out.dims[dim]
    to.elementwise("copy", out, 0.0)
    if size is None:
        if (start, step) != (0, 1) or d.dims[dim][0] is not None:
            raise Refused("some instances")
        to.elementwise("copy", out, d)
        return
    dims = (*out.dims[:dim], (d.dims[dim][0], stride * step), *out.dims[dim + 1 :])
    to.elementwise("copy", Where(out.memory, out.offset + start * stride, dims), d)


def _select_backward(to: Lowering, out: Where, d: Where, _: Any, dim: int, index: int) -> None:
    to.elementwise("copy", out, 0.0)
    to.elementwise("copy", _selected(out, dim, index), d)


def _clamp(to: Lowering, out: Where, x: Where, low: Any = None, high: Any = None) -> None:
    if low is not None:
        to.elementwise("maximum", out, x, low)
        x = out
    if high is not None:
        to.elementwise("minimum", out, x, high)


def _threshold_backward(to: Lowering, out: Where, d: Where, x: Where, threshold: Any) -> None:
    passed = to.new(out)
    to.elementwise("le", passed, x, threshold)
    to.elementwise("where", out, passed, 0.0, d)


def _masked_fill(to: Lowering, out: Where, x: Where, mask: Where, value: Any) -> None:
    to.elementwise("where", out, mask, value, x)


def _softmax(code: str, count: int) -> Rule:
    def rule(to: Lowering, out: Where, *arguments: Any) -> None:
        of, dim = arguments[:count], arguments[count]
        if dim % len(out.dims) != len(out.dims) - 1 or out.dims[-1][0] is None:
            raise Refused("a softmax over another dimension than the last")
        to.elementwise(code, out, *of)

    return rule


def _filled(value: float) -> Rule:
    def rule(to: Lowering, out: Where, *_: Any) -> None:
        to.elementwise("copy", out, value)

    return rule


def _full(to: Lowering, out: Where, *arguments: Any) -> None:
    to.elementwise("copy", out, arguments[-1])


def _nothing(to: Lowering, out: Where, *_: Any) -> None:
    """New memory, which others write."""


_UNARY = (
    "neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sigmoid", "tanh", "sin", "cos", "erf"
)  # fmt: skip
RULES: dict[str, Rule] = {
    **{name: _same(name, 1) for name in _UNARY},
    **{name: _same(name, 2) for name in ("mul", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _same(name, 2) for name in ("sigmoid_backward", "tanh_backward")},
    **{f"logical_{name}": _same(name, count) for name, count in (("and", 2), ("or", 2), ("not", 1))},
    **{f"bitwise_{name}": _same(name, count) for name, count in (("and", 2), ("or", 2), ("not", 1))},
    "sgn": _same("sign", 1), "sign": _same("sign", 1),
    "expm1": _same("exp_minus_1", 1), "log1p": _same("log_plus_1", 1),
    "add": _with_alpha("add"), "sub": _with_alpha("sub"),
    "rsub": lambda to, out, x, y: to.elementwise("sub", out, y, x),
    "pow": _power, "div": _divided, "sum": _sum, "mean": _mean, "mm": _matrix, "cat": _concatenated, "stack": _stacked,
    "slice_backward": _slice_backward, "select_backward": _select_backward,
    "clamp": _clamp, "clamp_min": _clamp,
    "clamp_max": lambda to, out, x, high: to.elementwise("minimum", out, x, high),
    "relu": lambda to, out, x: to.elementwise("maximum", out, x, 0.0),
    "threshold_backward": _threshold_backward, "masked_fill": _masked_fill, "where": _same("where", 3),
    "_softmax": _softmax("softmax", 1), "_softmax_backward_data": _softmax("softmax_backward", 2),
    "clone": _same("copy", 1), "_to_copy": _same("copy", 1), "detach": _same("copy", 1),
    "copy": lambda to, out, _, x, *__: to.elementwise("copy", out, x),
    "zeros_like": _filled(0.0), "new_zeros": _filled(0.0), "zero": _filled(0.0),
    "ones_like": _filled(1.0), "new_ones": _filled(1.0),
    "full_like": _full, "new_full": _full, "fill": _full,
    "empty_like": _nothing, "new_empty": _nothing, "empty": _nothing, "new_empty_strided": _nothing,
}  # fmt: skip
"""By the name of torch's operation, without the underscore of the one in place."""
