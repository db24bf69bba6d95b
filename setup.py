"""Builds the CPU kernels at install time. Without a compiler the install succeeds, and the reference path serves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Run by path, not imported: importing the package would import torch, which a build environment does not have.
KERNELS = runpy.run_path(str(ROOT / "src" / "calibnorm" / "ops" / "build.py"))


class BuildWithKernels(build_py):
    """Adds the shared library to what is installed: into the build folder, or beside the sources when editable."""

    def run(self) -> None:
        """Copy the Python files, then build the kernels if that is possible here."""
        super().run()
        self.library: list[str] = []
        package = ROOT / "src" / "calibnorm" if self.editable_mode else Path(self.build_lib) / "calibnorm"
        try:
            self.library = [str(KERNELS["build"](package / "csrc"))]
        except KERNELS["BuildError"] as error:
            print(f"calibnorm: the CPU kernels were not built, plain torch serves instead: {error}", file=sys.stderr)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the library too, so that uninstalling removes it."""
        return [*super().get_outputs(include_bytecode), *getattr(self, "library", [])]


class PlatformWheel(bdist_wheel):
    """A wheel with kernels fits one platform and every Python; without them it fits every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none-PLATFORM or py3-none-any."""
        platform = super().get_tag()[2]
        return "py3", "none", platform


class KernelDistribution(Distribution):
    """Says whether this distribution is bound to a platform."""

    def has_ext_modules(self) -> bool:
        """Whether kernels can be built here."""
        try:
            KERNELS["compiler"]()
        except KERNELS["BuildError"]:
            return False
        return True


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
    distclass=KernelDistribution,
)
