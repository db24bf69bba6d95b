"""`calibnorm bench inference`: a network in evaluation, plain, calibrated and folded, in all that runs it here."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.bench.cases import LAYOUTS, shape_name
from calibnorm.bench.clock import Prepare, Run, clock_for, measure
from calibnorm.bench.config import FOLDED, NETWORK_NORMS, RUNTIMES, InferenceConfig
from calibnorm.bench.impls import BASELINE, compile_problem
from calibnorm.bench.model import build
from calibnorm.bench.timings import Measured, Place, say, timings_of

LIMIT = 1e-3
"""Of the largest output: networks that are one function may differ by so much, in float32."""
Answer = Callable[[], Tensor]


def networks(config: InferenceConfig, names: Sequence[str], images: Tensor) -> dict[str, nn.Module]:
    """Return the same function in evaluation with each norm; folded networks have no norm left where that can be."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        network, method = build(config.network), NETWORK_NORMS[name.removeprefix(FOLDED)]
        if method is not None:
            network = cn.convert(network, method, preserve=True)
        network.eval()
        if name.startswith(FOLDED):
            texts: list[str] = []
            network = cn.fold(network, images, tolerance=0, into_convolutions=True, report=texts.append)
            say(f"cn.fold, {name}: {next(line for line in texts[0].splitlines() if 'convolution before' in line)}")
        found[name] = network
    return found


def run_inference(config: InferenceConfig, place: Place) -> Measured:
    """Time the networks; wrong is where networks that should be one function were not."""
    build(config.network)  # before anything is timed: the name may be wrong
    measured, device = Measured([], [], {}), config.torch_device
    for mode in config.modes:
        if why := problem(mode, device):
            say(f"skipped, {mode}: {why}")
            continue
        for size, layout in product(config.batch_sizes, config.layouts):
            found = run_case(config, place, size, layout, mode)
            for t in found.timings:
                say(f"{t.op} {t.mode} {t.shape} {layout} {t.impl}: {t.p50_ms:.2f} ms, {t.ratio_to_bn:.3f} of BN")
            measured.add(found)
    return measured


def problem(mode: str, device: torch.device) -> str | None:
    """Return why networks cannot be run so here, or None."""
    if mode == "compiled":
        return compile_problem()
    if mode == "onnxruntime":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if missing:
            return f"needs {', '.join(missing)}, which is not installed"
        return None if device.type == "cpu" else "is timed on CPUs alone; choose --device cpu"
    return None


@torch.no_grad()
def run_case(config: InferenceConfig, place: Place, size: int, layout: str, mode: str) -> Measured:
    """Time one batch size and layout in one mode."""
    device, shape = config.torch_device, (size, 3, config.pixels, config.pixels)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=draw).to(device).to(memory_format=LAYOUTS[layout])
    calibration = torch.randn((4, *shape[1:]), generator=draw)
    if mode == "compiled":
        torch.compiler.reset()  # nothing of another case's compilation
    variants: dict[str, tuple[Prepare, Run]] = {}
    wrong: list[str] = []
    expected: Tensor | None = None
    for name, network in networks(config, config.names(), calibration).items():
        answer = runner(network.to(device).to(memory_format=LAYOUTS[layout]), images, mode, config.threads)
        output = answer()
        expected = output if expected is None else expected  # the baseline's, which is the first
        apart = ((output - expected).abs().max() / expected.abs().max()).item()
        if apart <= LIMIT:  # so that NaN is wrong
            variants[name] = ((lambda: None), answer)
        else:
            where = f"{config.network} {mode} {shape_name(shape)} {layout}"
            wrong.append(f"{name}, {where}: the output differs by {apart:.2g} of the largest; not timed")
    if BASELINE not in variants:  # nothing to compare with
        return Measured([], wrong, {})
    times = measure(variants, clock_for(device), config.repeats)
    case = (config.network, RUNTIMES[mode], shape_name(shape), "float32", layout)
    return Measured(timings_of(times, place, case, {}), wrong, {})


def runner(network: nn.Module, images: Tensor, mode: str, threads: int | None) -> Answer:
    """Return the call that gives the network's output."""
    if mode == "onnxruntime":
        return exported(network, images, threads)
    if mode == "compiled":
        network.compile(dynamic=False)

    def answer() -> Tensor:
        with torch.inference_mode():
            output: Tensor = network(images)
        return output

    return answer


def exported(network: nn.Module, images: Tensor, threads: int | None) -> Answer:
    """Return the call of the network in onnxruntime, with its optimizations on and torch's number of threads."""
    with contextlib.redirect_stdout(io.StringIO()):  # torch's exporter tells its steps
        program: Any = torch.onnx.export(network, (images,), dynamo=True)
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = runtime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])
