"""Batches of pictures with the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calibnorm.errors import UsageError
from calibnorm.lab.data.coco import folder as folders
from calibnorm.lab.data.coco import masks
from calibnorm.lab.data.coco.folder import Categories, Learned, Part2017, Scene
from calibnorm.lab.data.coco.panoptic import ids_of
from calibnorm.lab.data.contents import Contents
from calibnorm.lab.data.feed import check_shares
from calibnorm.lab.data.folders import Order, ReadFeed, train_order
from calibnorm.lab.data.pictures import Damaged, pixels_of, read_picture
from calibnorm.lab.data.seeding import number
from calibnorm.lab.data.workers import readers

VOID = 255
"""A pixel that a semantic map says nothing of."""
Target = dict[str, Any]
"""What is in a picture. "boxes" (N, 4), "labels" (N,) from 1 and, for masks, "masks" (N, H, W) in uint8 are what is
learned, without crowds. "semantic" (H, W) is the kind of stuff, the number of kinds where a thing is. To be measured
by, a picture of the test has all of it instead, and "crowd", "area", "id"; and "segments" (H, W) with "classes" and
"crowds" of them, and "counts" of the classes of things and of stuff."""
ObjectBatch = tuple[list[Tensor], list[Target]]
"""Pictures (3, H, W) in uint8, of any sizes, and what is in them."""


class Scenes(Dataset[tuple[Tensor, Target] | Damaged]):
    """Pictures by (epoch, index).

    Args:
        part: Which there are.
        learned: What of them.
        seed: With epoch and index it decides flips.
        train: Whether they are learned from, and flipped.
    """

    def __init__(self, part: Part2017, learned: Learned, seed: int, train: bool) -> None:
        self.part, self.learned, self._seed, self._train = part, learned, seed, train

    def __len__(self) -> int:
        return len(self.part.scenes)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target] | Damaged:
        """Return a picture in uint8 and what is in it; or which one cannot be read."""
        epoch, index = key
        scene = self.part.scenes[index]
        try:
            pixels = _pixels(scene.path, scene)
            target = self._target(scene)
        except UsageError as error:
            return Damaged(str(error))
        if self._train and number("flip", self._seed, epoch, index) % 2:
            return _flipped(pixels, target)
        return pixels, target

    def _target(self, scene: Scene) -> Target:
        objects = [each for each in scene.objects if not (self._train and each["iscrowd"])]
        boxes = [each["box"] for each in objects]
        target: Target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([each["label"] for each in objects], dtype=torch.int64),
        }
        if self.learned != "box":
            codes = [masks.code_of(each["segmentation"], scene.height, scene.width) for each in objects]
            target["masks"] = masks.decoded(codes, scene.height, scene.width).to(torch.uint8)
        if not self._train:
            target["id"] = scene.id
            target["crowd"] = torch.tensor([each["iscrowd"] for each in objects], dtype=torch.int64)
            target["area"] = torch.tensor([each["area"] for each in objects], dtype=torch.float32)
        if scene.panoptic is not None:
            target |= self._panoptic(scene)
        return target

    def _panoptic(self, scene: Scene) -> Target:
        assert scene.panoptic is not None
        path, segments = scene.panoptic
        ids = ids_of(_pixels(path, scene))
        there, numbers = ids.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        if unknown := [of for of in there.tolist() if of and of not in segments]:
            raise UsageError(f"{path}: has pixels of a segment {unknown[0]} that its annotations do not know")
        if lacking := sorted(set(segments) - set(there.tolist())):
            raise UsageError(f"{path}: has no pixel of segment {lacking[0]} of its annotations")
        if self._train:
            things, stuff = len(self.part.categories.things), len(self.part.categories.stuff)
            kinds = [VOID if not of else segments[of]["class"] - things for of in there.tolist()]
            table = torch.tensor([stuff if kind < 0 else kind for kind in kinds], dtype=torch.uint8)
            return {"semantic": table[numbers]}
        void = {"class": -1, "iscrowd": 0}
        found = [segments[of] if of else void for of in there.tolist()]
        return {
            "counts": (len(self.part.categories.things), len(self.part.categories.stuff)),
            "segments": numbers,
            "classes": torch.tensor([each["class"] for each in found]),
            "crowds": torch.tensor([each["iscrowd"] for each in found]),
        }


def _pixels(path: Path, scene: Scene) -> Tensor:
    pixels = pixels_of(read_picture(path))
    if pixels.shape[1:] != (scene.height, scene.width):
        size = f"{pixels.shape[1]} x {pixels.shape[2]} pixels, not {scene.height} x {scene.width}"
        raise UsageError(f"{path}: has {size} as its annotations say; unpack it again")
    return pixels


def _flipped(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Return a picture and what is in it, left and right exchanged."""
    width = pixels.shape[2]
    flipped = {name: value.flip(-1) if name in ("masks", "semantic") else value for name, value in target.items()}
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    return pixels.flip(2), flipped | {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}


def collate(scenes: Sequence[tuple[Tensor, Target] | Damaged]) -> tuple[list[Tensor], list[Target]] | Damaged:
    """Return the batch, or the first picture that cannot be read."""
    if (damaged := next((scene for scene in scenes if isinstance(scene, Damaged)), None)) is not None:
        return damaged
    pictures, targets = zip(*scenes, strict=True)
    return list(pictures), list(targets)


class ObjectFeed(ReadFeed[ObjectBatch]):
    """Batches of pictures that are read from files as they are needed.

    Args:
        scenes: The pictures.
        order: Which of them every batch holds.
        contents: What the folder holds.
        device: Where the batches are put.
        workers: Processes that read; 0 reads in this process.
    """

    def __init__(self, scenes: Scenes, order: Order, contents: Contents, device: torch.device, workers: int) -> None:
        super().__init__()
        self.contents, self.scenes = contents, scenes
        self._load(scenes, order, device, workers, collate)

    @property
    def categories(self) -> Categories:
        """The classes."""
        return self.scenes.part.categories

    def ready(self, batch: Any) -> ObjectBatch:
        """Return a batch on the device."""
        pictures, targets = batch

        def there(value: Any) -> Any:
            return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value

        return (
            [there(picture) for picture in pictures],
            [{name: there(value) for name, value in target.items()} for target in targets],
        )


def object_feeds(
    data: str,
    data_root: Path,
    learned: Learned,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    train_images: int | None = None,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> tuple[ObjectFeed, ObjectFeed]:
    """Return the batches of a folder in COCO's layout, to train on and to validate on.

    Args:
        data: The folder, or "mini".
        data_root: Where the miniature is made.
        learned: What of the pictures is read.
        batch_size: Pictures a step of all processes together; only whole batches are trained on.
        seed: With the epoch, it decides order and flips.
        device: Where the batches are put.
        train_images: The first so many pictures alone; all by default.
        workers: Processes that read, for each feed.
        rank: This process's number.
        world: Processes that share each batch.

    Raises:
        UsageError: A file is missing, damaged, or contradicts another one; or the batch cannot be shared. Later, with
            its name, a picture that cannot be read.
    """
    folder = folders.find(data, data_root)
    train, val = folders.read(folder, folders.TRAIN, learned, train_images), folders.read(folder, folders.VAL, learned)
    folders.check_same(folder, train, val)
    check_shares("batch_size", batch_size, len(train.scenes), world)
    contents = folders.contents(data, train, val)
    rows, mine = torch.arange(len(train.scenes)), torch.arange(len(val.scenes))[rank::world]
    orders = (
        train_order(rows, batch_size, seed, rank, world),
        Order(lambda epoch: mine, len(mine), max(1, batch_size // world)),
    )
    readers_each = readers() if workers is None else workers
    return (
        ObjectFeed(Scenes(train, learned, seed, True), orders[0], contents, device, readers_each),
        ObjectFeed(Scenes(val, learned, seed, False), orders[1], contents, device, readers_each),
    )
