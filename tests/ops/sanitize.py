"""`make sanitize`: the tests of the passes with a library built under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from calibnorm.ops.cpu import build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")
TESTS = Path(__file__).parent


def main() -> int:
    """Build, run the tests and return pytest's exit status."""
    asan = subprocess.run(
        [*build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        library = build.build(Path(folder), FLAGS)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=--import-mode=importlib",
            "-k",
            "not refused and not fails",  # torch throws when a recording refuses, which ends a process under ASan
        ]
        tests = [TESTS / f"test_{name}.py" for name in ("cpu_passes", "cpu_coefficients", "programs")]
        # The interpreter itself leaks by design, and torch throws through frames that ASan does not know.
        options = {
            "LD_PRELOAD": asan.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "CALIBNORM_LIBRARY": str(library),
        }
        return subprocess.run([*command, *map(str, tests)], env=os.environ | options, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
