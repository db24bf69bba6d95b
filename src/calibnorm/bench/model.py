"""`calibnorm bench model`: whole training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.bench.cases import DTYPES, LAYOUTS, shape_name
from calibnorm.bench.clock import WARMUP, Prepare, Run, clock_for, measure
from calibnorm.bench.config import FUSED, NETWORK_NORMS, STEPS, ModelConfig
from calibnorm.bench.impls import BASELINE, compile_problem
from calibnorm.bench.networks import NETWORKS
from calibnorm.bench.timings import Measured, Place, say, timings_of
from calibnorm.errors import Setting, UsageError


def build(name: str) -> nn.Module:
    """Return a network with random weights.

    Raises:
        UsageError: It is none of ours, and neither torchvision nor timm has it, or neither is installed.
    """
    if name in NETWORKS:
        return NETWORKS[name]()
    libraries = [library for library in ("torchvision", "timm") if find_spec(library)]
    if not libraries:
        ours = " and ".join(NETWORKS)
        raise UsageError(Setting("network", name), f"needs torchvision or timm, which are not installed; {ours} do not")
    network: nn.Module
    if "torchvision" in libraries and name in import_module("torchvision.models").list_models():
        network = import_module("torchvision.models").get_model(name)
    elif "timm" in libraries and name in import_module("timm").list_models():
        network = import_module("timm").create_model(name)
    else:
        raise UsageError(Setting("network", name), f"no model of {' or '.join(libraries)} has this name; try resnet18")
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise UsageError(Setting("network", name), "has no BatchNorm, so there is nothing to compare; try resnet18")
    return network


def check(config: ModelConfig) -> None:
    """Say what cn.fuse finds in the network, where fused networks are asked for.

    Raises:
        UsageError: There is no such network, or nothing in it can be fused.
    """
    network = build(config.network)
    fused = [name for name in config.names() if name.startswith(FUSED)]
    if fused:
        texts: list[str] = []
        cn.fuse(network, report=texts.append)
        if ", fused: " not in texts[0]:
            raise UsageError(Setting("impls", fused[0]), f"cn.fuse finds nothing in {config.network}; leave it out")
        say(f"cn.fuse, {config.network}: {texts[0].splitlines()[0]}")


def networks(config: ModelConfig, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the same network with each norm: equal weights, equal functions at the first step."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        network, method = build(config.network), NETWORK_NORMS[name.removeprefix(FUSED)]
        if method is not None:
            network = cn.convert(network, method, preserve=True)
        if name.startswith(FUSED):
            network = cn.fuse(network)
        found[name] = network.train()
    return found


def run_model(config: ModelConfig, place: Place) -> Measured:
    """Time the training steps; wrong is where networks that should be one function were not."""
    check(config)  # before anything is timed: the name may be wrong
    measured = Measured([], [], {})
    for mode in config.modes:
        if mode == "compiled" and (why := compile_problem()) is not None:
            say(f"skipped, compiled networks: {why}")
            continue
        for dtype, layout in product(config.dtypes, config.layouts):
            found = run_case(config, place, dtype, layout, mode)
            for t in found.timings:
                say(f"{t.op} {t.mode} {dtype} {layout} {t.impl}: {t.p50_ms:.1f} ms, {t.ratio_to_bn:.3f} of BN")
            measured.add(found)
    return measured


def run_case(config: ModelConfig, place: Place, dtype: str, layout: str, mode: str = "eager") -> Measured:
    """Time one dtype and layout in one mode."""
    device = config.torch_device
    shape = (config.batch_size, 3, config.pixels, config.pixels)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator).to(device).to(memory_format=LAYOUTS[layout])
    labels = torch.randint(0, 10, (config.batch_size,), generator=generator).to(device)
    if mode == "compiled":
        torch.compiler.reset()  # nothing of another case's compilation
    variants: dict[str, tuple[Prepare, Run]] = {}
    losses: dict[str, float] = {}
    for name, network in networks(config, config.names()).items():
        network.to(device).to(memory_format=LAYOUTS[layout])
        if mode == "compiled":
            network.compile(dynamic=False)
        step = training_step(network, images, labels, dtype)
        if mode == "graph":
            step = captured(step, network)
        losses[name] = step().item()
        variants[name] = ((lambda: None), step)
    # One function in exact arithmetic; each of the layers rounds, in float32 or in the autocast dtype.
    limit = 1e-3 if dtype == "float32" else 32 * torch.finfo(DTYPES[dtype]).eps
    problems = {name: unlike(name, losses, limit) for name in losses}
    what = f"{config.network} {dtype} {layout}" + (f" {mode}" if mode != "eager" else "")
    wrong = [f"{name}, {what}: {problem}; not timed" for name, problem in problems.items() if problem]
    kept = {name: variant for name, variant in variants.items() if not problems[name]}
    if BASELINE not in kept:  # nothing to compare with
        return Measured([], wrong, {})
    times = measure(kept, clock_for(device, peaks=True), config.repeats)
    if mode == "graph":
        for of in times.values():
            of.peak_mib = None  # a graph's memory is taken when it is captured, and none in a replay
    case = (config.network, STEPS[mode], shape_name(shape), dtype, layout)
    return Measured(timings_of(times, place, case, {}), wrong, {})


def unlike(name: str, losses: dict[str, float], limit: float) -> str:
    """Return how the first loss differs from plain BatchNorm's, or a fused network's from the unfused one's, or ""."""
    loss = losses[name]
    for other in (BASELINE, name.removeprefix(FUSED)):
        expected = losses.get(other, losses[BASELINE])
        if not abs(loss - expected) <= limit * abs(expected):  # so that NaN is wrong, also the baseline's
            return f"the first loss is {loss:.6f} instead of {expected:.6f}"
    return ""


def training_step(network: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Callable[[], Tensor]:
    """Return a step of SGD with momentum, that gives the loss.

    The learning rate is small: after a hundred steps on one batch nothing must have overflowed, which would change
    times.
    """
    optimizer = torch.optim.SGD(cn.param_groups(network, weight_decay=1e-4), lr=1e-4, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def captured(step: Callable[[], Tensor], network: nn.Module) -> Callable[[], Tensor]:  # pragma: no cover  (needs CUDA)
    """Return the step as a CUDA graph, the network being as it was: the first replay gives the first loss.

    The warm-up that a capture needs moves weights and statistics. They are put back in place, where the graph reads
    them; the optimizer's momentum, which no forward reads, is not. Could not be run where it was written.
    """
    start = [(tensor, tensor.clone()) for tensor in network.state_dict().values()]
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for tensor, value in start:
        tensor.copy_(value)

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
