"""What ``benchmarks/gpu_check.py`` runs: the kernels checked and layers timed on a GPU, within a given time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import calibnorm as cn
from calibnorm.lab.bench import kernel_checks, layer, model, summary
from calibnorm.lab.bench.cases import RESNET50, RESNET164, Case, shape_name
from calibnorm.lab.bench.clock import Times, copy_bandwidth, no_collector
from calibnorm.lab.bench.config import FUSED, LayerConfig, ModelConfig
from calibnorm.lab.bench.impls import BASELINE, COMPILED, EAGER, Call, compile_problem, eager, random_values, set_values
from calibnorm.lab.bench.table import Place, Row, rows_of, write_csv
from calibnorm.ops.triton import passes
from calibnorm.report.environment import describe_environment

MODEL_S = 120.0
"""Left for the training steps of ResNet-164 and ResNet-50."""
COMPILE_S = 60.0
"""What torch.compile of three layers may take."""
HOST_CALLS = 200


def run(out: Path, seconds: float) -> int:
    """Check, time and write.

    Returns:
        The exit status: 0, 1 for wrong values, 2 where the kernels do not run.
    """
    start = time.perf_counter()
    why, interpreted = passes.unavailable(), passes.interpreted()
    if why is None and not interpreted:
        why = passes.refuses(torch.empty(1, 1, device="cuda"))
    if why is not None:
        print(f"gpu_check: the kernels do not run here: {why}; nothing was checked or timed", file=sys.stderr)
        return 2
    device = torch.device("cpu") if interpreted else torch.device("cuda", torch.cuda.current_device())
    say(f"triton backend: {cn.backends()['triton']}, torch {torch.__version__}")
    wrong = check_kernels(device, interpreted)
    if interpreted:
        say("a rehearsal in Triton's interpreter: no times, nothing was written")
        return 1 if wrong else 0
    return time_layers(device, out, start, seconds, wrong)


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def check_kernels(device: torch.device, interpreted: bool) -> list[str]:
    """Return a line for every check that failed."""
    start, wrong, count = time.perf_counter(), [], 0
    for name, check in kernel_checks.all_checks(device, interpreted):
        count += 1
        try:
            problem = check()
        except Exception as error:  # a kernel that does not compile or launch must not hide what the others do
            problem = f"{type(error).__name__}: {first_line(error)}"
        if problem is not None:
            wrong.append(f"{name}: {problem}")
            say(f"WRONG: {wrong[-1]}")
    took = time.perf_counter() - start
    say(f"{count - len(wrong)} of {count} checks passed, kernels built on the way, {took:.0f} s")
    return wrong


def plan() -> Iterator[Case]:
    """Yield what is timed, the cases that say most about the targets first: a run may end before the last."""
    shapes = [(64, c, s, s) for c, s in RESNET50]
    for dtype, layout in (
        ("bfloat16", "channels_last"),
        ("bfloat16", "NCHW"),
        ("float32", "NCHW"),
        ("float32", "channels_last"),
        ("float16", "channels_last"),
    ):
        for op in ("norm", "norm+relu", "norm+add+relu") if dtype == "bfloat16" else ("norm",):
            yield from (Case(op, "forward+backward", shape, dtype, layout) for shape in shapes)
    for layout in ("channels_last", "NCHW"):
        yield from (Case("norm", "eval", shape, "bfloat16", layout) for shape in shapes)
        yield from (Case("norm", "forward+backward", (256, c, s, s), "bfloat16", layout) for c, s in RESNET50)
        yield from (Case("norm", "forward+backward", (128, c, s, s), "float32", layout) for c, s in RESNET164)
        yield from (Case("norm", "forward", shape, "bfloat16", layout) for shape in shapes)


def time_layers(device: torch.device, out: Path, start: float, seconds: float, wrong: list[str]) -> int:
    """Time what there is time for, and write it."""
    out.mkdir(parents=True, exist_ok=True)
    place, config = Place.here(device), LayerConfig(device=str(device))
    bandwidth = copy_bandwidth(device, 512)
    say(f"{place.device}: copying a large tensor, {bandwidth:.0f} GB/s read and written")
    host = host_times(device, place, wrong)
    cases, rows, kernels = list(plan()), list[Row](), {"baseline": set[str](), "calibnorm": set[str]()}
    done, compiled_rows, steps = 0, list[Row](), list[Row]()

    def left() -> float:
        return seconds - (time.perf_counter() - start)

    for case in cases:
        if left() < COMPILE_S + MODEL_S:
            break
        found = measure(case, eager(case.op), config, place, wrong)
        rows += found
        for key, kernel in zip(kernels, layer.kernels(case, device), strict=True):
            kernels[key].add(f"{kernel}: {case.dtype} {case.layout} {case.mode}")
        done += 1
        say(layer.progress(len(cases), done, case, found))
    if left() > COMPILE_S / 2:
        compiled_rows = compiled(config, place, wrong)
    for settings in networks(device):
        if left() > MODEL_S / 4:
            steps += training_steps(settings, place, wrong)
    text = ["Geometric means over shapes of time over that of nn.BatchNorm2d:", "", *summary.ratio_table(rows), ""]
    text += ["Targets:", "", *summary.target_table(rows, "cuda"), "", "Host time:", ""]
    text += [f"{r.impl} {r.mode}: {1e3 * r.p50_ms:.0f} us" for r in host]
    if compiled_rows:
        text += ["", "Under torch.compile, over eager nn.BatchNorm2d:", "", *summary.ratio_table(compiled_rows)]
    if steps:
        text += ["", *summary.model_table(steps)]
    text += [f"WRONG: {line}" for line in wrong]
    write_csv([*rows, *compiled_rows, *steps], out / "gpu-layer.csv")
    write_csv(host, out / "gpu-host.csv")
    details: dict[str, Any] = {
        "command": "benchmarks/gpu_check.py",
        "environment": {**describe_environment(), "device": place.device},
        "copy_gb_per_s": round(bandwidth, 1),
        "kernels": {key: sorted(lines) for key, lines in kernels.items()},
        "cases": f"{done} of {len(cases)}",
        "wrong_values": wrong,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "gpu-layer.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    (out / "gpu-layer.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    for line in (*text, f"written: {out}/gpu-layer.csv, .json, .md and gpu-host.csv"):
        say(line)
    return 1 if wrong else 0


def networks(device: torch.device) -> list[ModelConfig]:
    """Return the training steps that are timed, one run each, so that what fails in one leaves the others.

    ResNet-50 as it is trained on GPUs, ResNet-164 as in the papers. The CUDA graphs come last: a capture that fails can
    leave a device unusable.
    """
    impls = ("cn.IEBN2d", "cn.RBN2d", *(FUSED + name for name in (BASELINE, "cn.IEBN2d", "cn.RBN2d")))
    small = ModelConfig("resnet164", 128, layouts=("NCHW",), impls=impls, device=str(device))
    large = ModelConfig("resnet50", 64, None, ("channels_last",), ("bfloat16",), impls, device=str(device))
    return [large, small, *([replace(small, modes=("graph",))] if device.type == "cuda" else [])]


def training_steps(settings: ModelConfig, place: Place, wrong: list[str]) -> list[Row]:
    """Return the rows of a network; what goes wrong joins ``wrong``, and does not end the run."""
    try:
        rows, failures = model.run_model(settings, place, say)
    except Exception as error:
        wrong.append(f"{settings.network} {' '.join(settings.modes)}: {type(error).__name__}: {first_line(error)}")
        return []
    wrong += failures
    return rows


def compiled(config: LayerConfig, place: Place, wrong: list[str]) -> list[Row]:
    """Return the rows of the layers under torch.compile in one case, beside the eager baseline."""
    if (why := compile_problem()) is not None:
        say(f"skipped, compiled implementations: {why}")
        return []
    case = Case("norm", "forward+backward", (64, 256, 56, 56), "bfloat16", "channels_last")
    names = [BASELINE, *(COMPILED + name for name in (BASELINE, "cn.IEBN2d", "cn.RBN2d"))]
    rows = measure(case, names, config, place, wrong)
    say(layer.progress(1, 1, case, rows))
    return rows


def measure(case: Case, names: list[str], config: LayerConfig, place: Place, wrong: list[str]) -> list[Row]:
    """Return the rows of a case; what goes wrong joins ``wrong``, and does not end the run."""
    try:
        found = layer.measure_case(case, names, config, place)
    except torch.OutOfMemoryError:
        say(f"skipped, {case}: the device has not enough memory")
        return []
    except Exception as error:
        wrong.append(f"{case}: {type(error).__name__}: {first_line(error)}")
        return []
    wrong += found.wrong
    return found.rows


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def host_times(device: torch.device, place: Place, wrong: list[str]) -> list[Row]:
    """Return how long the host takes to launch a layer, forward and forward with backward, the device being idle."""
    shape = (8, 64, 8, 8)
    x = torch.randn(shape, device=device, requires_grad=True)
    times: dict[str, dict[str, Times]] = {"host, forward": {}, "host, forward+backward": {}}
    for name, impl in EAGER.items():
        module, call = impl.make(shape[1], "norm")
        set_values(module.to(device), random_values(shape[1], device))
        leaves = [x, *module.parameters()]

        def forward(call: Call = call) -> Tensor:
            return call(x, None)

        def step(call: Call = call, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(call(x, None), leaves, torch.ones_like(x))

        try:
            both = host_time(forward, device), host_time(step, device)
        except Exception as error:
            wrong.append(f"host time of {name}: {type(error).__name__}: {first_line(error)}")
            continue
        for found, of in zip(times.values(), both, strict=True):
            found[name] = of
    return [
        row
        for mode, found in times.items()
        for row in rows_of(found, place, ("norm", mode, shape_name(shape), "float32", "NCHW"), {})
    ]


def host_time(run: Callable[[], object], device: torch.device) -> Times:
    """Return the times until a call returns; what it launched is waited for after each."""
    found = Times()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    with no_collector():
        for number in range(HOST_CALLS + 20):
            wait(device)
            begin = time.perf_counter()
            run()
            if number >= 20:
                found.ms.append(1e3 * (time.perf_counter() - begin))
    return found
