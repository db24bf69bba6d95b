"""`calibnorm export`: a trained classifier as ONNX, as a program of torch.export, or as safetensors."""

from __future__ import annotations

import io
import json

import torch
from rich.console import Console

from calibnorm.lab import exporting
from calibnorm.lab.classifier.config import ExportClassifierConfig
from calibnorm.lab.classifier.folding import folded
from calibnorm.lab.classifier.opening import Classifier, Deployed, opened
from calibnorm.report.files import write_whole, writing

DETAILS = "calibnorm.json"
"""The file in a program of torch.export that holds what the metadata of the others do."""


def run(config: ExportClassifierConfig, console: Console | None = None) -> int:
    """Write the file.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: The network is not there, a package is missing, or the file cannot be written.
    """
    exporting.check(config.out)
    console, classifier = console or Console(), opened(config.run)
    if config.fold:
        classifier = folded(classifier, config.fold, config.tolerance)
        console.print(classifier.folding, highlight=False, markup=False, soft_wrap=True)
    makers = {".onnx": as_onnx, ".pt2": as_program, ".safetensors": as_safetensors}
    with writing(config.out):
        write_whole(config.out, makers[config.out.suffix](classifier))
    said = f"{config.out}: {classifier.words}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return 0


def details(of: Classifier) -> dict[str, str]:
    """Return what a file says beside the network, as texts: classes and pixels are JSON."""
    settings = {"classes": list(of.classes), "pixels": of.pixels.to_dict(), "recipe": of.recipe.to_dict()}
    says = {"description": of.words} | ({"folding": of.folding} if of.folding else {})
    return says | {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}


def as_safetensors(of: Classifier) -> bytes:
    """Return the weights by the names of the network."""
    return exporting.safetensors(of.network, details(of))


def as_onnx(of: Classifier) -> bytes:
    """Return an ONNX model with the input "pictures" (N, channels, size, size) and the output "probabilities"."""
    shapes = {"pictures": {0: torch.export.Dim("N")}}
    return exporting.onnx(Deployed(of), pictures(of), "probabilities", shapes, details(of))


def as_program(of: Classifier) -> bytes:
    """Return a program of torch.export, for any number of pictures; `torch.export.load` and `.module()` run it."""
    with exporting.quiet():
        shapes = {"pictures": {0: torch.export.Dim("N")}}
        program = torch.export.export(Deployed(of).eval(), (), {"pictures": pictures(of)}, dynamic_shapes=shapes)
        data = io.BytesIO()
        torch.export.save(program, data, extra_files={DETAILS: json.dumps(details(of))})
    return data.getvalue()


def pictures(of: Classifier) -> torch.Tensor:
    """Return pictures to follow the network with."""
    return torch.rand(2, of.pixels.channels, of.pixels.size, of.pixels.size)
