"""Put the study's runs together: results.csv, curves.png, and what takes no notice of a picture comes to.

python docs/results/detection/collect.py RUNS DATA_ROOT      RUNS holds a folder for each run, DATA_ROOT the miniature
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch

from calibnorm.lab.data.coco import folder as folders
from calibnorm.lab.data.coco.feed import Scenes, Target
from calibnorm.lab.tasks.merging import Map
from calibnorm.lab.tasks.panoptic_quality import counted, qualities
from calibnorm.lab.tasks.precision import precisions
from calibnorm.report import pictures
from calibnorm.report.files import write_csv
from calibnorm.report.pictures.bands import over

HERE = Path(__file__).parent
FIGURES = (
    "box_ap",
    "box_ap50",
    "box_ap75",
    "mask_ap",
    "mask_ap50",
    "mask_ap75",
    "pq",
    "sq",
    "rq",
    "pq_things",
    "pq_stuff",
)
PANELS = {"box AP50 (%)": "test_box_ap50", "mask AP50 (%)": "test_mask_ap50", "PQ (%)": "test_pq"}
ROWS = (0.25, 0.5, 0.75)
"""Where the middles of constant boxes lie."""


def main(runs: Path, data_root: Path) -> None:
    """Write the files."""
    rows, columns = [], dict[str, dict[str, dict[str, list[list[tuple[float, float]]]]]]()
    for path in sorted(runs.glob("*/result.json")):
        config, result = (json.loads((path.parent / name).read_text()) for name in ("config.json", "result.json"))
        row = {"task": config["task"], "norm": config["norm"], "seed": config["seed"]}
        row |= {name: round(result[f"test_{name}"], 2) if f"test_{name}" in result else "" for name in FIGURES}
        rows.append(row | {"parameters": result["parameters"], "minutes": round(result["seconds"] / 60, 1)})
        with (path.parent / "metrics.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        for label, name in PANELS.items():
            if name in lines[0]:
                points = [(float(line["epoch"]), float(line[name])) for line in lines]
                columns.setdefault(config["task"], {}).setdefault(label, {}).setdefault(config["norm"], []).append(
                    points
                )
    write_csv(HERE / "results.csv", rows)
    drawn = {
        task: {label: {norm: over(of) for norm, of in norms.items()} for label, norms in panels.items()}
        for task, panels in columns.items()
    }
    pictures.save(pictures.figure(pictures.bands(drawn, "epoch", logarithmic=False)), HERE / "curves.png")
    part = folders.read(folders.find("mini", data_root), "val2017", "panoptic")
    scenes = Scenes(part, "panoptic", 0, False)
    truth: list[Target] = [scenes[0, index][1] for index in range(len(scenes))]  # type: ignore[index]
    print("a grid of boxes of the mean size, all classes:", {k: round(v, 2) for k, v in boxes(truth).items()})
    print("the same stuff, or halves of two, in every picture: PQ at most", round(stuff(truth), 2))


def boxes(truth: list[Target]) -> dict[str, float]:
    """Return the AP of nine boxes of the mean size for every class in every picture, surest in the middle."""
    sides = torch.cat([each["boxes"] for each in truth])
    high, wide = truth[0]["segments"].shape
    half = (sides[:, 2:] - sides[:, :2]).mean(0) / 2
    middles = torch.tensor([(wide * x, high * y) for x in ROWS for y in ROWS])
    scores = 1 - (middles / torch.tensor([wide, high]) - 0.5).abs().sum(1)
    found = {"boxes": torch.cat([middles - half, middles + half], 1).repeat(10, 1), "scores": scores.repeat(10)}
    found["labels"] = torch.arange(1, 11).repeat_interleave(len(middles))
    kept = [
        {
            **found,
            "true_boxes": each["boxes"],
            "true_labels": each["labels"],
            "crowd": each["crowd"],
            "area": each["area"],
        }
        for each in truth
    ]
    return precisions(kept, ("box",))


def stuff(truth: list[Target]) -> float:
    """Return the highest PQ of one kind of stuff everywhere, or of two side by side."""
    shape, (things, kinds) = truth[0]["segments"].shape, truth[0]["counts"]
    halves = torch.zeros(shape, dtype=torch.int64)
    halves[:, shape[1] // 2 :] = 1
    constants = [Map(torch.zeros(shape, dtype=torch.int64), [things + kind]) for kind in range(kinds)]
    pairs = ((a, b) for a in range(kinds) for b in range(kinds) if a != b)
    constants += [Map(halves, [things + a, things + b]) for a, b in pairs]
    found = []
    for constant in constants:
        count = things + kinds
        each = [counted(constant, of["segments"], of["classes"], of["crowds"], count) for of in truth]
        found.append(qualities(torch.stack(each).sum(0), range(count))[0])
    return max(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
