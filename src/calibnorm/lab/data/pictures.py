"""One picture at a time: from a file, in whatever mode it is, to red, green and blue; and cut for a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calibnorm.errors import UsageError
from calibnorm.lab.data.feed import Augment
from calibnorm.lab.data.listing import Listing
from calibnorm.lab.data.seeding import number

if TYPE_CHECKING:
    from PIL import Image

RESIZE = 256 / 224
"""The test's short side before the centre crop, in sizes of the crop."""

PAPER = (255, 255, 255)
"""What shows through where a picture is transparent: white, as in a browser or on paper."""

BITS, PHOTOMETRIC, ORIENTATION = 258, 262, 274
"""Tags of TIFF and EXIF: bits of a sample; 0 where white is the smallest value; how the camera was held."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What undoes each EXIF orientation, in Pillow's words."""


def resized_for(size: int) -> int:
    """Return the pixels of a picture's short side before a centre of this size is cut."""
    return round(size * RESIZE)


def read_picture(path: Path) -> Image.Image:
    """Read a picture from a file, in red, green and blue, as :func:`to_rgb` makes it.

    Of several pictures in one file (animations, pages, the two of a stereo camera) it is the first.

    Raises:
        UsageError: The file is missing, damaged, no picture that Pillow can read, or one that :func:`to_rgb` refuses;
            the text names the file.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # As some of ImageNet's pictures have; it says nothing of the pixels.
            warnings.filterwarnings("ignore", "Corrupt EXIF", UserWarning)
            with Image.open(file) as image:
                return to_rgb(image)
    except UsageError as error:
        reason = str(error)
    except Exception as error:  # Pillow has no common class: a damaged file can raise what it likes
        reason = f"{type(error).__name__}: {error}"
    raise UsageError(f"{path}: no picture that can be read ({reason}); replace or remove it")


def pixels_of(picture: Image.Image) -> Tensor:
    """Return a picture in red, green and blue as a tensor (3, H, W) in uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any of Pillow's modes in 8 bits of red, green and blue, as a person would see it.

    It is turned as its EXIF orientation says. What is transparent (LA, La, PA, RGBA, RGBa, or one transparent color of
    1, L, P, RGB and I;16) lies on white. Gray of more than 8 bits is scaled by what its mode holds, never by what the
    single picture holds, so that pictures of one set stay comparable:

    =====================  =================================================================================
    I;16, I;16B, I;16L, I  0 to 65535 become 0 to 255, rounded; 0 to 4095 where a TIFF file says 12 bits
    F                      0 to 1 become 0 to 255, rounded
    =====================  =================================================================================

    Other modes (1, L, P, RGBX, CMYK, YCbCr, LAB, HSV) are converted by Pillow. Profiles in the file are not applied.

    Args:
        image: Any picture; it is loaded, and otherwise left as it is.

    Returns:
        A new picture of mode RGB.

    Raises:
        UsageError: A mode of more than 8 bits whose values lie outside of its range, or all within the range's first
            1/255, which would be black: for example 0 to 255 in mode I or F.

    >>> from PIL import Image
    >>> to_rgb(Image.new("I;16", (1, 1), 257 * 200)).getpixel((0, 0))
    (200, 200, 200)
    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    from PIL import Image

    image.load()  # before the orientation is asked for: a TIFF file turns its picture itself as it is loaded
    turn = _TURNS.get(_orientation(image))
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    elif image.mode in ("La", "RGBa"):  # colors multiplied by their opacity
        image = image.convert(image.mode.replace("a", "A"))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, PAPER)
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    colored = image.convert("RGB")
    return colored if turn is None else colored.transpose(Image.Transpose[turn])


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 to 8; 1 also where EXIF is damaged."""
    with suppress(Exception):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a gray picture of more bits in mode L, or LA where one of its values means transparency."""
    from PIL import Image

    values, tags = np.asarray(image).astype(np.float64), getattr(image, "tag_v2", {})
    whole = 4095 if tags.get(BITS) == (12,) else 65535
    white = 1 if image.mode == "F" else whole
    low, high = values.min(), values.max()
    step = white / 255
    if not -step / 2 <= low <= high < white + step / 2 or 0 < high < step:  # NaN is refused as well
        meant = f"mode {image.mode} is read as 0 (black) to {white} (white)"
        raise UsageError(f"its values are {low:g} to {high:g}, and {meant}; scale them to that range, or save 8 bits")
    gray = values / step
    shown = Image.fromarray(np.rint(255 - gray if tags.get(PHOTOMETRIC) == 0 else gray).clip(0, 255).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        shown.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return shown


@dataclass(frozen=True)
class Damaged:
    """A picture that cannot be read: workers return it, as an exception of theirs arrives as a page of text."""

    reason: str


class Pictures(Dataset[tuple[Tensor, int] | Damaged]):
    """Pictures by (epoch, index), cut to one size.

    Args:
        listing: The pictures that there are.
        size: Pixels a side of what comes out.
        seed: With epoch and index, it decides crops and flips: the same in whichever process it is asked for.
        augment: "crop_flip": a random part of 8 to 100 % of the area and of 3:4 to 4:3 in shape, resized, and a
            horizontal flip; "crop": without flips; "randaugment" (Cubuk et al., 2020: two operations at magnitude 9
            of 30) and "trivialaugment" (Müller and Hutter, 2021: one of any magnitude): torchvision's, after both;
            "none": the short side resized to 256 / 224 of the size, and the centre.
    """

    def __init__(self, listing: Listing, size: int, seed: int, augment: Augment) -> None:
        from torchvision.transforms import v2

        self._listing, self._seed = listing, seed
        random = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        steps: dict[str, list[torch.nn.Module]] = {
            "none": [v2.Resize(resized_for(size)), v2.CenterCrop(size)],
            "crop": random[:1],
            "crop_flip": random,
            "randaugment": [*random, v2.RandAugment()],
            "trivialaugment": [*random, v2.TrivialAugmentWide()],
        }
        self._transform = v2.Compose([*steps[augment], v2.PILToTensor()])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | Damaged:
        """Return a picture, (3, size, size) in uint8, and its label; or which one cannot be read."""
        epoch, index = key
        try:
            colored = read_picture(self._listing.path(index))
        except UsageError as error:
            return Damaged(str(error))
        # torchvision's transforms draw from torch's global generator; it is put back, as this may be the main process.
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(number("picture", self._seed, epoch, index))
        picture: Tensor = self._transform(colored)
        torch.default_generator.set_state(before)
        return picture, int(self._listing.labels[index])


def collate(pictures: Sequence[tuple[Tensor, int] | Damaged]) -> tuple[Tensor, Tensor] | Damaged:
    """Return the batch, or the first picture that cannot be read."""
    whole = []
    for picture in pictures:
        if isinstance(picture, Damaged):
            return picture
        whole.append(picture)
    return torch.stack([image for image, _ in whole]), torch.tensor([label for _, label in whole])
