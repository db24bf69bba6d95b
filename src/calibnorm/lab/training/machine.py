"""What this machine can do, found out without Lightning and without starting a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.recipes import Precision, Recipe

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


def choose(wanted: Accelerator) -> Kind:
    """Return where a run trains, "auto" being a GPU where there is one; raise UsageError for "cuda" without a GPU."""
    gpu = torch.cuda.is_available()
    if wanted == "cuda" and not gpu:
        raise UsageError(Setting("accelerator", "cuda"), "torch sees no GPU here; use ", Setting("accelerator", "cpu"))
    return "cuda" if gpu and wanted != "cpu" else "cpu"


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
