"""Everything about the GPU kernels in one command and under eight minutes: build, check, time, write.

    PYTHONPATH=src python benchmarks/gpu_check.py

needs torch 2.11 or newer, its triton, and this repository; nothing is installed. The kernels are compiled by Triton as
they are first used. Values of all of them are checked against the reference in float64, by
tests/helpers/kernel_checks.py; then layers are timed against nn.BatchNorm2d and the authors' formulations, the most
telling cases first, until the time is over; then the host's time to launch a layer; then training steps of ResNet-50
and ResNet-164, the latter also in a CUDA graph. gpu-layer.csv, .json and .md and gpu-host.csv in runs/bench, or where
--out says, carry the card's name.

With TRITON_INTERPRET=1 and no GPU it rehearses: the checks on tiny shapes, no times.

The exit status is 0; 1 where values are wrong; 2 where there is no GPU that the kernels run on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import calibnorm as cn
from calibnorm.bench import layer, model, summary
from calibnorm.bench.cases import RESNET50, RESNET164, Case, shape_name
from calibnorm.bench.clock import Times, copy_bandwidth, no_collector
from calibnorm.bench.config import FUSED, LayerConfig, ModelConfig
from calibnorm.bench.impls import BASELINE, COMPILED, EAGER, Call, compile_problem, eager, random_values, set_values
from calibnorm.bench.timings import Place, Timing, say, timings_of, write_timings
from calibnorm.ops.triton import passes
from calibnorm.report import markdown, screen
from calibnorm.report.document import Bullets, Document, Paragraph, Section
from calibnorm.report.environment import describe_environment
from calibnorm.report.files import write_json

sys.path += [str(Path(__file__).parents[1] / "tests" / part) for part in ("", "helpers")]

from targets import target_table

import kernel_checks

MODEL_S = 120.0
"""Left for the training steps of ResNet-164 and ResNet-50."""
COMPILE_S = 60.0
"""What torch.compile of three layers may take."""
HOST_CALLS = 200


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the tables (%(default)s)")
    parser.add_argument("--seconds", type=float, default=450.0, help="stop timing after so long (default: 450)")
    options = parser.parse_args()
    return run(options.out, options.seconds)


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


def check_kernels(device: torch.device, interpreted: bool) -> list[str]:
    """Return a line for every check that failed."""
    start, wrong, count = time.perf_counter(), [], 0
    for name, check in kernel_checks.all_checks(device, interpreted):
        count += 1
        try:
            problem = check()
        except Exception as error:  # a kernel that does not compile or launch must not hide what the others do
            problem = described(error)
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
    place, config = Place.here(device), LayerConfig(device=str(device))
    bandwidth = copy_bandwidth(device, 512)
    say(f"{place.device}: copying a large tensor, {bandwidth:.0f} GB/s read and written")
    host = host_times(device, place, wrong)
    cases, timings, kernels = list(plan()), list[Timing](), {"baseline": set[str](), "calibnorm": set[str]()}
    done, compiled_timings, steps = 0, list[Timing](), list[Timing]()

    def left() -> float:
        return seconds - (time.perf_counter() - start)

    for case in cases:
        if left() < COMPILE_S + MODEL_S:
            break
        found = measure(case, eager(case.op), config, place, wrong)
        timings += found
        for key, kernel in zip(kernels, layer.kernels(case, device), strict=True):
            kernels[key].add(f"{kernel}: {case.dtype} {case.layout} {case.mode}")
        done += 1
        say(layer.progress(len(cases), done, case, found))
    if left() > COMPILE_S / 2:
        compiled_timings = compiled(config, place, wrong)
    for settings in networks(device):
        if left() > MODEL_S / 4:
            steps += training_steps(settings, place, wrong)
    report = Document(
        "benchmarks/gpu_check.py",
        [
            Section("Geometric means over shapes of time over that of nn.BatchNorm2d", [summary.ratio_table(timings)]),
            Section("Targets", [target_table(timings, "cuda")]),
            Section("Host time", [Bullets([f"{t.impl} {t.mode}: {1e3 * t.p50_ms:.0f} us" for t in host])]),
            Section("Under torch.compile, over eager nn.BatchNorm2d", [summary.ratio_table(compiled_timings)]),
            Section("Training steps", [summary.model_table(steps)]),
            Section("What is wrong", [Bullets([f"WRONG: {line}" for line in wrong], wrong=True)]),
            Section("Made with", [Paragraph(str(place))]),
        ],
    )
    write_timings(out / "gpu-layer.csv", [*timings, *compiled_timings, *steps])
    write_timings(out / "gpu-host.csv", host)
    details = {
        "command": report.title,
        "environment": {**describe_environment(), "device": place.device},
        "copy_gb_per_s": round(bandwidth, 1),
        "kernels": {key: sorted(lines) for key, lines in kernels.items()},
        "cases": f"{done} of {len(cases)}",
        "wrong_values": wrong,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "gpu-layer.json", details)
    markdown.write(report, out / "gpu-layer.md")
    screen.show(report)
    say(f"written: {out}/gpu-layer.csv, .json, .md and gpu-host.csv")
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


def training_steps(settings: ModelConfig, place: Place, wrong: list[str]) -> list[Timing]:
    """Return the timings of a network; what goes wrong joins ``wrong``, and does not end the run."""
    try:
        found = model.run_model(settings, place)
    except Exception as error:
        wrong.append(f"{settings.network} {' '.join(settings.modes)}: {described(error)}")
        return []
    wrong += found.wrong
    return found.timings


def compiled(config: LayerConfig, place: Place, wrong: list[str]) -> list[Timing]:
    """Return the timings of the layers under torch.compile in one case, beside the eager baseline."""
    if (why := compile_problem()) is not None:
        say(f"skipped, compiled implementations: {why}")
        return []
    case = Case("norm", "forward+backward", (64, 256, 56, 56), "bfloat16", "channels_last")
    names = [BASELINE, *(COMPILED + name for name in (BASELINE, "cn.IEBN2d", "cn.RBN2d"))]
    found = measure(case, names, config, place, wrong)
    say(layer.progress(1, 1, case, found))
    return found


def measure(case: Case, names: list[str], config: LayerConfig, place: Place, wrong: list[str]) -> list[Timing]:
    """Return the timings of a case; what goes wrong joins ``wrong``, and does not end the run."""
    try:
        found = layer.measure_case(case, names, config, place)
    except torch.OutOfMemoryError:
        say(f"skipped, {case}: the device has not enough memory")
        return []
    except Exception as error:
        wrong.append(f"{case}: {described(error)}")
        return []
    wrong += found.wrong
    return found.timings


def described(error: Exception) -> str:
    """Return what an error is, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def host_times(device: torch.device, place: Place, wrong: list[str]) -> list[Timing]:
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
            wrong.append(f"host time of {name}: {described(error)}")
            continue
        for found, of in zip(times.values(), both, strict=True):
            found[name] = of
    return [
        timing
        for mode, found in times.items()
        for timing in timings_of(found, place, ("norm", mode, shape_name(shape), "float32", "NCHW"), {})
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


if __name__ == "__main__":
    sys.exit(main())
