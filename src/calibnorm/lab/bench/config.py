"""The settings of `calibnorm bench layer` and `calibnorm bench model`, checked before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from calibnorm.errors import UsageError
from calibnorm.lab.bench import cases
from calibnorm.lab.bench.impls import (
    BASELINE,
    COMPILED,
    EAGER,
    FAMILY,
    TIMMS,
    compile_problem,
    eager,
    family,
    impls,
    load,
    timm_problem,
)
from calibnorm.lab.bench.networks import IMAGE_SIZES

FUSED = "fused:"
NETWORK_NORMS = {BASELINE: None, "cn.BN2d": "bn", "cn.IEBN2d": "iebn", "cn.RBN2d": "rbn"}
"""Norms of the model bench and the method that cn.convert takes; None is the network as it comes."""
NETWORK_IMPLS = (*NETWORK_NORMS, *(FUSED + name for name in NETWORK_NORMS))
STEPS = {"eager": "training step", "compiled": "training step, compiled", "graph": "training step, CUDA graph"}
"""How a training step is run, and what the tables call it."""


def check_choices(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError unless all that is given is known."""
    names = tuple(known)
    for name in given:
        if name not in names:
            raise UsageError(f"--{option} {name}: is not known; choose from {', '.join(names)}")


def check_measurement(repeats: int, threads: int | None, device: str, out: Path) -> None:
    """Raise UsageError where the settings that both benches share cannot be used."""
    if repeats < 20:
        raise UsageError(f"--repeats {repeats}: a median with p20 and p80 wants at least 20")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: must be at least 1")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder")
    find_device(device)


def find_device(name: str) -> torch.device:
    """Return the device that a name stands for.

    Raises:
        UsageError: The name is unknown, or no such device is there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: cannot be timed; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: torch sees {count} CUDA devices here; choose cpu or another device")
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


@dataclass(frozen=True)
class LayerConfig:
    """Times of one layer over those of nn.BatchNorm2d, on shapes of ResNets.

    The preset quick takes about a minute on two CPU cores. The preset full takes far longer: ResNet-50 at batches 8 and
    32, ResNet-164 at batch 128, tiny planes, every operation, torch.compile on a few shapes. Any of the filters
    replaces the preset's choice. Values are checked before timing.
    """

    preset: str = "quick"
    """quick or full."""
    shapes: tuple[str, ...] = ()
    """NxCxHxW, such as 32x64x56x56, or resnet50, resnet164, tiny."""
    layouts: tuple[str, ...] = ()
    """NCHW, channels_last; both by default."""
    dtypes: tuple[str, ...] = ()
    """float32, bfloat16, float16; the first two by default, on CUDA with --preset full all three."""
    ops: tuple[str, ...] = ()
    """norm, norm+relu, norm+add+relu."""
    modes: tuple[str, ...] = ()
    """forward (training, without gradients), forward+backward, eval; all by default."""
    impls: tuple[str, ...] = ()
    """nn.BatchNorm2d (always measured), cn.IEBN2d, authors.RBN, cn.GN2d, compiled:cn.RBN2d and so on, and with a ReLU
    timm.BatchNormAct2d; family stands for all methods beside BN, IEBN and RBN."""
    load: tuple[str, ...] = ()
    """Modules or Python files to import first, which register methods of your own."""
    repeats: int = 20
    """Least number of timed calls of each implementation, at least 20; short calls get up to ten times as many."""
    threads: int | None = None
    """torch's CPU threads; its own choice by default."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    out: Path = Path("benchmarks/results")
    """Folder for layer.csv, layer.json (settings and environment), layer.md (summary) and a PNG for every operation."""

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        check_choices("preset", [self.preset], cases.PRESETS)
        check_choices("layouts", self.layouts, cases.LAYOUTS)
        check_choices("dtypes", self.dtypes, cases.DTYPES)
        check_choices("ops", self.ops, cases.OPS)
        check_choices("modes", self.modes, cases.MODES)
        load(self.load)
        check_choices("impls", self.impls, (*impls(), FAMILY))
        check_measurement(self.repeats, self.threads, self.device, self.out)
        cases.parse_shapes(self.shapes, self.torch_device.type)

    @property
    def torch_device(self) -> torch.device:
        """The device that is measured."""
        return find_device(self.device)

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
            for dtype in self.dtypes or preset.dtypes[kind]
            for layout in self.layouts or cases.LAYOUTS
            for op in self.ops or preset.ops
            for mode in self.modes or cases.MODES
        ]

    def names(self, case: cases.Case) -> list[str]:
        """Return the implementations that are measured in a case, the baseline first."""
        if self.impls:
            wanted = {BASELINE, *self.impls, *(family() if FAMILY in self.impls else ())}
            return [name for name in impls() if name in wanted and timm_problem(name, case.op) is None]
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
        if TIMMS in self.impls:
            reasons = [timm_problem(TIMMS, op) for op in dict.fromkeys(case.op for case in plan)]
            lines += [f"skipped, {TIMMS}: {why}" for why in dict.fromkeys(reasons) if why]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(frozen=True)
class ModelConfig:
    """Times of a whole training step of a network (forward, loss, backward, SGD) over those with plain BatchNorm.

    The networks start as the same function (cn.convert with preserve=True), which is checked before timing.
    """

    network: str = "resnet18"
    """resnet50 or resnet164 (the papers', for 32x32 images), which need torch alone, or a network of torchvision or
    timm by name, such as resnet18 or mobilenetv2_100."""
    batch_size: int = 16
    """Images a step."""
    image_size: int | None = None
    """Height and width of the images; by default 224, and 32 for resnet164."""
    layouts: tuple[str, ...] = ("NCHW", "channels_last")
    """NCHW, channels_last."""
    dtypes: tuple[str, ...] = ("float32",)
    """float32; bfloat16 and float16 run under autocast."""
    impls: tuple[str, ...] = ("nn.BatchNorm2d", "cn.IEBN2d", "cn.RBN2d")
    """nn.BatchNorm2d (the network as it comes, always measured), cn.BN2d, cn.IEBN2d, cn.RBN2d, and
    fused:nn.BatchNorm2d, fused:cn.RBN2d and so on, the same after cn.fuse."""
    modes: tuple[str, ...] = ("eager",)
    """eager, compiled (torch.compile of the network), graph (the step in a CUDA graph); each beside plain BatchNorm in
    the same mode."""
    repeats: int = 20
    """Timed steps of each network, at least 20."""
    threads: int | None = None
    """torch's CPU threads; its own choice by default."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    out: Path = Path("benchmarks/results")
    """Folder for model-NETWORK.csv, .json and .md."""

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        for name in ("batch_size", "image_size"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise UsageError(f"--{name.replace('_', '-')} {given}: must be at least 1")
        choices: dict[str, Iterable[str]] = {
            "layouts": cases.LAYOUTS,
            "dtypes": cases.DTYPES,
            "impls": NETWORK_IMPLS,
            "modes": STEPS,
        }
        for option, known in choices.items():
            given = getattr(self, option)
            check_choices(option, given, known)
            if not given:
                raise UsageError(f"--{option}: name at least one of {', '.join(known)}")
        check_measurement(self.repeats, self.threads, self.device, self.out)
        if "graph" in self.modes and self.torch_device.type != "cuda":
            raise UsageError(f"--modes graph: a CUDA graph needs a CUDA device, and --device {self.device} is none")

    @property
    def torch_device(self) -> torch.device:
        """The device that is measured."""
        return find_device(self.device)

    @property
    def pixels(self) -> int:
        """Height and width of the images."""
        return self.image_size or IMAGE_SIZES.get(self.network, 224)

    @property
    def stem(self) -> str:
        """How the files are called."""
        return f"model-{self.network}"

    def names(self) -> list[str]:
        """Return the implementations that are measured, the baseline first."""
        return [name for name in NETWORK_IMPLS if name == BASELINE or name in self.impls]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {**asdict(self), "image_size": self.pixels, "out": str(self.out)}
