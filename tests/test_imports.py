"""``import calibnorm`` needs torch alone, and dependencies between the parts point one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calibnorm
from calibnorm import nn

ROOT = Path(calibnorm.__file__).parent
CORE = ["_checks", "methods", "ops", "nn", "networks"]
"""A tower: each imports what stands before it."""
ON_IT = {"conversion", "fusion", "inspect"}
"""What changes or reads a whole network: siblings, of which none imports another."""
LAYERS = {
    **{part: set(CORE[:number]) for number, part in enumerate(CORE)},
    **{part: set(CORE) for part in ON_IT},
    "folding": {*CORE, *ON_IT},
    "errors": set(),
    "_stopping": set(),
    "report": {"errors", "calibnorm"},
    "loading": {"errors", "methods"},
    "bench": {"report", "loading", "errors", "_stopping", "calibnorm", "folding", *CORE, *ON_IT},
    "lab": {"bench", "report", "loading", "errors", "_stopping", "calibnorm", "folding", *CORE, *ON_IT},
    "__main__": {"lab"},
}
"""What each part may import, besides itself."""

ONLY_TORCH = """
import sys
import torch  # and whatever torch itself brings along
before = set(sys.modules)
TORCHS_OWN = {"torch"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in TORCHS_OWN | {"calibnorm"}:
            raise ImportError(f"calibnorm imported {name}")

sys.meta_path.insert(0, Refuse())
import calibnorm as cn
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new - set(sys.stdlib_module_names) <= {"torch", "calibnorm"}, new
assert not any(name.startswith("calibnorm.lab") for name in sys.modules), "the lab came along"
for name in cn.__all__:
    getattr(cn, name)
TORCHS_OWN |= {"sympy", "mpmath"}  # torch.autograd.grad imports torch's requirement sympy at its first use
x = torch.randn(2, 3, 4, 4, requires_grad=True)
for layer in (cn.BN2d(3), cn.IEBN2d(3), cn.RBN2d(3)):
    layer(x).sum().backward()
    layer.eval()(x)
"""


def test_needs_torch_alone():
    done = subprocess.run([sys.executable, "-W", "error", "-c", ONLY_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_itself_sees_other_modules():
    program = ONLY_TORCH.replace("import calibnorm as cn", "import calibnorm as cn, timm", 1)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "calibnorm imported timm" in done.stderr


def imported(path: Path, inside: str = "calibnorm") -> set[str]:
    """Parts of a package that a file imports anywhere, also inside functions; type-checking imports count.

    What the package itself gives has its name.
    """
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative import, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == inside or name.startswith(f"{inside}."):
                part = name.removeprefix(inside).split(".")[1:2]
                place = ROOT.joinpath(*inside.split(".")[1:], *part)
                parts.add(part[0] if part and (place.exists() or place.with_suffix(".py").exists()) else inside)
    return parts


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part == "__init__":
        assert "lab" not in imported(path)
        return
    assert imported(path) <= LAYERS[part] | {part}


LAB = {
    **{part: set() for part in ("naming", "locks", "pictures", "recipes", "data", "models", "exporting")},
    "arguments": {"recipes"},
    "tasks": {"recipes", "data", "models"},
    "training": {"tasks", "recipes", "data", "models", "naming", "locks", "arguments"},
    "experiments": {"training", "tasks", "recipes", "data", "models", "naming", "locks"},
    "stylize": {"experiments", "training", "tasks", "recipes", "data", "models", "exporting"},
    "classifier": {"experiments", "training", "tasks", "recipes", "data", "exporting"},
    "detect": {"experiments", "training", "tasks", "recipes", "data", "models", "arguments"},
}
"""What each part of the lab may import of it, besides itself; commands may import all."""


@pytest.mark.parametrize("path", sorted((ROOT / "lab").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_in_the_lab_point_one_way(path):
    part = path.relative_to(ROOT / "lab").parts[0].removesuffix(".py")
    if part in LAB:
        assert imported(path, "calibnorm.lab") <= LAB[part] | {part}


@pytest.mark.parametrize("part", ["training", "experiments"])
def test_what_is_learned_is_not_said(part):
    words = re.compile(r"accurac|top-?5|\bclasses\b|\blabels\b", re.IGNORECASE)
    paths = (ROOT / "lab" / part).glob("*.py")
    found = {path.name: words.findall(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_every_part_is_seen():
    assert {"nn", "ops", "methods", "_checks"} <= {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES}
    assert imported(ROOT / "nn" / "layer.py") >= {"methods", "_checks"}
    assert imported(ROOT / "ops" / "coefficients.py") >= {"methods"}


def test_public_names():
    assert len(calibnorm.__all__) == len(set(calibnorm.__all__))
    assert {"BN2d", "IEBN1d", "RBN3d", "iebn", "rbn", "norm_layer", "methods"} <= set(calibnorm.__all__)
    assert {layer.__name__ for layer in nn.LAYERS.values()} <= set(calibnorm.__all__)
    assert calibnorm.methods()[:3] == ["bn", "iebn", "rbn"]
