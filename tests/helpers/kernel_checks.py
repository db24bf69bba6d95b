"""The Triton kernels against the reference in float64, on a GPU or in the interpreter, without pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

import calibnorm as cn
from calibnorm.methods import BN, IEBN, RBN, Method
from calibnorm.ops import Call, reference
from calibnorm.ops.three_steps import StepByStep, ThreeSteps
from calibnorm.ops.triton import fused, passes
from drawn import randn
from layer_checks import both_ways, call_of, moved
from pass_checks import laid

METHODS: dict[str, Method] = {
    "bn": BN(),
    "iebn": IEBN(),
    "iebn, both": IEBN(position="both"),
    "rbn": RBN(),
    "rbn, std": RBN(center_stat="std", scale_stat="std"),
}
ENDS = ("", "residual", "relu", "residual relu")
SHAPES = (
    (64, 48),
    (37, 20, 1, 1),
    (16, 12, 11),
    (8, 24, 7, 7),
    (6, 64, 14, 14),
    (4, 33, 28, 28),
    (3, 64, 56, 56),
    (2, 8, 13, 9, 5),
    (1, 3, 512, 512),
)
TINY = ((5, 6), (3, 4, 1, 1), (3, 5, 4, 6), (1, 2, 9, 11))
"""What the interpreter gets through in a second."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HUGE = (1, 40, 7400, 7400)
"""More than 2^31 elements."""
REFERENCE = StepByStep(reference)  # type: ignore[arg-type]


class Case(NamedTuple):
    """A layer, what it is given and what follows it."""

    method: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: bool
    given: bool
    end: str
    mean: float = 0.5

    @property
    def layout(self) -> str:
        return "channels_last" if self.rows else "contiguous"

    def __str__(self) -> str:
        statistics = "running statistics" if self.given else "batch statistics"
        size = "x".join(map(str, self.shape))
        return f"{self.method} {size} {self.dtype} {self.layout} {statistics} mean {self.mean} {self.end}".rstrip()


def cases(shapes: tuple[tuple[int, ...], ...]) -> Iterator[Case]:
    """Yield every shape with each method, end, layout, dtype and kind of statistics at least once, not all products."""
    settings = list(product(DTYPES, (False, True), (False, True), ENDS))
    for number, (shape, method) in enumerate(product(shapes, METHODS)):
        for step in range(3):  # 32 settings, walked through in strides that meet all of them
            dtype, rows, given, end = settings[(3 * number + step) * 7 % len(settings)]
            yield Case(method, shape, dtype, rows, given, end)
        yield Case(method, shape, torch.float32, bool(number % 2), False, "", 1000.0)


def check(case: Case, device: torch.device) -> str | None:
    """Return what a layer gets wrong, or None."""
    draws = ((1, case.mean), (2, 0.0))
    x, dy = (laid(randn(*case.shape, seed=i, mean=m, dtype=case.dtype), case.layout).to(device) for i, m in draws)
    call = call_of(METHODS[case.method], case.shape[1], case.given, case.end, case.shape, torch.float32)
    call = moved(call, device, case.dtype, case.layout)
    found, again = (everything(fused, x, dy, call) for _ in range(2))
    if not all(torch.equal(a, b) for a, b in zip(found.values(), again.values(), strict=True)):
        return "two runs differ"
    wide = moved(call, device, torch.float64, case.layout)
    # The mask is where the output was rounded: a half output may be 0 where the wide one is not.
    masked = dy.double() * (found["y"] > 0) if call.relu else dy.double()
    expected = everything(REFERENCE, x.double(), masked, wide._replace(residual=None, relu=False))
    expected |= {"y": REFERENCE.forward(x.double(), wide).y, "d_residual": masked}
    for name, actual in found.items():
        of_pixels = name in ("y", "dx", "d_residual")
        allowed = bound(case, actual.dtype if of_pixels else torch.float32)
        value = expected[name]
        error = (actual.double() - value).abs().max() / value.abs().max().clamp_min(1e-3)
        if not error.item() <= allowed:  # NaN is wrong
            return f"{name} is off by {error.item():.1e} of its largest value where {allowed:.1e} is allowed"
    return None


def bound(case: Case, dtype: torch.dtype) -> float:
    """Return the largest error that passes, relative to the largest value.

    A rounding to the dtype, and float32's share: sums over up to 2^18 pixels, in blocks. Around a mean of 1000 x itself
    has 14 bits less.
    """
    share = 2e-5 if case.dtype != torch.float64 or dtype != torch.float64 else 1e-10
    return 2 * torch.finfo(dtype).eps + share * (1 + case.mean / 50 * (case.mean > 1))


def everything(how: ThreeSteps, x: Tensor, dy: Tensor, call: Call) -> dict[str, Tensor]:
    """Return by name all that the three steps find, forward and back."""
    residual = ["d_residual"] if call.residual is not None else []
    names = ["y", "mean", "var", "dx", *residual, *call.step.names]
    return dict(zip(names, both_ways(how, x, dy, call), strict=True))


def check_huge(device: torch.device) -> str | None:
    """Return what is wrong with the last plane of a tensor of more than 2^31 elements, or None."""
    for rows in (False, True):
        x = torch.empty(HUGE, dtype=torch.bfloat16, device=device)
        if rows:
            x = x.to(memory_format=torch.channels_last)
        x.normal_(generator=torch.Generator(device).manual_seed(1))
        m, v = passes.moments(x)
        last = x[-1:, -1:].double()
        scale, shift = torch.full_like(m, 2.0), torch.full_like(m, 0.5)
        y = passes.affine(x, m, scale, shift)[-1:, -1:].double()
        expected_m, expected_v = reference.moments(last)
        expected = reference.affine(last, expected_m, scale[-1:, -1:], shift[-1:, -1:])
        for name, a, e in (
            ("m", m[-1:, -1:], expected_m),
            ("v", v[-1:, -1:], expected_v),
            ("y", y, expected),
        ):
            error = (a - e).abs().max().item()
            if not error <= (0.05 if name == "y" else 1e-5):  # bfloat16 around 10, and float32 sums
                return f"{name} is off by {error:.1e}, {'channels_last' if rows else 'contiguous'}"
    return None


def check_graph(device: torch.device) -> str | None:  # pragma: no cover  (needs a CUDA device)
    """Return what is wrong with a training step of a layer in a CUDA graph, or None."""
    layer = cn.RBN2d(64, act="relu").to(device)
    x = torch.randn(8, 64, 14, 14, device=device, requires_grad=True)

    def step() -> Tensor:
        y: Tensor = layer(x)
        (found,) = torch.autograd.grad(y.square().sum(), x)
        return found

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        expected = [step() for _ in range(3)][-1].clone()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    (tracked,) = (buffer for name, buffer in layer.named_buffers() if name.endswith("num_batches_tracked"))
    before = tracked.clone()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize(device)
    if not torch.equal(found, expected):
        return "the gradient differs from the eager one"
    counted = tracked - before
    return None if counted == 2 else f"the running statistics moved {int(counted)} times in two replays"


def all_checks(device: torch.device, interpreted: bool) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Yield what is checked, and the check."""
    for case in cases(TINY if interpreted else SHAPES):
        yield str(case), lambda case=case: check(case, device)  # type: ignore[misc]
    if not interpreted:
        yield "a CUDA graph of a training step", lambda: check_graph(device)
        free, _ = torch.cuda.mem_get_info(device)
        if free > 24 * 2**30:
            yield f"{'x'.join(map(str, HUGE))} bfloat16", lambda: check_huge(device)
