"""What this machine can do, found out without Lightning and without starting a process."""

from __future__ import annotations

from typing import Literal

import torch

from calibnorm.lab.errors import UsageError
from calibnorm.lab.recipes import Precision

Accelerator = Literal["auto", "cpu", "cuda"]
Kind = Literal["cpu", "cuda"]


def choose(wanted: Accelerator) -> Kind:
    """Return where a run trains; "auto" is a GPU where there is one.

    Raises:
        UsageError: A GPU is wanted, and there is none.
    """
    gpu = torch.cuda.is_available()
    if wanted == "cuda" and not gpu:
        raise UsageError("--accelerator cuda: torch sees no GPU here; use --accelerator cpu")
    return "cuda" if gpu and wanted != "cpu" else "cpu"


def check_precision(kind: Kind, precision: Precision) -> None:
    """Refuse arithmetic that a device has not.

    Raises:
        UsageError: It has not.
    """
    if kind == "cpu" and precision == "float16":
        raise UsageError("--precision float16: needs a GPU; on a CPU use bfloat16 or float32")
    if kind == "cuda" and precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise UsageError("--precision bfloat16: this GPU has no such arithmetic; use float16 or float32")


def check_compiler() -> None:
    """Compile something small: seconds, where a whole network takes minutes to find out.

    Raises:
        UsageError: It does not work here.
    """
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.ones(8))
    except Exception as error:  # whatever the compiler's many parts raise
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--compile: torch.compile does not work here: {reason}") from error
