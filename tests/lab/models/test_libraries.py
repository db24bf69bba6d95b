"""Torch is enough for the networks for 32x32 images and for the bench's; of what else is missing the name is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import models

TORCH_ALONE = """
import sys
for name in ("torchvision", "timm", "tyro", "numpy", "yaml", "lightning", "matplotlib", "rich"):
    sys.modules[name] = None  # an import of it fails
import torch
from calibnorm.lab import models
from calibnorm.bench.networks import NETWORKS
for name in ("resnet11", "preresnet11", "densenet10_k4", "resnext11_2x8d"):
    model = models.build(name, num_classes=3, norm="iebn")
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
with torch.device("meta"):
    for network in NETWORKS.values():
        network()
"""


def test_torch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", TORCH_ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "module", "library"), [("resnet50", "torchvision.models", "torchvision"), ("res2net50", "timm", "timm")]
)
def test_a_missing_library_is_named(name: str, module: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = f"model={name}: needs {library}, which is not installed; pip install {library}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        models.build(name, num_classes=10)


def test_the_page_runs() -> None:
    page = Path(__file__).parents[3] / "docs" / "models.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(), torch.device("meta"):
        exec(block, names)
    assert type(names["net"].layer4[0].bn1).__name__ == "RBN2d"
