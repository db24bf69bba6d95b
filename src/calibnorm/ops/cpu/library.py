"""The shared library of CPU kernels: found, checked and started once, or the reason why not."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from calibnorm.ops.cpu import build

_INT, _LONG, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_SHAPE = [_INT, _INT, _LONG, _LONG, _LONG]  # dtype, rows, N, C, S

INSTRUCTION_SETS = ("base", "avx2", "avx512")


class Library:
    """The C functions of ``csrc/entry.c``, with their argument types set."""

    def __init__(self, path: Path, sources: str, limit: str | None = None) -> None:
        library = ctypes.CDLL(str(path))
        library.calibnorm_sources.restype = ctypes.c_char_p
        built_from = library.calibnorm_sources().decode()
        if built_from != sources:
            raise OSError("it was built from other sources; run `python -m calibnorm.ops.build`")
        start = library.calibnorm_start
        start.argtypes, start.restype = [_POINTER, ctypes.c_char_p], ctypes.c_char_p
        pool = _parallel_for()
        self.threads = "torch's threads" if pool else "one thread"
        self.instructions: str = start(pool, limit.encode() if limit else None).decode()
        self.moments = library.calibnorm_moments
        self.moments.argtypes = [*_SHAPE, *[_POINTER] * 3]
        self.affine = library.calibnorm_affine
        self.affine.argtypes = [*_SHAPE, *[_POINTER] * 5, _INT, _POINTER]
        self.gradient_sums = library.calibnorm_gradient_sums
        self.gradient_sums.argtypes = [*_SHAPE, *[_POINTER] * 6, _INT, *[_POINTER] * 3]
        self.gradient_apply = library.calibnorm_gradient_apply
        self.gradient_apply.argtypes = [*_SHAPE, *[_POINTER] * 7, _INT, _POINTER]
        self.coefficients = library.calibnorm_coefficients
        self.coefficients_vjp = library.calibnorm_coefficients_vjp
        self.update_running = library.calibnorm_update_running
        for function in (self.coefficients, self.coefficients_vjp, self.update_running):
            function.argtypes, function.restype = [ctypes.c_char_p], None
        self.forward = library.calibnorm_forward
        self.backward = library.calibnorm_backward
        self.traced_forward = library.calibnorm_traced_forward
        self.traced_backward = library.calibnorm_traced_backward
        for function in (self.forward, self.backward, self.traced_forward, self.traced_backward):
            function.argtypes = [ctypes.c_char_p]
        self.program = library.calibnorm_program
        self.program.argtypes = [_POINTER, *[_LONG] * 4, ctypes.c_char_p]


def _parallel_for() -> int | None:
    """Return the address of torch_parallel_for, a C symbol of libtorch_cpu since torch 2.10, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            try:
                return ctypes.cast(ctypes.CDLL(str(folder / name)).torch_parallel_for, _POINTER).value
            except (OSError, AttributeError):
                return None
    return None


@functools.cache
def load() -> Library | str:
    """Return the library, or why there is none.

    ``CALIBNORM_CPU=avx2`` (or ``base``) leaves wider vectors unused; ``CALIBNORM_LIBRARY`` names another file, such as
    one built with a sanitizer.
    """
    path = Path(os.environ.get("CALIBNORM_LIBRARY") or build.SOURCES / build.LIBRARY)
    limit = os.environ.get("CALIBNORM_CPU")
    if limit is not None and limit not in INSTRUCTION_SETS:
        return f"CALIBNORM_CPU={limit!r} is not known; choose one of {', '.join(INSTRUCTION_SETS)}"
    if not path.exists():
        return "the library is not built: install with a C compiler at hand, or run `python -m calibnorm.ops.build`"
    try:
        return Library(path, build.fingerprint(), limit)
    except (OSError, AttributeError) as error:
        return f"the library did not load: {error}"
