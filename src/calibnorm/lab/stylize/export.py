"""`calibnorm stylize export`: a trained network as safetensors, or as ONNX for pictures of any size."""

from __future__ import annotations

import json

import torch
from rich.console import Console

from calibnorm.lab import exporting
from calibnorm.lab.stylize.config import ExportConfig
from calibnorm.lab.stylize.opening import METADATA, Opened, opened
from calibnorm.report.files import write_whole, writing


def run(config: ExportConfig, console: Console | None = None) -> int:
    """Write the file.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: The network is not there, a package is missing, or the file cannot be written.
    """
    exporting.check(config.out)
    trained = opened(config.run)
    written = as_safetensors(trained) if config.out.suffix == ".safetensors" else as_onnx(trained)
    with writing(config.out):
        write_whole(config.out, written)
    (console or Console()).print(f"{config.out}: {trained.words}", highlight=False, soft_wrap=True)
    return 0


def as_safetensors(trained: Opened) -> bytes:
    """Return the weights, with the recipe that `opened` makes the network of again."""
    says = {METADATA: json.dumps(trained.recipe.to_dict()), "description": trained.words}
    return exporting.safetensors(trained.network, says)


def as_onnx(trained: Opened) -> bytes:
    """Return an ONNX model with the input "pictures" and the output "stylized", (N, 3, H, W) from 0 to 1.

    N, H and W are whatever they are; H and W at least the network's smallest.
    """
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    pictures = torch.rand(2, 3, 8 * trained.network.smallest + 3, 8 * trained.network.smallest + 6)
    return exporting.onnx(trained.network, pictures, "stylized", {"pictures": free}, {METADATA: trained.words})
