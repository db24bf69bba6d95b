"""Networks as files of other programs: what every command that exports shares."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.report.files import refuse_folder

NEEDS = {".safetensors": ("safetensors",), ".onnx": ("onnx", "onnxscript")}


def check(out: Path) -> None:
    """Raise UsageError where a package is missing that a file's ending means, or where the file cannot lie there."""
    refuse_folder("out", out, f"network{out.suffix}")
    if missing := [name for name in NEEDS.get(out.suffix, ()) if find_spec(name) is None]:
        raise UsageError(Setting("out", out), f"needs {', '.join(missing)}; pip install {' '.join(missing)}")


def safetensors(network: nn.Module, says: dict[str, str]) -> bytes:
    """Return a network's state, with texts beside it."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, says)


def onnx(network: nn.Module, pictures: Tensor, output: str, shapes: dict[str, Any], says: Mapping[str, str]) -> bytes:
    """Return an ONNX model with the input "pictures".

    Args:
        network: In evaluation mode.
        pictures: To follow it with.
        output: The name of its output.
        shapes: The dimensions of "pictures" that are free, as ``torch.export.Dim``.
        says: The model's metadata.
    """
    with quiet():
        program = torch.onnx.export(
            network,
            (pictures,),
            input_names=["pictures"],
            output_names=[output],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(says)
    return bytes(program.model_proto.SerializeToString())


@contextmanager
def quiet() -> Iterator[None]:
    """Let nobody hear the warnings of an exporter's own parts, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
