"""`make wheel`: whether what was built can be uploaded, and whether it runs where torch alone is installed.

Usage: check.py FOLDER PYTHON; the folder holds the sdist and the wheel, the Python has torch. Runs where auditwheel
is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "calibnorm/csrc/_calibnorm_cpu.so"
ALLOWED = {"libc.so.6", "libm.so.6"}


def main(folder: Path, python: str) -> None:
    """Raise where something is wrong."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    names = sorted(path.name for path in folder.iterdir())
    wheels = [name for name in names if name.endswith(".whl")]
    assert len(wheels) == 1, names
    assert sorted([*wheels, f"calibnorm-{version}.tar.gz"]) == names, names
    tag = re.fullmatch(rf"calibnorm-{re.escape(version)}-py3-none-(manylinux[\w.]+)\.whl", wheels[0])
    assert tag, f"{wheels[0]} is not tagged py3-none-manylinux..."
    print(f"wheel for every Python 3 on {tag[1]}")
    check_sdist(folder / f"calibnorm-{version}.tar.gz")
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(folder / wheels[0]) as archive:
            check_library(Path(archive.extract(LIBRARY, temporary)))
        run_installed(folder / wheels[0], python, Path(temporary) / "environment")


def check_sdist(path: Path) -> None:
    """The sources of the kernels are in it, and nothing that was built of them."""
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/calibnorm/csrc").glob("*.[ch]")}
    assert "src/calibnorm/csrc/kernels.c" in sources
    missing = (sources | {"setup.py", "src/calibnorm/ops/cpu/build.py"}) - inside
    assert not missing, missing
    built = [name for name in inside if name.endswith((".so", ".pyc"))]
    assert not built, built


def check_library(path: Path) -> None:
    """The library needs libc and libm alone: above all no OpenMP runtime beside torch's."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        (dynamic,) = (s for s in ELFFile(file).iter_sections() if isinstance(s, DynamicSection))
        needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
        paths = [tag.entry.d_tag for tag in dynamic.iter_tags() if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
    assert needed <= ALLOWED, f"the library needs {needed - ALLOWED}"
    assert not paths, paths
    print(f"the library needs {', '.join(sorted(needed))}")


def run_installed(wheel: Path, python: str, environment: Path) -> None:
    """Install the wheel without its dependencies into a fresh environment; lend it the torch of ``python``; run it."""
    subprocess.run([python, "-m", "venv", environment], check=True)
    fresh = environment / "bin" / "python"
    install = [fresh, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*install, "--no-index", "--no-deps", wheel], check=True)
    code = "import importlib.util as u, os; print(os.path.dirname(os.path.dirname(u.find_spec('torch').origin)))"
    torch_is_in = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(torch_is_in)
    # From a folder without calibnorm's source, and without what the caller's environment puts on the path.
    command = [fresh, "-I", ROOT / "tests" / "install" / "smoke.py"]
    subprocess.run(command, cwd=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
