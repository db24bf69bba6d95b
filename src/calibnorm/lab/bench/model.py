"""`calibnorm bench model`: whole training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calibnorm as cn
from calibnorm.lab.bench.cases import DTYPES, LAYOUTS, shape_name
from calibnorm.lab.bench.clock import Prepare, Run, clock_for, measure
from calibnorm.lab.bench.config import NETWORK_NORMS, ModelConfig
from calibnorm.lab.bench.impls import BASELINE
from calibnorm.lab.bench.table import Place, Row, rows_of
from calibnorm.lab.errors import UsageError

MODE = "training step"


def build(name: str) -> nn.Module:
    """Return a network with random weights.

    Raises:
        UsageError: Neither torchvision nor timm has it, or neither is installed.
    """
    libraries = [library for library in ("torchvision", "timm") if find_spec(library)]
    if not libraries:
        raise UsageError(f"--network {name}: needs torchvision or timm, which are not installed")
    network: nn.Module
    if "torchvision" in libraries and name in import_module("torchvision.models").list_models():
        network = import_module("torchvision.models").get_model(name)
    elif "timm" in libraries and name in import_module("timm").list_models():
        network = import_module("timm").create_model(name)
    else:
        raise UsageError(f"--network {name}: no model of {' or '.join(libraries)} has this name; try resnet18")
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise UsageError(f"--network {name}: has no BatchNorm, so there is nothing to compare; try resnet18")
    return network


def networks(config: ModelConfig, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the same network with each norm: equal weights, equal functions at the first step."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        network, method = build(config.network), NETWORK_NORMS[name]
        if method is not None:
            network = cn.convert(network, method, preserve=True)
        found[name] = network.train()
    return found


def run_model(config: ModelConfig, place: Place, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """Time the training steps.

    Returns:
        The rows, and what was wrong where networks that should be one function were not.
    """
    build(config.network)  # before anything is timed: the name may be wrong
    rows, wrong = [], []
    for dtype in config.dtypes:
        for layout in config.layouts:
            found, problems = run_case(config, place, dtype, layout)
            rows += found
            wrong += problems
            for row in found:
                say(f"{row.op} {dtype} {layout} {row.impl}: {row.p50_ms:.1f} ms, {row.ratio_to_bn:.3f} of BN")
            for line in problems:
                say(f"WRONG VALUES: {line}")
    return rows, wrong


def run_case(config: ModelConfig, place: Place, dtype: str, layout: str) -> tuple[list[Row], list[str]]:
    """Time one dtype and layout."""
    device = config.torch_device
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator).to(device).to(memory_format=LAYOUTS[layout])
    labels = torch.randint(0, 10, (config.batch_size,), generator=generator).to(device)
    variants: dict[str, tuple[Prepare, Run]] = {}
    losses: dict[str, float] = {}
    for name, network in networks(config, config.names()).items():
        network.to(device).to(memory_format=LAYOUTS[layout])
        step = training_step(network, images, labels, dtype)
        losses[name] = step().item()
        variants[name] = ((lambda: None), step)
    first = losses[BASELINE]
    # One function in exact arithmetic; each of the layers rounds, in float32 or in the autocast dtype.
    limit = 1e-3 if dtype == "float32" else 32 * torch.finfo(DTYPES[dtype]).eps
    wrong = [
        f"{name}, {config.network} {dtype} {layout}: the first loss is {loss:.6f} instead of {first:.6f}; not timed"
        for name, loss in losses.items()
        if not abs(loss - first) <= limit * abs(first)  # so that NaN is wrong, also the baseline's
    ]
    kept = {name: variant for name, variant in variants.items() if abs(losses[name] - first) <= limit * abs(first)}
    if BASELINE not in kept:  # nothing to compare with
        return [], wrong
    times = measure(kept, clock_for(device), config.repeats)
    return rows_of(times, place, (config.network, MODE, shape_name(shape), dtype, layout), {}), wrong


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
