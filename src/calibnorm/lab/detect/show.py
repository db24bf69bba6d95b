"""`calibnorm detect show`: boxes, masks and panoptic maps drawn on pictures, beside the truth where it is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from calibnorm.errors import UsageError
from calibnorm.lab.data.coco.feed import Scenes, Target
from calibnorm.lab.data.listing import named
from calibnorm.lab.data.pictures import Damaged, pixels_of, read_picture
from calibnorm.lab.detect.config import ShowConfig
from calibnorm.lab.detect.opening import Detector, opened
from calibnorm.lab.tasks.detect import SOLID, DetectPanoptic
from calibnorm.lab.tasks.merging import Map
from calibnorm.report.files import writing
from calibnorm.report.pictures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.0
"""Of a picture in inches."""
VEIL = 0.55
"""How much of a mask's colour covers the picture."""
MOST_NAMED = 20
"""Classes of a legend, those of the drawing alone."""


def run(config: ShowConfig, console: Console | None = None) -> int:
    """Draw pictures, say where the drawings are, and return the exit status: 1 where pictures were left out.

    Raises:
        UsageError: The run or a named picture is not there, or the folder cannot be written.
    """
    console, left_out, written = console or Console(), 0, set[str]()
    with opened(config.run, config.data_root) as detector:
        scenes = Scenes(detector.test.scenes.part, detector.task.learned, 0, False)
        by_path = {scene.path.resolve(): number for number, scene in enumerate(scenes.part.scenes)}
        for path in chosen(config, [scene.path for scene in scenes.part.scenes]):
            try:
                picture = pixels_of(read_picture(path))
                truth = None
                if (number := by_path.get(path.resolve())) is not None:
                    item = scenes[0, number]
                    if isinstance(item, Damaged):
                        raise UsageError(item.reason)
                    truth = item[1]
            except UsageError as error:
                left_out += 1
                print(f"calibnorm: left out: {error}", file=sys.stderr)
                continue
            name = path.stem if path.stem not in written else path.name
            written.add(name)
            with writing(config.out):
                save(drawn(detector, picture, truth, config.least_score), config.out / f"{name}.png")
    console.print(f"{len(written)} drawings in {config.out}", highlight=False, soft_wrap=True)
    return 1 if left_out else 0


def chosen(config: ShowConfig, validation: Sequence[Path]) -> Iterator[Path]:
    """Yield the pictures that are shown.

    Raises:
        UsageError: One is not there, or a folder holds none.
    """
    for _, found in named(config.pictures or validation[: config.count]):
        yield from found


@torch.no_grad()
def drawn(detector: Detector, picture: Tensor, truth: Target | None, least_score: float) -> Figure:
    """Return a figure of what a detector finds in a picture (3, H, W) in uint8, and of what is there.

    Args:
        detector: The trained network.
        picture: The picture.
        truth: What is in it; None where nobody knows.
        least_score: Boxes and masks of lower scores are not drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    categories, task = detector.test.categories, detector.task
    (result,) = detector.network([picture])
    kept = result["scores"] >= least_score
    things: list[Mapping[str, Any]] = [{name: value[kept] for name, value in result.items() if name != "semantic"}]
    maps: list[Map | None] = [None]
    if isinstance(task, DetectPanoptic):
        maps = [task.merged(result, len(categories.things), len(categories.stuff))]
    if truth is not None:
        things.append(truth)
        maps.append(Map(truth["segments"], truth["classes"].tolist()) if "segments" in truth else None)
    columns = len(things) * (2 if maps[0] is not None else 1)
    high = WIDTH * picture.shape[1] / picture.shape[2]
    made = Figure(figsize=(WIDTH * columns, high + 0.9), layout="constrained")
    grid = iter(made.subplots(1, columns, squeeze=False)[0])
    colors, seen = palette(len(categories.names)), dict[int, None]()
    for of, found in zip(("found", "truth"), things, strict=False):
        axes = next(grid)
        seen |= dict.fromkeys(instances(axes, picture, found, colors, categories.names))
        axes.set_title(f"{of}: objects", fontsize="small")
    for of, found_map in zip(("found", "truth"), maps, strict=False):
        if found_map is not None:
            axes = next(grid)
            seen |= dict.fromkeys(panoptic(axes, picture, found_map, colors))
            axes.set_title(f"{of}: panoptic map", fontsize="small")
    patches = [Patch(color=colors[kind], label=categories.names[kind]) for kind in sorted(seen)[:MOST_NAMED]]
    if patches:
        made.legend(handles=patches, loc="outside lower center", ncols=5 * columns, frameon=False, fontsize="small")
    return made


def palette(count: int) -> list[tuple[float, float, float]]:
    """Return colours that are told apart: hues in steps of the golden angle, the brightness changing."""
    from colorsys import hsv_to_rgb

    return [hsv_to_rgb(number * 0.381966 % 1, 0.85, 0.95 - 0.25 * (number // 2 % 2)) for number in range(count)]


def instances(
    axes: Axes, picture: Tensor, found: Mapping[str, Any], colors: Sequence[Any], names: Sequence[str]
) -> list[int]:
    """Draw boxes and masks, and return their classes."""
    from matplotlib.patches import Rectangle

    shown = picture.permute(1, 2, 0).double() / 255
    kinds = [int(label) - 1 for label in found["labels"]]
    if "masks" in found:
        masks = found["masks"][:, 0] >= SOLID if found["masks"].ndim == 4 else found["masks"].bool()
        for mask, kind in zip(masks, kinds, strict=True):
            shown[mask] = (1 - VEIL) * shown[mask] + VEIL * torch.tensor(colors[kind]).double()
    canvas(axes, shown)
    for number, ((x1, y1, x2, y2), kind) in enumerate(zip(found["boxes"].tolist(), kinds, strict=True)):
        crowd = "crowd" in found and bool(found["crowd"][number])
        style = ":" if crowd else "-"
        box = (x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1
        axes.add_patch(Rectangle(*box, fill=False, edgecolor=colors[kind], linewidth=1.5, linestyle=style))
        score = f" {float(found['scores'][number]):.2f}" if "scores" in found else " (crowd)" if crowd else ""
        look: Any = {"facecolor": colors[kind], "pad": 1, "edgecolor": "none"}
        axes.text(
            x1, y1, f"{names[kind]}{score}", fontsize="x-small", color="white", va="bottom", bbox=look, clip_on=True
        )
    return kinds


def panoptic(axes: Axes, picture: Tensor, found: Map, colors: Sequence[Any]) -> list[int]:
    """Draw a panoptic map with the edges of its segments in white, and return its classes."""
    shown = picture.permute(1, 2, 0).double() / 255
    for number, kind in enumerate(found.classes):
        if kind >= 0:
            mask = found.segments == number
            shown[mask] = (1 - VEIL) * shown[mask] + VEIL * torch.tensor(colors[kind]).double()
    edge = torch.zeros(shown.shape[:2], dtype=torch.bool)
    edge[1:] |= found.segments[1:] != found.segments[:-1]
    edge[:, 1:] |= found.segments[:, 1:] != found.segments[:, :-1]
    shown[edge] = 1.0
    canvas(axes, shown)
    return [kind for kind in found.classes if kind >= 0]


def canvas(axes: Axes, shown: Tensor) -> None:
    """Put pixels (H, W, 3) on axes that show nothing else."""
    axes.imshow(shown.clamp(0, 1).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlim=(-0.5, shown.shape[1] - 0.5), ylim=(shown.shape[0] - 0.5, -0.5))
    axes.spines[:].set_visible(False)
