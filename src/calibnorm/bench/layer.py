"""`calibnorm bench layer`: one case after the other."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from calibnorm.bench.cases import DTYPES, LAYOUTS, Case, shape_name
from calibnorm.bench.clock import Prepare, Run, batch_norm_kernel, clock_for, copy_bandwidth, measure
from calibnorm.bench.config import LayerConfig
from calibnorm.bench.impls import BASELINE, COMPILED, COPY, Call, compile_problem, impls, random_values, set_values
from calibnorm.bench.timings import Measured, Place, Timing, say, timings_of
from calibnorm.bench.values import expected, mismatch, outcome
from calibnorm.ops.dispatch import choose

AT_LEAST_S = 0.3
"""A case goes on so long at least: on a busy machine 20 calls of 50 us all fall into one disturbance."""


def measure_case(case: Case, names: list[str], config: LayerConfig, place: Place) -> Measured:
    """Check the values of the implementations and time those that are right."""
    device, dtype = config.torch_device, DTYPES[case.dtype]
    x, residual, dy = inputs(case, device)
    values = random_values(case.shape[1], device)
    variants: dict[str, tuple[Prepare, Run]] = {}
    references: dict[str, list[Tensor]] = {}
    wrong = []
    if any(name.startswith(COMPILED) for name in names):
        torch.compiler.reset()  # nothing of another shape's compilation
    known = impls()
    for name in names:
        if name.startswith(COMPILED) and compile_problem() is not None:
            continue
        impl = known[name]
        layer, call = impl.make(case.shape[1], case.op)
        layer.to(device)
        set_values(layer, values)
        layer.train(case.mode != "eval")
        if impl.method not in references:
            references[impl.method] = expected(impl.method, case.op, case.mode, values, x, residual, dy)
        actual = outcome(call, case.mode, x, residual, dy)
        problem = mismatch(actual, references[impl.method], dtype, relu=case.op != "norm")
        if problem is None:
            variants[name] = timed(layer, call, case.mode, x, residual, dy)
        else:
            wrong.append(f"{name}, {case}: {problem}; not timed")
    references.clear()
    if BASELINE not in variants:
        return Measured([], wrong, {})
    variants[COPY] = partial(just_written, x), x.clone
    times = measure(variants, clock_for(device), config.repeats, AT_LEAST_S)
    what = (case.op, case.mode, shape_name(case.shape), case.dtype, case.layout)
    moved = {name: 2 * x.nbytes / 1e9 if name == COPY else case.gigabytes for name in times}
    return Measured(timings_of(times, place, what, moved), wrong, {})


def inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return x, the residual where the operation has one, and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)

    def make() -> Tensor:
        wide = torch.randn(case.shape, generator=generator, device=device)
        return wide.to(DTYPES[case.dtype]).to(memory_format=LAYOUTS[case.layout])

    x, dy = make(), make()
    return x, make() if "add" in case.op else None, dy


def timed(
    layer: nn.Module, call: Call, mode: str, x: Tensor, residual: Tensor | None, dy: Tensor
) -> tuple[Prepare, Run]:
    """Return what is done before a call's clock starts, and the call."""
    if mode != "forward+backward":

        def forward() -> Tensor:
            with torch.no_grad():
                return call(x, residual)

        return partial(just_written, x, residual), forward
    # Leaves of the variant's own, on shared memory.
    leaf = x.detach().requires_grad_()
    other = None if residual is None else residual.detach().requires_grad_()
    leaves = [leaf, *([] if other is None else [other]), *layer.parameters()]

    def forget() -> None:
        for tensor in leaves:
            tensor.grad = None
        just_written(x, residual, dy)

    def step() -> None:
        call(leaf, other).backward(dy)  # type: ignore[no-untyped-call]

    return forget, step


def just_written(*tensors: Tensor | None) -> None:
    """Write the inputs, with what they hold.

    So they are in the caches as a network's layer before leaves them there, and not as the variant does that was
    measured before: one that moves more memory would slow down its neighbours.
    """
    for tensor in tensors:
        if tensor is not None:
            tensor.mul_(1)


def kernels(case: Case, device: torch.device) -> tuple[str, str]:
    """Return whose kernel nn.BatchNorm2d runs in a case, and which of this library's backends takes it."""
    x = torch.empty(case.shape, dtype=DTYPES[case.dtype], device=device, memory_format=LAYOUTS[case.layout])
    layer = nn.BatchNorm2d(case.shape[1], device=device)
    return batch_norm_kernel(layer, x, case.mode != "eval"), choose(x).name


def run_layer(config: LayerConfig, place: Place) -> Measured:
    """Measure all cases.

    Details are the bandwidth of a copy, what was skipped, and which kernels ran: for "baseline" and "calibnorm", a line
    for each name and where.
    """
    plan, device = config.plan(), config.torch_device
    bandwidth = copy_bandwidth(device)
    say(f"copying a large tensor: {bandwidth:.1f} GB/s read and written")
    for line in config.skipped():
        say(line)
    measured, ran = Measured([], [], {}), {"baseline": set[str](), "calibnorm": set[str]()}
    for number, case in enumerate(plan, 1):
        found = measure_case(case, config.names(case), config, place)
        baseline, ours = kernels(case, device)
        ran["baseline"].add(f"{baseline}: {case.dtype} {case.layout} {case.mode}")
        ran["calibnorm"].add(f"{ours}: {case.dtype} {case.layout}")
        say(progress(len(plan), number, case, found.timings))
        measured.add(found)
    kernels_ran = {key: sorted(lines) for key, lines in ran.items()}
    details = {"copy_gb_per_s": round(bandwidth, 2), "kernels": kernels_ran, "skipped": config.skipped()}
    return measured._replace(details=details)


def progress(total: int, number: int, case: Case, timings: list[Timing]) -> str:
    """Return a line about a case that is done."""
    times = "".join(f"  {t.impl} {t.ratio_to_bn:.2f}" for t in timings if t.impl != BASELINE)
    baseline = "".join(f"  {t.p50_ms:.3f} ms" for t in timings if t.impl == BASELINE)
    return f"[{number}/{total}] {case}{baseline}{times}"
