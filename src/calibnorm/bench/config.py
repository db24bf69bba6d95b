"""The settings of `calibnorm bench layer`, `model` and `inference`, checked before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from calibnorm.bench import cases
from calibnorm.bench.impls import (
    BASELINE,
    COMPILED,
    EAGER,
    FAMILY,
    PEERS,
    WITH_PEERS,
    compile_problem,
    eager,
    family,
    impls,
    timm_problem,
)
from calibnorm.bench.networks import IMAGE_SIZES
from calibnorm.errors import Setting, UsageError
from calibnorm.loading import load
from calibnorm.report.files import refuse_file

FUSED = "fused:"
NETWORK_NORMS = {BASELINE: None, "cn.BN2d": "bn", "cn.IEBN2d": "iebn", "cn.RBN2d": "rbn"}
"""Norms of the model bench and the method that cn.convert takes; None is the network as it comes."""
NETWORK_IMPLS = (*NETWORK_NORMS, *(FUSED + name for name in NETWORK_NORMS))
STEPS = {"eager": "training step", "compiled": "training step, compiled", "graph": "training step, CUDA graph"}
"""How a training step is run, and what the tables call it."""
FOLDED = "folded:"
INFERENCE_IMPLS = (*NETWORK_NORMS, *(FOLDED + name for name in NETWORK_NORMS))
RUNTIMES = {"eager": "inference", "compiled": "inference, compiled", "onnxruntime": "inference, onnxruntime"}
"""What runs a network in evaluation, and what the tables call it."""


def check_choices(setting: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError unless all that is given is known."""
    names = tuple(known)
    for name in given:
        if name not in names:
            raise UsageError(Setting(setting, name), f"is not known; choose from {', '.join(names)}")


def find_device(name: str) -> torch.device:
    """Return the device that a name stands for.

    Raises:
        UsageError: The name is unknown, or no such device is there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(Setting("device", name), "cannot be timed; choose auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        reason = f"torch sees {count} CUDA devices here; choose cpu or another device"
        raise UsageError(Setting("device", name), reason)
    return torch.device("cuda", device.index or 0)


def option(default: Any, explained: str, choices: Iterable[str] = (), least: int | None = None) -> Any:
    """Return the field of a setting: its default, what help says of it, and which values it takes."""
    return field(default=default, metadata={"help": explained, "choices": tuple(choices), "least": least})


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What all benches share; the command line is made of the settings that are declared here and below."""

    repeats: int = option(
        20, "least number of timed calls of each, at least 20; short calls of layers get up to ten times as many"
    )
    threads: int | None = option(None, "torch's CPU threads; its own choice by default", least=1)
    device: str = option("auto", "auto (CUDA where there is one), cpu, cuda or cuda:N")
    out: Path = option(  # noqa: RUF009  (a field)
        Path("runs/bench"),
        "folder for layer.csv or model-NETWORK.csv, and beside it .json (settings and environment), .html and .md (the "
        "report) and a PNG for every operation of a layer",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        for each in fields(self):
            given, choices, least = getattr(self, each.name), each.metadata["choices"], each.metadata["least"]
            for number in given if isinstance(given, tuple) else [given]:
                if least is not None and number is not None and number < least:
                    raise UsageError(Setting(each.name, number), f"must be at least {least}")
            if choices:
                check_choices(each.name, given if isinstance(given, tuple) else [given], choices)
                if each.default and not given:
                    raise UsageError(Setting(each.name), f"name at least one of {', '.join(choices)}")
        if self.repeats < 20:
            raise UsageError(Setting("repeats", self.repeats), "a median with p20 and p80 wants at least 20")
        refuse_file("out", self.out)
        find_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device that is measured."""
        return find_device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(frozen=True)
class LayerConfig(BenchConfig):
    """Times of one layer over those of nn.BatchNorm2d, on shapes of ResNets.

    The preset quick takes about a minute on two CPU cores. The preset full takes far longer: ResNet-50 at batches 8 and
    32, ResNet-164 at batch 128, tiny planes, every operation, torch.compile on a few shapes. Any of the filters
    replaces the preset's choice. Values are checked before timing.
    """

    preset: str = option("quick", "quick or full", cases.PRESETS)
    shapes: tuple[str, ...] = option((), "NxCxHxW, such as 32x64x56x56, or resnet50, resnet164, tiny")
    layouts: tuple[str, ...] = option((), "NCHW, channels_last; both by default", cases.LAYOUTS)
    dtypes: tuple[str, ...] = option(
        (), "float32, bfloat16, float16; the first two by default, on CUDA with --preset full all three", cases.DTYPES
    )
    ops: tuple[str, ...] = option((), "norm, norm+relu, norm+add+relu", cases.OPS)
    modes: tuple[str, ...] = option(
        (), "forward (training, without gradients), forward+backward, eval; all by default", cases.MODES
    )
    impls: tuple[str, ...] = option(
        (),
        "nn.BatchNorm2d (always measured), cn.IEBN2d, authors.RBN, cn.GN2d, compiled:cn.RBN2d and so on, and with a "
        "ReLU timm.BatchNormAct2d; family stands for all methods beside BN, IEBN and RBN, peers for those that torch "
        "or timm has too, and theirs: nn.GroupNorm, nn.InstanceNorm2d, timm.SEModule and so on",
    )
    load: tuple[str, ...] = option((), "modules or Python files to import first, which register methods of your own")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        load(self.load)
        check_choices("impls", self.impls, (*impls(), FAMILY, WITH_PEERS))
        super().__post_init__()
        cases.parse_shapes(self.shapes, self.torch_device.type)

    @property
    def stem(self) -> str:
        """How the files are called."""
        return "layer"

    def plan(self) -> list[cases.Case]:
        """Return the cases in their order."""
        preset = cases.PRESETS[self.preset]
        kind = self.torch_device.type
        return [
            cases.Case(op, mode, shape, dtype, layout)
            for shape in cases.parse_shapes(self.shapes or preset.shapes, kind)
            for dtype in self.dtypes or [name for name in preset.dtypes if kind == "cuda" or name != "float16"]
            for layout in self.layouts or cases.LAYOUTS
            for op in self.ops or preset.ops
            for mode in self.modes or cases.MODES
        ]

    def names(self, case: cases.Case) -> list[str]:
        """Return the implementations that are measured in a case, the baseline first."""
        if self.impls:
            wanted = {BASELINE, *self.impls, *(family() if FAMILY in self.impls else ())}
            if WITH_PEERS in self.impls:
                wanted |= {*PEERS, *(peer for peer, _ in PEERS.values())}
            return [n for n in impls() if n in wanted and timm_problem(n, case.op, case.dtype) is None]
        compiles = (
            cases.PRESETS[self.preset].compiled
            and cases.shape_name(case.shape) in cases.COMPILED
            and (case.op, case.dtype) == ("norm", "float32")
            and case.mode != "eval"
        )
        return [*eager(case.op), *(COMPILED + name for name in EAGER if compiles)]

    def skipped(self) -> list[str]:
        """Return, a line each, what was asked for and cannot run here."""
        plan = self.plan()
        wanted = {name for case in plan for name in self.names(case)}
        compiles = any(name.startswith(COMPILED) for name in wanted)
        lines = [f"skipped, compiled implementations: {why}"] if compiles and (why := compile_problem()) else []
        theirs = {*self.impls, *((peer for peer, _ in PEERS.values()) if WITH_PEERS in self.impls else ())}
        problems = [(name, timm_problem(name, case.op, case.dtype)) for name in sorted(theirs) for case in plan]
        lines += [f"skipped, {name}: {why}" for name, why in dict.fromkeys(problems) if why]
        return lines


def network_option() -> Any:
    """Return the field of the network of a bench."""
    return option(
        "resnet18",
        "resnet50 or resnet164 (the papers', for 32x32 images), which need torch alone, or a network of torchvision or "
        "timm by name, such as resnet18 or mobilenetv2_100",
    )


def size_option() -> Any:
    """Return the field of the images' size."""
    return option(None, "height and width of the images; 224 by default, 32 for resnet164", least=1)


class OfNetwork:
    """What the settings of a network's bench have beside their fields."""

    network: str
    image_size: int | None

    @property
    def pixels(self) -> int:
        """Height and width of the images."""
        return self.image_size or IMAGE_SIZES.get(self.network, 224)


@dataclass(frozen=True)
class ModelConfig(OfNetwork, BenchConfig):
    """Times of a whole training step of a network (forward, loss, backward, SGD) over those with plain BatchNorm.

    The networks start as the same function (cn.convert with preserve=True), which is checked before timing.
    """

    network: str = network_option()
    batch_size: int = option(16, "images a step", least=1)
    image_size: int | None = size_option()
    layouts: tuple[str, ...] = option(tuple(cases.LAYOUTS), "NCHW, channels_last", cases.LAYOUTS)
    dtypes: tuple[str, ...] = option(("float32",), "float32; bfloat16 and float16 run under autocast", cases.DTYPES)
    impls: tuple[str, ...] = option(
        (BASELINE, "cn.IEBN2d", "cn.RBN2d"),
        "nn.BatchNorm2d (the network as it comes, always measured), cn.BN2d, cn.IEBN2d, cn.RBN2d, and "
        "fused:nn.BatchNorm2d, fused:cn.RBN2d and so on, the same after cn.fuse",
        NETWORK_IMPLS,
    )
    modes: tuple[str, ...] = option(
        ("eager",),
        "eager, compiled (torch.compile of the network), graph (the step in a CUDA graph); each beside plain BatchNorm "
        "in the same mode",
        STEPS,
    )

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        super().__post_init__()
        if "graph" in self.modes and self.torch_device.type != "cuda":
            device = Setting("device", self.device)
            raise UsageError(Setting("modes", "graph"), "a CUDA graph needs a CUDA device, and ", device, " is none")

    @property
    def stem(self) -> str:
        """How the files are called."""
        return f"model-{self.network}"

    def names(self) -> list[str]:
        """Return the implementations that are measured, the baseline first."""
        return [name for name in NETWORK_IMPLS if name == BASELINE or name in self.impls]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**super().to_dict(), "image_size": self.pixels}


@dataclass(frozen=True)
class InferenceConfig(OfNetwork, BenchConfig):
    """Times of a network in evaluation over those with plain BatchNorm, and the images a second that they come to.

    A network is measured plain, calibrated, and folded (cn.fold with into_convolutions=True). All are the same function
    (cn.convert with preserve=True), which is checked before timing; a gate costs the same whatever it has learned.
    """

    network: str = network_option()
    batch_sizes: tuple[int, ...] = option((1, 32), "images a call, one or more numbers", least=1)
    image_size: int | None = size_option()
    layouts: tuple[str, ...] = option(("NCHW",), "NCHW, channels_last", cases.LAYOUTS)
    impls: tuple[str, ...] = option(
        ("cn.IEBN2d", "cn.RBN2d", FOLDED + BASELINE, FOLDED + "cn.IEBN2d"),
        "nn.BatchNorm2d (the network as it comes, always measured), cn.BN2d, cn.IEBN2d, cn.RBN2d, and "
        "folded:nn.BatchNorm2d, folded:cn.IEBN2d and so on, the same after cn.fold",
        INFERENCE_IMPLS,
    )
    modes: tuple[str, ...] = option(
        tuple(RUNTIMES),
        "eager, compiled (torch.compile of the network), onnxruntime (its export, on a CPU); each beside plain "
        "BatchNorm in the same mode, and left out where it is not installed",
        RUNTIMES,
    )

    @property
    def stem(self) -> str:
        """How the files are called."""
        return f"inference-{self.network}"

    def names(self) -> list[str]:
        """Return the implementations that are measured, the baseline first."""
        return [name for name in INFERENCE_IMPLS if name == BASELINE or name in self.impls]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**super().to_dict(), "image_size": self.pixels}


Config = LayerConfig | ModelConfig | InferenceConfig
