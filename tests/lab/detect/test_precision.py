"""The figures of results on the miniature against pycocotools' own, to the last digits that both have."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from calibnorm.lab.data.coco import masks
from calibnorm.lab.data.coco.folder import read
from calibnorm.lab.detect.results import read_instances
from calibnorm.lab.tasks.precision import precisions
from lab.detect.small import changed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SIZE = 96


def shaken(content: Any) -> list[dict[str, Any]]:
    """Return results that are near the truth, some of them of another category, twice, or of nothing that is there."""
    draw = torch.Generator().manual_seed(0)
    things, found = [each["id"] for each in content["categories"]], []
    for each in content["annotations"]:
        mask = masks.decoded([masks.code_of(each["segmentation"], SIZE, SIZE)], SIZE, SIZE)
        for _ in range(1 + int(torch.rand((), generator=draw) < 0.3)):
            dy, dx = torch.randint(-3, 4, (2,), generator=draw).tolist()
            (code,) = masks.encoded(mask.roll((dy, dx), (1, 2)))
            x, y, width, height = each["bbox"]
            wider = 1 + 0.2 * float(torch.rand((), generator=draw))
            # IoUs of whole pixels can be a threshold's own number, on which roundings would decide.
            one = {"image_id": each["image_id"], "bbox": [x + dx + 0.137, y + dy + 0.071, wider * width, height]}
            right = float(torch.rand((), generator=draw)) < 0.8
            one["category_id"] = each["category_id"] if right else things[int(torch.randint(10, (), generator=draw))]
            one["score"] = round(float(torch.rand((), generator=draw)), 4)
            one["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
            found.append(one)
    return found


@pytest.mark.parametrize("large", [False, True], ids=["small and medium", "all sizes"])
def test_boxes_and_masks_have_pycocotools_columns(mini: Path, tmp_path: Path, large: bool) -> None:
    def bigger(content: Any) -> None:
        for each in content["annotations"][::3]:
            each["area"] = 100.0**2

    folder = changed(mini, tmp_path / "data", "instances_val2017", bigger if large else list)
    path = folder / "annotations" / "instances_val2017.json"
    found = shaken(json.loads(path.read_text()))
    (tmp_path / "instances.json").write_text(json.dumps(found))
    part = read(folder, "val2017", "mask")
    ours = read_instances(tmp_path / "instances.json", part.scenes, part.categories, with_masks=True)
    kept = []
    for scene in part.scenes:
        result = ours[scene.id]
        true = {name: [each[name] for each in scene.objects] for name in ("box", "label", "iscrowd", "area")}
        kept.append(
            {
                **{name: result[name] for name in ("boxes", "scores", "labels")},
                "size": (SIZE, SIZE),
                "codes": masks.encoded(result["masks"][:, 0] > 0.5),
                "true_codes": [masks.code_of(each["segmentation"], SIZE, SIZE) for each in scene.objects],
                "true_boxes": torch.tensor(true["box"], dtype=torch.float32).view(-1, 4),
                "true_labels": torch.tensor(true["label"]),
                "crowd": torch.tensor(true["iscrowd"]),
                "area": torch.tensor(true["area"]),
            }
        )
    figures = precisions(kept, ("box", "mask"))
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
            # With a box there, it would take the box's area for the mask's.
            alone = [{n: v for n, v in each.items() if kind == "box" or n != "bbox"} for each in found]
            evaluation = COCOeval(coco, coco.loadRes(alone), theirs)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        expected = [100 * value if value >= 0 else float("nan") for value in evaluation.stats[:6]]
        own = [figures[f"test_{kind}_{column}"] for column in ("ap", "ap50", "ap75", "aps", "apm", "apl")]
        assert own == pytest.approx(expected, abs=1e-4, nan_ok=True)
        assert 5 < own[0] < own[1] < 99
        assert (own[5] == own[5]) is large
