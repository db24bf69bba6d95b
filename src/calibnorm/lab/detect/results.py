"""Results in COCO's formats: a list of instances, and panoptic maps as PNGs with their segments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibnorm.errors import UsageError
from calibnorm.lab.data.coco import masks
from calibnorm.lab.data.coco.folder import Categories, Scene
from calibnorm.lab.data.coco.panoptic import colored, ids_of
from calibnorm.lab.data.pictures import pixels_of, read_picture
from calibnorm.lab.tasks.merging import Map
from calibnorm.report.files import write_whole

INSTANCES, PANOPTIC = "instances.json", "panoptic.json"
MAPS = "panoptic"
Result = dict[str, Tensor]
"""What a detector returns of a picture."""


def instances(found: Sequence[Mapping[str, Any]], categories: Categories) -> list[dict[str, Any]]:
    """Return what a meter has kept of all pictures as COCO's list of results."""
    listed = []
    for each in found:
        for number, (x1, y1, x2, y2) in enumerate(each["boxes"].tolist()):
            one: dict[str, Any] = {"image_id": each["id"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            one["category_id"] = categories.thing_ids[int(each["labels"][number]) - 1]
            one["score"] = float(each["scores"][number])
            if "codes" in each:
                code = each["codes"][number]
                one["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
            listed.append(one)
    return listed


def write(folder: Path, found: Sequence[Mapping[str, Any]], categories: Categories) -> None:
    """Write results; a meter that has kept panoptic maps has those, too."""
    write_whole(folder / INSTANCES, json.dumps(instances(found, categories)).encode())
    if "map" not in found[0]:
        return
    listed = []
    (folder / MAPS).mkdir()
    for each in found:
        name, of = f"{each['id']:012}.png", each["map"]
        colored(of.segments.cpu() + 1).save(folder / MAPS / name)
        ids = [categories.ids[kind] for kind in of.classes]
        segments = [{"id": number, "category_id": category} for number, category in enumerate(ids, 1)]
        listed.append({"image_id": each["id"], "file_name": name, "segments_info": segments})
    write_whole(folder / PANOPTIC, json.dumps({"annotations": listed}).encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: is damaged or cut off ({error})") from None


def read_instances(path: Path, scenes: Sequence[Scene], categories: Categories, with_masks: bool) -> dict[int, Result]:
    """Return the results of a file, for every picture, as a detector returns them.

    Raises:
        UsageError: The file is missing or damaged, or has results of pictures or categories that there are not.
    """
    content, labels = _read(path), {of: number for number, of in enumerate(categories.thing_ids, 1)}
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise UsageError(f"{path}: is no list of results in COCO's format")
    of_picture: dict[int, list[dict[str, Any]]] = {scene.id: [] for scene in scenes}
    sizes = {scene.id: (scene.height, scene.width) for scene in scenes}
    for number, each in enumerate(content, 1):
        where = f"{path}: result {number}"
        if each.get("image_id") not in of_picture:
            raise UsageError(f"{where}: its picture {each.get('image_id')} is not in the validation")
        if each.get("category_id") not in labels:
            raise UsageError(f"{where}: its category {each.get('category_id')} is no thing of the validation")
        numbers = [each.get("score"), *(each["bbox"] if isinstance(each.get("bbox"), list) else [])]
        if len(numbers) != 5 or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise UsageError(f"{where}: needs a score, and a bbox of four finite numbers")
        if with_masks and (why := masks.fault(each.get("segmentation"), *sizes[each["image_id"]])):
            raise UsageError(f"{where}: its segmentation {why}")
        of_picture[each["image_id"]].append(each)
    return {of: _result(listed, labels, sizes[of], with_masks) for of, listed in of_picture.items()}


def _result(
    listed: Sequence[Mapping[str, Any]], labels: Mapping[int, int], size: tuple[int, int], with_masks: bool
) -> Result:
    boxes = torch.tensor([each["bbox"] for each in listed], dtype=torch.float64).view(-1, 4)
    result = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).float(),
        "scores": torch.tensor([each["score"] for each in listed], dtype=torch.float32),
        "labels": torch.tensor([labels[each["category_id"]] for each in listed], dtype=torch.int64),
    }
    if with_masks:
        codes = [masks.code_of(each["segmentation"], *size) for each in listed]
        result["masks"] = masks.decoded(codes, *size)[:, None].float()
    return result


def read_maps(folder: Path, scenes: Sequence[Scene], categories: Categories) -> dict[int, Map]:
    """Return the panoptic map of every picture.

    Raises:
        UsageError: A file is missing or damaged, or says something else than another one.
    """
    path, order = folder / PANOPTIC, {of: number for number, of in enumerate(categories.ids)}
    content = _read(path)
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(
        isinstance(each, dict) and {"image_id", "file_name", "segments_info"} <= each.keys() for each in listed
    ):
        raise UsageError(f"{path}: has no annotations in COCO's panoptic format")
    of_picture = {each["image_id"]: each for each in listed}
    maps = {}
    for scene in scenes:
        if scene.id not in of_picture:
            raise UsageError(f"{path}: has no map of picture {scene.id}")
        each = of_picture[scene.id]
        file = folder / MAPS / str(each["file_name"])
        ids = ids_of(pixels_of(read_picture(file)))
        if tuple(ids.shape) != (scene.height, scene.width):
            raise UsageError(f"{file}: has {ids.shape[0]} x {ids.shape[1]} pixels, not {scene.height} x {scene.width}")
        kinds = {segment["id"]: segment["category_id"] for segment in each["segments_info"]}
        there, numbers = ids.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        own = [of for of in there.tolist() if of]
        if unknown := [of for of in own if kinds.get(of) not in order]:
            raise UsageError(f"{file}: segment {unknown[0]} has no category of the validation in {path.name}")
        first = 1 if 0 in there.tolist() else 0
        maps[scene.id] = Map(numbers - first, [order[kinds[of]] for of in own])
    return maps
