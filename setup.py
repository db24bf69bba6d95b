"""Builds the CPU kernels at install time. Without a compiler the install succeeds, and the reference path serves."""

from __future__ import annotations

import platform
import runpy
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Run by path, not imported: importing the package would import torch, which a build environment does not have.
KERNELS = runpy.run_path(str(ROOT / "src" / "calibnorm" / "ops" / "cpu" / "build.py"))


class KernelDistribution(Distribution):
    """Says whether this distribution is bound to a platform: whether it holds the kernels."""

    kernels_built: bool | None = None
    """None until the build has tried."""

    def has_ext_modules(self) -> bool:
        """Whether the kernels were built, or, before that, whether there is a compiler to try."""
        if self.kernels_built is not None:
            return self.kernels_built
        try:
            KERNELS["compiler"]()
        except KERNELS["BuildError"]:
            return False
        return True


class BuildWithKernels(build_py):
    """Adds the shared library to what is installed: into the build folder, or beside the sources when editable."""

    distribution: KernelDistribution

    def run(self) -> None:
        """Copy the Python files, then build the kernels if that is possible here."""
        super().run()
        package = ROOT / "src" / "calibnorm" if self.editable_mode else Path(self.build_lib) / "calibnorm"
        self.library = package / "csrc" / KERNELS["LIBRARY"]
        try:
            KERNELS["build"](self.library.parent)
        except KERNELS["BuildError"] as error:
            print(f"calibnorm: the CPU kernels were not built, plain torch serves instead: {error}", file=sys.stderr)
            if not self.editable_mode:
                self.library.unlink(missing_ok=True)  # of an earlier build in this folder
            self.distribution.kernels_built = False
        else:
            self.distribution.kernels_built = True

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the library too, so that uninstalling removes it."""
        library = [str(self.library)] if self.distribution.kernels_built else []
        return [*super().get_outputs(include_bytecode), *library]


class PlatformWheel(bdist_wheel):
    """A wheel with kernels fits one platform and every Python; without them it fits every platform."""

    def run(self) -> None:
        """Build first: only then is it known which of the two wheels this is (a compiler may be there and fail)."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none-PLATFORM or py3-none-any."""
        return "py3", "none", self.of_one_architecture(super().get_tag()[2])

    @staticmethod
    def of_one_architecture(name: str) -> str:
        """Name this machine's architecture where macOS names a Python that runs on two: the library is of one."""
        return name.replace("universal2", platform.machine()) if name.startswith("macosx") else name


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
    distclass=KernelDistribution,
)
