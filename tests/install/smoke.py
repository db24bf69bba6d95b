"""Run by an installed wheel's Python: the kernels are in it, run on this machine, and say what the reference says."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

import calibnorm as cn


def main() -> None:
    """Raise where something is wrong."""
    place = Path(cn.__file__).resolve()
    assert any(place.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")), place
    for name, status in cn.backends().items():
        print(f"{name} {status}")
    assert cn.backends()["cpu"].runs
    x = torch.randn(4, 8, 14, 14, generator=torch.Generator().manual_seed(0))
    for layer in (cn.BN2d(8), cn.IEBN2d(8), cn.RBN2d(8)):
        outputs = []
        for backend in ("cpu", "reference"):
            with cn.use_backend(backend):
                leaf = x.clone().requires_grad_()
                y = layer(leaf)
                y.square().sum().backward()
                outputs.append((y.detach(), leaf.grad))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        print(f"{type(layer).__name__}: forward and backward as the reference")


if __name__ == "__main__":
    main()
