"""`calibnorm stylize export`: a trained network as safetensors, or as ONNX for pictures of any size."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec

import torch
from rich.console import Console

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.stylize.config import ExportConfig
from calibnorm.lab.stylize.opening import METADATA, Opened, opened
from calibnorm.report.files import write_whole

NEEDS = {".safetensors": ("safetensors",), ".onnx": ("onnx", "onnxscript")}


def run(config: ExportConfig, console: Console | None = None) -> int:
    """Write the file.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: The network is not there, a package is missing, or the file cannot be written.
    """
    asked = Setting("out", config.out)
    if missing := [name for name in NEEDS[config.out.suffix] if find_spec(name) is None]:
        raise UsageError(asked, f"needs {', '.join(missing)}; pip install {' '.join(missing)}")
    trained = opened(config.run)
    written = as_safetensors(trained) if config.out.suffix == ".safetensors" else as_onnx(trained)
    try:
        write_whole(config.out, written)
    except OSError as error:
        raise UsageError(asked, f"cannot be written ({error.strerror})") from error
    (console or Console()).print(f"{config.out}: {trained.words}", highlight=False, soft_wrap=True)
    return 0


def as_safetensors(trained: Opened) -> bytes:
    """Return the weights, with the recipe that `opened` makes the network of again."""
    from safetensors.torch import save

    of = {METADATA: json.dumps(trained.recipe.to_dict()), "description": trained.words}
    return save({name: tensor.contiguous() for name, tensor in trained.network.state_dict().items()}, of)


def as_onnx(trained: Opened) -> bytes:
    """Return an ONNX model with the input "pictures" and the output "stylized", (N, 3, H, W) from 0 to 1.

    N, H and W are whatever they are; H and W at least the network's smallest.
    """
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts, which a user can do nothing about
        program = torch.onnx.export(
            trained.network,
            (torch.rand(2, 3, 8 * trained.network.smallest + 3, 8 * trained.network.smallest + 6),),
            input_names=["pictures"],
            output_names=["stylized"],
            dynamic_shapes={"pictures": free},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA] = trained.words
    return bytes(program.model_proto.SerializeToString())
