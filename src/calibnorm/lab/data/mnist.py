"""MNIST and FashionMNIST: their four files, where they lie, and what is in them."""

from __future__ import annotations

from pathlib import Path

import torch

from calibnorm.errors import UsageError
from calibnorm.lab.data import idx
from calibnorm.lab.data.image_set import Split

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""What FashionMNIST's labels mean, as its authors have it."""

# Of the unpacked files. torchvision knows the packed ones alone, and Debian packs them again; the sums of FashionMNIST
# are those of Debian's package, and both sets' are in several public projects that check the originals.
SHA256 = {
    "MNIST": {
        f"train-{IMAGES}": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        f"train-{LABELS}": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        f"t10k-{IMAGES}": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        f"t10k-{LABELS}": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        f"train-{IMAGES}": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        f"train-{LABELS}": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        f"t10k-{IMAGES}": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        f"t10k-{LABELS}": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


def read_mnist(root: Path) -> tuple[Split, Split]:
    """Return MNIST's training and test images from where torchvision keeps them: root/MNIST/raw."""
    from torchvision.datasets import MNIST  # a second of import

    return _read("MNIST", [root / "MNIST" / "raw"], MNIST.mirrors[-1])


def read_fashion_mnist(root: Path) -> tuple[Split, Split]:
    """Return FashionMNIST's from root/FashionMNIST/raw, or from Debian's package where that folder has none of it."""
    from torchvision.datasets import FashionMNIST

    folders = [root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    otherwise = ", or install Debian's package dataset-fashion-mnist"
    return _read("FashionMNIST", folders, FashionMNIST.mirrors[-1], otherwise)


def _read(title: str, folders: list[Path], mirror: str, otherwise: str = "") -> tuple[Split, Split]:
    """Read the four files of the first folder that holds one of them; or say where to get them, or how otherwise."""
    checksums = SHA256[title]
    for folder in folders:
        paths = {stem: path for stem in checksums if (path := _find(folder, stem))}
        if paths:
            break
    else:
        folder = folders[0]
    missing = [f"{stem}.gz" for stem in checksums if stem not in paths]
    if missing:
        state = "not complete" if paths else "missing"
        files = ", ".join(missing)
        raise UsageError(f"{title} is {state}: download {files} from {mirror} into {folder.absolute()}{otherwise}")

    def part(name: str) -> Split:
        stems = ((f"{name}-{IMAGES}", 3), (f"{name}-{LABELS}", 1))
        images, labels = (idx.read(paths[stem], dimensions, checksums[stem]) for stem, dimensions in stems)
        return Split(images.unsqueeze(1), labels.to(torch.int64))

    return part("train"), part("t10k")


def _find(folder: Path, stem: str) -> Path | None:
    """Return the plain file, or the packed one, or nothing."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)
