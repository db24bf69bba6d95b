"""A folder in COCO's layout: found, read, and looked at whole before anything is trained on it.

FOLDER/annotations/instances_train2017.json   instances_val2017.json
FOLDER/annotations/panoptic_train2017.json    panoptic_val2017.json      for panoptic segmentation, and beside them
FOLDER/annotations/panoptic_train2017/*.png   panoptic_val2017/*.png     the maps
FOLDER/train2017/*.jpg                        val2017/*.jpg
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data.coco import masks
from calibnorm.lab.data.contents import Contents, Part, digest

Learned = Literal["box", "mask", "panoptic"]
"""What is learned: boxes; masks, too; or which thing or stuff every pixel is of."""
TRAIN, VAL = "train2017", "val2017"
MINI = "mini"
MINI_TRAIN, MINI_VAL, MINI_SEED = 600, 150, 0
"""The miniature that is made where a command finds none."""
DEGENERATE = "boxes of no area"
OUTSIDE = "boxes outside their picture"
SMALLEST = 1.0
"""Pixels a side that a box has at least; with less, its targets are infinite."""


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Args:
        id: The picture's.
        path: Its file.
        height: Pixels.
        width: Pixels.
        objects: COCO's annotations, with "box" (x1, y1, x2, y2), and "label", the thing's from 1.
        panoptic: The map's file and its segments by id, each with "class"; None where none was asked for.
    """

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[dict[str, Any], ...]
    panoptic: tuple[Path, dict[int, dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Categories:
    """The classes. A network's label 0 is the background, label k the k-th thing.

    Args:
        things: Names by category id, in the file's order.
        stuff: Names by category id; empty where no panoptic maps are read.
    """

    things: dict[int, str]
    stuff: dict[int, str]

    @property
    def thing_ids(self) -> list[int]:
        """The category of every label from 1 on."""
        return [*self.things]

    @property
    def ids(self) -> list[int]:
        """The category of every class of a panoptic map: the things, then the stuff."""
        return [*self.things, *self.stuff]

    @property
    def names(self) -> list[str]:
        """The names of the classes of a panoptic map."""
        return [*self.things.values(), *self.stuff.values()]


@dataclass(frozen=True)
class Part2017:
    """The pictures of train2017 or val2017.

    Args:
        name: "train2017" or "val2017".
        scenes: The pictures in the order of the file.
        categories: The classes.
        left_out: By reason, how many annotations are not used, and which is the first.
        digests: Of the annotation files.
    """

    name: str
    scenes: tuple[Scene, ...]
    categories: Categories
    left_out: dict[str, tuple[int, str]]
    digests: dict[str, str]

    @property
    def part(self) -> Part:
        """What it holds, class by class."""
        names = self.categories.things
        counts = Counter(each["category_id"] for scene in self.scenes for each in scene.objects)
        images = {"pictures": len(self.scenes)} | {name: counts[of] for of, name in names.items()}
        whole = digest(value.encode() for value in self.digests.values())
        return Part(images, dict.fromkeys(images, whole), self.left_out)


@dataclass(frozen=True)
class Objects(Contents):
    """What a folder in COCO's layout holds.

    Args:
        stuff: The names of the stuff.
    """

    stuff: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Nothing: a detector has no output for every class alone."""
        return ()

    def in_words(self) -> list[str]:
        """Return how many pictures and objects there are, and what is not used."""
        texts = []
        for name, part in (("train on", self.train), ("validate on", self.test)):
            counts = dict(part.images)
            pictures = counts.pop("pictures")
            texts.append(f"{pictures} pictures with {sum(counts.values())} objects to {name}")
        words = [f"{self.data}: {', '.join(texts)}; {len(self.classes) - 1} things, {len(self.stuff)} kinds of stuff"]
        for part in (self.train, self.test):
            words += [f"{self.data}: not used: {text}"] if (text := part.left_out_in_words()) else []
        return words

    def news(self) -> list[str]:
        """Return the same: a run says it first."""
        return self.in_words()


def contents(data: str, train: Part2017, val: Part2017) -> Objects:
    """Return what a run keeps of what it is trained on."""
    names = ("pictures", *train.categories.things.values())
    return Objects(data, names, train.part, val.part, tuple(train.categories.stuff.values()))


def find(data: str, data_root: Path) -> Path:
    """Return the folder that `--data` means; "mini" is made in the data root where it is not there.

    Raises:
        UsageError: There is no such folder, or it cannot be written.
    """
    if data != MINI:
        for folder in (Path(data), data_root / data):
            if folder.is_dir():
                return folder
        raise UsageError(Setting("data", data), f"is no folder; name one in COCO's layout, or {MINI}")
    for folder in (Path(MINI), data_root / MINI):
        if (folder / "annotations").is_dir():
            raise UsageError(
                Setting("data", MINI),
                f"means the miniature that the lab makes, and {folder} is a folder in COCO's layout, too; write "
                f"{os.path.join(os.curdir, folder)} for that one, or give it another name",
            )
    folder = data_root / f"coco-mini-{MINI_TRAIN}-{MINI_VAL}-{MINI_SEED}"
    if not folder.is_dir():
        make_mini(folder, MINI_TRAIN, MINI_VAL, MINI_SEED)
    return folder


def make_mini(folder: Path, train: int, val: int, seed: int) -> None:
    """Write a miniature into a folder that is not there: whole, or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    from calibnorm.lab.data.coco import miniature

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            miniature.make(unfinished, train, val, seed)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has made the same one meanwhile
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def read(folder: Path, name: str, learned: Learned, first: int | None = None) -> Part2017:
    """Read a part of a folder, and look at everything that can be wrong with it but the pixels.

    Args:
        folder: In COCO's layout.
        name: "train2017" or "val2017".
        learned: What for: masks are looked at for "mask" and "panoptic" alone, panoptic maps for the latter.
        first: So many pictures alone, the first ones of the file.

    Raises:
        UsageError: A file is missing or damaged, or contradicts another one; the text names it.
    """
    path = folder / "annotations" / f"instances_{name}.json"
    content, digests = _json(path), {"instances": digest([path.read_bytes()])}
    images = _images(path, content["images"], folder / name)
    things = _categories(path, content["categories"])
    if not things:
        raise UsageError(f"{path}: has no category")
    labels = {of: number for number, of in enumerate(things, 1)}
    left_out: dict[str, tuple[int, str]] = {}
    objects: dict[int, list[dict[str, Any]]] = {of: [] for of in images}
    known: set[int] = set()
    for each in content["annotations"]:
        found = _object(path, each, images, labels, learned, clipped=name == TRAIN)
        if each["id"] in known:
            raise UsageError(f"{path}: annotation {each['id']} is there twice")
        known.add(each["id"])
        if isinstance(found, str):
            count, example = left_out.get(found, (0, f"annotation {each['id']}"))
            left_out[found] = count + 1, example
        else:
            objects[each["image_id"]].append(found)
    stuff, maps = dict[int, str](), dict[int, tuple[Path, dict[int, dict[str, Any]]]]()
    if learned == "panoptic":
        of_maps = folder / "annotations" / f"panoptic_{name}.json"
        stuff, maps = _panoptic(of_maps, images, things)
        digests["panoptic"] = digest([of_maps.read_bytes()])
    scenes = tuple(
        Scene(of, folder / name / each["file_name"], each["height"], each["width"], tuple(objects[of]), maps.get(of))
        for of, each in [*images.items()][:first]
    )
    if not any(not each["iscrowd"] for scene in scenes for each in scene.objects):
        raise UsageError(f"{path}: no picture has an object that is no crowd; there is nothing to learn or to measure")
    return Part2017(name, scenes, Categories(things, stuff), left_out, digests)


def check_same(folder: Path, train: Part2017, val: Part2017) -> None:
    """Raise UsageError where training and validation have different categories."""
    for kind, ours, others in (
        ("thing", train.categories.things, val.categories.things),
        ("stuff", train.categories.stuff, val.categories.stuff),
    ):
        if different := sorted(set(ours.items()) ^ set(others.items())):
            of, name = different[0]
            reason = f"{kind} category {of} ({name}) is not the same in train2017 and val2017; both need the same"
            raise UsageError(f"{folder}: {reason}")
        if [*ours] != [*others]:
            raise UsageError(f"{folder}: the {kind} categories of train2017 and val2017 have another order")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        where = "COCO's archive annotations_trainval2017"
        where = where if "instances" in path.name else "COCO's archive panoptic_annotations_trainval2017"
        raise UsageError(f"{path}: is missing; unpack {where}, or name another folder as ", Setting("data"))
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is damaged or cut off ({str(error).splitlines()[0]}); unpack it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no annotations of COCO's kind")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list) or not all(isinstance(each, dict) for each in content[name]):
            raise UsageError(f"{path}: has no list of {name}, as COCO's files have")
    return content


def _require(path: Path, what: str, each: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in kinds.items():
        if not isinstance(each.get(name), kind) or isinstance(each.get(name), bool):
            has = f"{name} {each[name]!r} cannot be used" if name in each else f"{name} is missing"
            raise UsageError(f"{path}: {what} {each.get('id', each.get('image_id', '?'))}: {has}")


def _images(path: Path, listed: Sequence[dict[str, Any]], folder: Path) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for each in listed:
        _require(path, "picture", each, {"id": int, "file_name": str, "height": int, "width": int})
        if each["id"] in images:
            raise UsageError(f"{path}: picture {each['id']} is there twice")
        if min(each["height"], each["width"]) < 1:
            raise UsageError(f"{path}: picture {each['id']}: has no pixels ({each['height']} x {each['width']})")
        images[each["id"]] = each
    if not images:
        raise UsageError(f"{path}: lists no picture")
    _files(folder, (each["file_name"] for each in images.values()), path)
    return images


def _files(folder: Path, names: Iterable[str], by: Path) -> None:
    """Raise UsageError where a file is missing that is listed; one look into the folder for a hundred thousand."""
    try:
        there = set(os.listdir(folder))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror}); {by.name} lists its pictures") from None
    if missing := [name for name in names if name not in there and not (folder / name).is_file()]:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UsageError(f"{folder / missing[0]}{more}: is missing, and {by.name} lists it; unpack the pictures again")


def _categories(path: Path, listed: Sequence[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for each in listed:
        _require(path, "category", each, {"id": int, "name": str})
        if each["id"] in found:
            raise UsageError(f"{path}: category {each['id']} is there twice")
        found[each["id"]] = each["name"]
    return found


def _object(
    path: Path,
    each: dict[str, Any],
    images: Mapping[int, dict[str, Any]],
    labels: Mapping[int, int],
    learned: Learned,
    clipped: bool,
) -> dict[str, Any] | str:
    """Return an annotation with its box and its label; or why it is not used.

    What is learned from is cut off at the edge of its picture. What is measured by stays as it is, as COCO has it.
    """
    what = "annotation"
    _require(path, what, each, {"id": int, "image_id": int, "category_id": int, "bbox": list})
    own = f"{path}: {what} {each['id']}"
    if each["image_id"] not in images:
        raise UsageError(f"{own}: its picture {each['image_id']} is not listed")
    if each["category_id"] not in labels:
        raise UsageError(f"{own}: its category {each['category_id']} is not listed")
    box, picture = each["bbox"], images[each["image_id"]]
    if len(box) != 4 or not all(type(value) in (int, float) and math.isfinite(value) for value in box):
        raise UsageError(f"{own}: bbox {box} must be four finite numbers: x, y, width, height")
    if (crowd := each.get("iscrowd", 0)) not in (0, 1):
        raise UsageError(f"{own}: iscrowd {crowd!r} must be 0 or 1")
    x, y, width, height = box
    corners = x, y, x + width, y + height
    if clipped:
        if width < SMALLEST or height < SMALLEST:
            return DEGENERATE
        corners = max(x, 0), max(y, 0), min(x + width, picture["width"]), min(y + height, picture["height"])
        if corners[2] - corners[0] < SMALLEST or corners[3] - corners[1] < SMALLEST:
            return OUTSIDE
    if learned != "box" and (why := masks.fault(each.get("segmentation"), picture["height"], picture["width"])):
        raise UsageError(f"{own}: its segmentation {why}")
    area = each.get("area", width * height)
    return each | {"box": corners, "label": labels[each["category_id"]], "iscrowd": crowd, "area": float(area)}


def _panoptic(
    path: Path, images: Mapping[int, Mapping[str, Any]], things: Mapping[int, str]
) -> tuple[dict[int, str], dict[int, tuple[Path, dict[int, dict[str, Any]]]]]:
    """Return the stuff, and every picture's map."""
    content, folder = _json(path), path.with_suffix("")
    names = _categories(path, content["categories"])
    isthing = {each["id"]: each.get("isthing") for each in content["categories"]}
    if wrong := [of for of, value in isthing.items() if value not in (0, 1)]:
        raise UsageError(f"{path}: category {wrong[0]}: isthing must be 0 or 1")
    if different := sorted({of for of, value in isthing.items() if value} ^ set(things)):
        raise UsageError(f"{path}: thing category {different[0]} is not the same as in the instances of this part")
    stuff = {of: name for of, name in names.items() if not isthing[of]}
    if not stuff:
        raise UsageError(f"{path}: has no category of stuff")
    order = {of: number for number, of in enumerate([*things, *stuff])}
    maps: dict[int, tuple[Path, dict[int, dict[str, Any]]]] = {}
    for each in content["annotations"]:
        _require(path, "the map of picture", each, {"image_id": int, "file_name": str, "segments_info": list})
        segments: dict[int, dict[str, Any]] = {}
        for segment in each["segments_info"]:
            _require(path, f"picture {each['image_id']}, segment", segment, {"id": int, "category_id": int})
            if segment["category_id"] not in order:
                raise UsageError(
                    f"{path}: segment {segment['id']}: its category {segment['category_id']} is not listed"
                )
            crowd = segment.get("iscrowd", 0)
            segments[segment["id"]] = segment | {"class": order[segment["category_id"]], "iscrowd": crowd}
        maps[each["image_id"]] = folder / each["file_name"], segments
    if lacking := [of for of in images if of not in maps]:
        raise UsageError(f"{path}: has no map of picture {lacking[0]}")
    _files(folder, (maps[of][0].name for of in images), path)
    return stuff, maps
