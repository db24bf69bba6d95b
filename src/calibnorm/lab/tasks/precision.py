"""Average precision of boxes and masks, COCO's six columns, by torchmetrics with faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from calibnorm.lab.data.coco.masks import decoded

Kind = Literal["box", "mask"]
COLUMNS = {"ap": "map", "ap50": "map_50", "ap75": "map_75", "aps": "map_small", "apm": "map_medium", "apl": "map_large"}
"""The papers' columns, and what torchmetrics calls them."""
TYPES = {"box": "bbox", "mask": "segm"}
IOUS, RECALLS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0.0, 1.0, 101).tolist()
"""COCO's thresholds. Those of torchmetrics are rounded to float32: a mask whose IoU is 0.8 would not reach its 0.8."""


def precisions(found: Sequence[dict[str, Any]], kinds: Sequence[Kind]) -> dict[str, float]:
    """Return the columns in percent by names such as "test_box_ap50"; NaN where no object has that size.

    Args:
        found: Of every picture: "scores", "labels", "boxes" and for masks "codes"; of the truth "true_boxes",
            "true_labels", "true_codes", "crowd" and "area"; and "size" (height, width).
        kinds: What is measured.
    """
    from torchmetrics.detection import MeanAveragePrecision

    types: Any = tuple(TYPES[kind] for kind in kinds)
    metric = MeanAveragePrecision("xyxy", types, IOUS, RECALLS, backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    for each in found:
        ours = {name: each[name] for name in ("boxes", "scores", "labels")}
        true = {"boxes": each["true_boxes"], "labels": each["true_labels"]}
        true |= {"iscrowd": each["crowd"], "area": each["area"]}
        if "mask" in kinds:
            ours["masks"], true["masks"] = (decoded(each[name], *each["size"]) for name in ("codes", "true_codes"))
        metric.update([ours], [true])
    values = metric.compute()
    names = {kind: f"{TYPES[kind]}_" if len(kinds) > 1 else "" for kind in kinds}
    figures = {}
    for kind in kinds:
        for column, name in COLUMNS.items():
            value = float(values[f"{names[kind]}{name}"])
            figures[f"test_{kind}_{column}"] = 100 * value if value >= 0 else math.nan
    return figures
