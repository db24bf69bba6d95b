"""A miniature in COCO's layout, made of real material: handwritten digits lie on photographed textures.

The digits of scikit-learn are the things, textures of scikit-image the stuff. What COCO has, it has: category ids with
gaps, polygons and run-length codes, crowds, pictures without objects, objects that hide others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calibnorm.lab.data import digits
from calibnorm.lab.data.coco.masks import box_of
from calibnorm.lab.data.coco.panoptic import colored
from calibnorm.lab.data.image_set import Split
from calibnorm.lab.data.photographs import photograph
from calibnorm.lab.data.seeding import generator

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTURES = ("brick", "grass", "gravel", "hubble", "tissue")
THINGS = {name: number + 1 + (number >= 6) for number, name in enumerate(DIGITS)}
"""Category ids by name; as in COCO, they have a gap."""
STUFF = {name: 92 + 2 * number for number, name in enumerate(TEXTURES)}
SIZE = 96
"""Pixels a side of a picture."""
SMALLEST, LARGEST = 26, 46
"""Pixels a side of a digit."""
TURN = 0.25
"""Radians that a digit is turned at most."""
DIM, BRIGHT = 0.6, 0.7
"""The most that a texture's pixel has of a colour, and the least that a digit's has: digits are bright, as chalk is."""
MOST = 4
"""Digits of a picture, but for a crowd's."""
SOLID = 0.35
"""From this brightness on, a pixel of an enlarged digit is the digit's."""
HIDDEN = 0.6
"""Less than this share of a digit is never seen: then it is not put there."""
CROWDED, EMPTY = 0.06, 0.06
"""Share of the pictures with a crowd, and of those without a thing."""
CROWD, CROWD_SIDE = 8, 40
"""Digits of a crowd, and the pixels a side that they are in."""


@dataclass
class Scene:
    """A picture while it is made.

    Args:
        pixels: (3, H, W) in float32, from 0 to 1.
        stuff: The texture (H, W) of each pixel, an index into `TEXTURES`.
        owner: Which of the things (H, W) each pixel belongs to, -1 none.
        things: The digit of each; None for a crowd.
    """

    pixels: Tensor
    stuff: Tensor
    owner: Tensor
    things: list[tuple[int, bool]]


def make(folder: Path, train: int, val: int, seed: int) -> None:
    """Write a miniature: annotations, train2017, val2017 and panoptic PNGs, as COCO's archives unpack.

    Training and validation share neither digits nor parts of textures.

    Args:
        folder: Where; it is made.
        train: Pictures to train on.
        val: Pictures to validate on.
        seed: What all of them come from.
    """
    of_digits = digits.read(Path())
    for number, (name, count, items) in enumerate((("train2017", train, of_digits[0]), ("val2017", val, of_digits[1]))):
        (folder / name).mkdir(parents=True)
        maps = folder / "annotations" / f"panoptic_{name}"
        maps.mkdir(parents=True)
        draw = generator("miniature", seed, number)
        found = [(index + 1, _scene(items, number == 1, draw)) for index in range(count)]
        _write(folder, name, maps, found)


def _uniform(draw: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def _integer(draw: torch.Generator, low: int, high: int) -> int:
    """Return a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def _texture(name: str, right: bool, draw: torch.Generator) -> Tensor:
    """Return a part (3, SIZE, SIZE) of a texture: of its left half to train on, of its right half to validate on."""
    whole = photograph(name).float() * (DIM / 255)
    half = whole.shape[2] // 2
    whole = whole[:, :, half:] if right else whole[:, :, :half]
    side = _integer(draw, SIZE, min(2 * SIZE, half, whole.shape[1]))
    y, x = _integer(draw, 0, whole.shape[1] - side), _integer(draw, 0, whole.shape[2] - side)
    part = whole[:, y : y + side, x : x + side]
    part = part.flip(2) if _integer(draw, 0, 1) else part
    return F.interpolate(part[None], (SIZE, SIZE), mode="area")[0]


def _place(side: float, draw: torch.Generator) -> Tensor:
    """Return where, from -1 to 1, the centre of something can be that the picture holds whole."""
    return (1 - side / SIZE) * (2 * torch.rand(2, generator=draw) - 1)


def _digit(image: Tensor, side: float, center: Tensor, draw: torch.Generator) -> Tensor:
    """Return how bright (SIZE, SIZE) a digit (8, 8) is, enlarged and turned a little, around a centre."""
    angle = torch.tensor(_uniform(draw, -TURN, TURN))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2) * (SIZE / side)
    grid = F.affine_grid(torch.cat([turn, -(turn @ center)[:, None]], 1)[None], [1, 1, SIZE, SIZE], False)
    framed = F.pad(image[None, None], (1, 1, 1, 1))  # the bicubic must fall to 0 around it
    return F.grid_sample(framed, grid * 8 / 10, mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)


def _scene(items: Split, right: bool, draw: torch.Generator) -> Scene:
    first, second = torch.randperm(len(TEXTURES), generator=draw)[:2].tolist()
    angle, offset = torch.tensor(_uniform(draw, 0, 6.283)), _uniform(draw, -0.3, 0.3)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, SIZE),) * 2, indexing="ij")
    there = x * angle.cos() + y * angle.sin() > offset
    stuff = torch.where(there, first, second)
    near, far = (_texture(TEXTURES[index], right, draw) for index in (first, second))
    scene = Scene(torch.where(there, near, far), stuff, torch.full((SIZE, SIZE), -1), [])
    kind = _uniform(draw, 0, 1)
    if kind < CROWDED:
        _crowd(scene, items, draw)
    if kind < 1 - EMPTY:
        for _ in range(_integer(draw, 1, MOST)):
            row = _integer(draw, 0, len(items.images) - 1)
            side = _uniform(draw, SMALLEST, LARGEST)
            bright = _digit(items.images[row, 0] / items.images.max(), side, _place(side, draw), draw)
            _put(scene, bright, int(items.labels[row]), draw)
    return scene


def _put(scene: Scene, bright: Tensor, digit: int, draw: torch.Generator) -> None:
    """Lay a digit on top, unless that hides too much of another one."""
    mask = bright > SOLID
    for number in range(len(scene.things)):
        seen = scene.owner == number
        if (seen & ~mask).sum() < HIDDEN * seen.sum():
            return
    _paint(scene, bright, mask, draw)
    scene.owner[mask] = len(scene.things)
    scene.things.append((digit, False))


def _crowd(scene: Scene, items: Split, draw: torch.Generator) -> None:
    """Lay many small examples of one digit side by side, which are not told apart."""
    digit = _integer(draw, 0, 9)
    rows, middle = (items.labels == digit).nonzero().flatten(), _place(CROWD_SIDE, draw)
    for _ in range(CROWD):
        image = items.images[rows[_integer(draw, 0, len(rows) - 1)], 0] / items.images.max()
        center = middle + CROWD_SIDE / SIZE * (1.6 * torch.rand(2, generator=draw) - 0.8)
        bright = _digit(image, SMALLEST / 2, center, draw)
        mask = bright > SOLID
        _paint(scene, bright, mask, draw)
        scene.owner[mask] = 0
    scene.things.append((digit, True))


def _paint(scene: Scene, bright: Tensor, mask: Tensor, draw: torch.Generator) -> None:
    """Color a digit's pixels, of which its own brightness shows."""
    color = BRIGHT + (1 - BRIGHT) * torch.rand(3, 1, generator=draw)
    scene.pixels[:, mask] = color * (0.7 + 0.3 * bright[mask])


def _write(folder: Path, name: str, maps: Path, scenes: list[tuple[int, Scene]]) -> None:
    from PIL import Image

    images, annotations, panoptic, last = [], list[dict[str, Any]](), [], 0
    for number, scene in scenes:
        picture = (255 * scene.pixels).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        file = f"{number:012}"
        Image.fromarray(picture).save(folder / name / f"{file}.png")
        images.append({"id": number, "file_name": f"{file}.png", "height": SIZE, "width": SIZE})
        ids, segments = torch.zeros(SIZE, SIZE, dtype=torch.int64), list[dict[str, Any]]()
        for thing, (digit, crowd) in enumerate(scene.things):
            mask, last = scene.owner == thing, last + 1
            common: dict[str, Any] = {"id": last, "category_id": THINGS[DIGITS[digit]]}
            common |= {"iscrowd": int(crowd), "area": int(mask.sum()), "bbox": box_of(mask)}
            annotations.append(common | {"image_id": number, "segmentation": _segmentation(mask, crowd)})
            ids[mask] = last
            segments.append(common)
        for index in sorted(set(scene.stuff[scene.owner < 0].tolist())):
            mask, last = (scene.stuff == index) & (scene.owner < 0), last + 1
            common = {"id": last, "category_id": STUFF[TEXTURES[index]], "iscrowd": 0}
            segments.append(common | {"area": int(mask.sum()), "bbox": box_of(mask)})
            ids[mask] = last
        colored(ids).save(maps / f"{file}.png")
        panoptic.append({"image_id": number, "file_name": f"{file}.png", "segments_info": segments})
    things = [{"id": of, "name": each, "supercategory": "digit"} for each, of in THINGS.items()]
    stuff = [{"id": of, "name": each, "supercategory": "texture"} for each, of in STUFF.items()]
    all_of_them = [each | {"isthing": int(each in things)} for each in things + stuff]
    for kind, listed, categories in (("instances", annotations, things), ("panoptic", panoptic, all_of_them)):
        content = {"images": images, "annotations": listed, "categories": categories}
        (folder / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(content))


def _segmentation(mask: Tensor, crowd: bool) -> Any:
    """Return a crowd as a run-length code, a thing as polygons: a rectangle for each run of a row, which is exact."""
    if crowd:
        flat = mask.T.flatten().int()
        ends = [0, *(flat.diff().nonzero().flatten() + 1).tolist(), len(flat)]
        counts = [after - before for before, after in pairwise(ends)]
        return {"size": list(mask.shape), "counts": [0] * int(flat[0]) + counts}
    polygons = []
    for y, row in enumerate(F.pad(mask.int(), (1, 1)).diff(dim=1)):
        starts, ends = (row == 1).nonzero().flatten().tolist(), (row == -1).nonzero().flatten().tolist()
        polygons += [[a, y, b, y, b, y + 1, a, y + 1] for a, b in zip(starts, ends, strict=True)]
    return polygons
