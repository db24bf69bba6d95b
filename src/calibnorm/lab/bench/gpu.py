"""What ``benchmarks/gpu_check.py`` runs: the kernels checked and layers timed on a GPU, within a given time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import calibnorm as cn
from calibnorm.lab.bench import kernel_checks, layer, model, summary
from calibnorm.lab.bench.cases import RESNET50, RESNET164, Case, shape_name
from calibnorm.lab.bench.clock import Times, copy_bandwidth, no_collector
from calibnorm.lab.bench.config import LayerConfig, ModelConfig
from calibnorm.lab.bench.impls import BASELINE, EAGER, random_values, set_values
from calibnorm.lab.bench.table import Place, Row, rows_of, write_csv
from calibnorm.lab.environment import describe_environment
from calibnorm.ops.triton import passes

MODEL_S = 90.0
"""Left for the training steps of ResNet-50, where torchvision is there."""
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
            problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
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
    host = host_times(device, place)
    network = find_spec("torchvision") is not None
    cases, rows, kernels = list(plan()), list[Row](), {"baseline": set[str](), "calibnorm": set[str]()}
    done = 0
    for case in cases:
        if time.perf_counter() - start > seconds - (MODEL_S if network else 0.0):
            break
        found = layer.measure_case(case, list(EAGER), config, place)
        rows += found.rows
        wrong += found.wrong
        for key, kernel in zip(kernels, layer.kernels(case, device), strict=True):
            kernels[key].add(f"{kernel}: {case.dtype} {case.layout} {case.mode}")
        done += 1
        say(layer.progress(len(cases), done, case, found.rows))
    if network and time.perf_counter() - start < seconds - MODEL_S / 2:
        settings = ModelConfig("resnet50", 64, dtypes=("bfloat16",), layouts=("channels_last",), device=str(device))
        steps, failures = model.run_model(settings, place, say)
        rows += steps
        wrong += failures
    layers = [row for row in rows if row.mode != model.MODE]
    text = ["Geometric means over shapes of time over that of nn.BatchNorm2d:", "", *summary.ratio_table(layers), ""]
    text += ["Targets:", "", *summary.target_table(layers, "cuda"), "", "Host time:", ""]
    text += [f"{r.impl} {r.mode}: {1e3 * r.p50_ms:.0f} us" for r in host]
    text += [f"WRONG: {line}" for line in wrong]
    write_csv(rows, out / "gpu-layer.csv")
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


def host_times(device: torch.device, place: Place) -> list[Row]:
    """Return how long the host takes to launch a layer, forward and forward with backward, the device being idle."""
    shape = (8, 64, 8, 8)
    x = torch.randn(shape, device=device, requires_grad=True)
    times: dict[str, dict[str, Times]] = {"host, forward": {}, "host, forward+backward": {}}
    for name, impl in EAGER.items():
        module, call = impl.make(shape[1], "norm")
        set_values(module.to(device), random_values(shape[1], device))
        leaves = [x, *module.parameters()]
        forward = host_time(lambda call=call: call(x, None), device)  # type: ignore[misc]
        times["host, forward"][name] = forward

        def step(call: Any = call, leaves: list[torch.Tensor] = leaves) -> None:
            torch.autograd.grad(call(x, None), leaves, torch.ones_like(x))

        times["host, forward+backward"][name] = host_time(step, device)
    assert all(BASELINE in found for found in times.values())
    return [
        row
        for mode, found in times.items()
        for row in rows_of(found, place, ("norm", mode, shape_name(shape), "float32", "NCHW"), None)
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
