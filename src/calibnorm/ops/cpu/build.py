"""Building the CPU kernels. ``setup.py`` runs this file by its path, so it imports neither torch nor calibnorm.

One shared library without torch's or Python's headers serves every version of both. A C compiler is enough: ``$CC``,
else cc, gcc or clang.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
LIBRARY = "_calibnorm_cpu.so"
# No -ffast-math: NaN must stay NaN and sums keep their order. Errno and traps are what stands between a loop with a
# square root or a selection and its vector form, and nobody reads either.
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
X86_SETS = {
    "avx512": ["-DCN_BYTES=64", *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]],
    "avx2": ["-DCN_BYTES=32", *["-mavx2", "-mfma", "-mf16c"]],
}


class BuildError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


def fingerprint() -> str:
    """Return a hash of the sources. The library carries it, so that a stale one is found out."""
    found = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def compiler() -> list[str]:
    """Return the C compiler's command.

    Raises:
        BuildError: There is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    raise BuildError("no C compiler was found ($CC, cc, gcc, clang)")


def link_flags() -> list[str]:
    """Return what makes a library of objects: on macOS a bundle, which is what Python's own extension modules are.

    A bundle, unlike ``-dynamiclib``, records no path of its own, which would be that of a temporary folder.
    """
    return ["-bundle"] if sys.platform == "darwin" else ["-shared"]


def build(folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile the kernels, once for each instruction set, and link them into ``folder``.

    Args:
        folder: Where the library goes; made if it is not there.
        extra: More flags for compiler and linker, such as ``-fsanitize=address``.

    Returns:
        The library's path.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    if os.name != "posix":
        raise BuildError(f"the kernels are not built on {sys.platform}")
    cc = [*compiler(), *FLAGS, *extra]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {"base": ["-DCN_BYTES=16"], **(X86_SETS if x86 else {})}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(len(sets)) as pool:
        objects = {name: Path(temporary) / f"{name}.o" for name in [*sets, "entry"]}
        commands = [
            [*cc, *flags, f"-DCN_TABLE=cn_table_{name}", "-c", str(SOURCES / "kernels.c"), "-o", str(objects[name])]
            for name, flags in sets.items()
        ]
        entry = [f'-DCN_SOURCES="{fingerprint()}"', *(["-DCN_X86"] if x86 else [])]
        commands.append([*cc, *entry, "-c", str(SOURCES / "entry.c"), "-o", str(objects["entry"])])
        for _ in pool.map(_run, commands):
            pass
        made = Path(temporary) / LIBRARY
        _run([*cc, *link_flags(), *map(str, objects.values()), "-o", str(made)])
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old library mapped keeps it whole.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=LIBRARY, delete=False) as target:
            target.write(made.read_bytes())
        os.chmod(target.name, 0o755)
        os.replace(target.name, folder / LIBRARY)
    return folder / LIBRARY


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} did not start: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
