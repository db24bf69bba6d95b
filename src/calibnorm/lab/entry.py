"""Where the command `calibnorm` starts: it looks for the lab extra before it imports anything of it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# What the extra `lab` in pyproject.toml brings: import name and package.
LAB_MODULES = {
    "faster_coco_eval": "faster-coco-eval",
    "lightning": "lightning",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "PIL": "pillow",
    "rich": "rich",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
    "tyro": "tyro",
    "yaml": "pyyaml",
}


def missing_modules() -> list[str]:
    """Return the packages of the lab extra that are not installed."""
    return [package for module, package in LAB_MODULES.items() if find_spec(module) is None]


def main() -> int:
    """Run the command line; or return 2 after a line on how to install what it needs."""
    if missing := missing_modules():
        remedy = 'in the folder of calibnorm\'s source run: pip install ".[lab]"'
        print(f"calibnorm: this command needs {', '.join(missing)}; {remedy}", file=sys.stderr)
        return 2
    from calibnorm.lab import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
