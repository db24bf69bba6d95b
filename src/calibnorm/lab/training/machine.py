"""What this machine can do, found out without Lightning and without starting a process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch.distributed import is_torchelastic_launched
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.arguments import READERS
from calibnorm.lab.data.workers import cores
from calibnorm.lab.recipes import Precision, Recipe
from calibnorm.lab.tasks import Task

Accelerator = Literal["auto", "cpu", "cuda"]
Kind = Literal["cpu", "cuda"]


def check_machine(recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse what this machine cannot do, without starting a process; seconds with ``recipe.compile``, else at once.

    Raises:
        UsageError: There is no GPU, it or the CPU has not the precision, or torch.compile does not work here.
    """
    kind = choose(accelerator)
    check_precision(kind, recipe.precision)
    if recipe.compile:
        check_compiler(kind)


def accelerator(word: str) -> Accelerator:
    """Return the accelerator that a word means; raise UsageError where it is none, with the word that was meant."""
    if word not in get_args(Accelerator):
        reason = "must be auto, cpu or cuda"
        if re.match(r"gpu|cuda|nvidia|rocm|hip", word, re.IGNORECASE):
            reason = "a GPU is called cuda here; CUDA_VISIBLE_DEVICES says which one"
        elif re.match(r"mps|metal|tpu|xla|xpu|npu", word, re.IGNORECASE):
            reason = "training runs on the CPU and on GPUs that torch calls cuda; use cpu, or auto"
        raise UsageError(Setting("accelerator", word), reason)
    return cast("Accelerator", word)


@READERS.primitive_rule
def _accelerators(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Accelerator] | None:
    if get_args(kind.type) != get_args(Accelerator):
        return None
    words = "|".join(get_args(Accelerator))
    return PrimitiveConstructorSpec(
        1, words, lambda given: accelerator(given[0]), lambda value: isinstance(value, str), lambda value: [value]
    )


def choose(wanted: Accelerator) -> Kind:
    """Return where a run trains, "auto" being a GPU where there is one.

    Raises:
        UsageError: The word is not known, or it is "cuda", and there is no GPU.
    """
    accelerator(wanted)
    gpu = torch.cuda.is_available()
    if wanted == "cuda" and not gpu:
        raise UsageError(Setting("accelerator", "cuda"), "torch sees no GPU here; use ", Setting("accelerator", "cpu"))
    return "cuda" if gpu and wanted != "cpu" else "cpu"


def check_start(task: Task[Any], accelerator: Accelerator, devices: int | None) -> None:
    """Refuse processes that this one would start, before the first of them is.

    Raises:
        UsageError: This machine has no room for so many, or they cannot share the task's batch.
    """
    if starts_others(devices):
        check_devices(devices or 1, choose(accelerator))
        task.check_processes(devices or 1)


def starts_others(devices: int | None) -> bool:
    """Return whether this process starts the others of its run: neither torchrun, srun nor one of its kind did."""
    started = is_torchelastic_launched() or started_by_srun() > 1 or "LOCAL_RANK" in os.environ
    return (devices or 1) > 1 and not started


def started_by_srun() -> int:
    """Return how many processes srun has started, of which this is one; 1 in a batch script by itself."""
    # SLURM_NTASKS, which Lightning looks at, is also set in a batch script that srun did not start.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def check_devices(count: int, kind: Kind) -> None:
    """Raise UsageError for more processes than there are GPUs or cores, or than there is memory for."""
    have, what = (torch.cuda.device_count(), "GPU") if kind == "cuda" else (cores(), "core")
    if count > have and (kind == "cuda" or starts_others(count)):
        there = f"there is 1 {what} here" if have == 1 else f"there are {have} {what}s here"
        raise UsageError(Setting("devices", count), f"{there}; choose {have} or fewer")
    if starts_others(count):
        check_memory("devices", count - 1)


def check_memory(setting: str, more: int) -> None:
    """Refuse more processes than there is memory for.

    Each takes at least what this one has to itself now, as it imports the same; its images, weights and activations
    come on top. In `calibnorm train digits-tiny --devices 2` (x86-64, 2026-11-28) that were 457 MB of RssAnon before
    the second process was started, and 517 MB in each while they trained.

    Args:
        setting: The setting that asks for them.
        more: Processes besides this one.

    Raises:
        UsageError: There is not so much memory.
    """
    each, left = own_memory(), free_memory()
    if each and left is not None and more * each > left:
        reason = f"{more} more processes take {each / 2**20:.0f} MiB of memory each at least"
        raise UsageError(Setting(setting), f"{reason}, and {left / 2**20:.0f} MiB are left; choose fewer")


def own_memory() -> int:
    """Return the bytes of memory that this process shares with no other; 0 where the system does not say."""
    return _kibibytes(Path("/proc/self/status"), "RssAnon") or 0


def free_memory() -> int | None:
    """Return the bytes of memory that processes can still have, in a container also by its limit; None if unknown."""
    found = [_kibibytes(Path("/proc/meminfo"), "MemAvailable")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min((each for each in found if each is not None), default=None)


def _kibibytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(values[0]) if values else None


def check_precision(kind: Kind, precision: Precision) -> None:
    """Raise UsageError for arithmetic that a device has not."""
    if kind == "cpu" and precision == "float16":
        raise UsageError(Setting("precision", precision), "needs a GPU; on a CPU use bfloat16 or float32")
    if kind == "cuda" and precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise UsageError(Setting("precision", precision), "this GPU has no such arithmetic; use float16 or float32")
    if precision == "tf32" and not (kind == "cuda" and torch.cuda.is_tf32_supported()):
        raise UsageError(Setting("precision", precision), "needs a GPU with such arithmetic; use float32")


@contextmanager
def convolutions(device: torch.device, precision: Precision) -> Iterator[None]:
    """Let cuDNN compute float32 convolutions in float32 while a run goes on, or in TF32 where that is the precision.

    cuDNN then also chooses algorithms that add in one order. torch's own default is TF32 (10 bits of mantissa for the
    factors), on the GPUs that have it, whatever one asks for; its matrix products are in float32 anyway.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    wanted = "tf32" if precision == "tf32" else "ieee"
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic, cudnn.benchmark
    _set_cudnn(wanted, wanted, True, False)
    try:
        yield
    finally:
        _set_cudnn(*before)


def float32_convolutions(device: torch.device) -> str | None:
    """Return how float32 convolutions are computed now, for environment.json: "ieee" or "tf32"; None on a CPU."""
    cudnn: Any = torch.backends.cudnn
    return str(cudnn.conv.fp32_precision) if device.type == "cuda" else None


def _set_cudnn(convolution: str, recurrence: str, deterministic: bool, benchmark: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    # torch has three names for the precision, and cannot read the older one where the newer two differ from it.
    cudnn.allow_tf32 = convolution == "tf32"
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = convolution, recurrence
    cudnn.deterministic, cudnn.benchmark = deterministic, benchmark


def check_compiler(kind: Kind) -> None:
    """Raise UsageError where torch.compile does not work: seconds, where a whole network takes minutes to find out."""
    device = torch.device("cpu")
    if kind == "cuda":  # each process on its own: on the first GPU all of them would take memory
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler's many parts raise
        reason = str(error).strip().splitlines()[0]
        raise UsageError(Setting("compile"), f"torch.compile does not work here: {reason}") from error
