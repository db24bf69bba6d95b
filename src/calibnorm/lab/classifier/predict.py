"""`calibnorm predict`: what a trained classifier takes pictures for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from calibnorm.errors import UsageError
from calibnorm.lab.classifier.config import PredictConfig
from calibnorm.lab.classifier.opening import Classifier, Deployed, opened
from calibnorm.lab.data.feed import Pixels
from calibnorm.lab.data.listing import named
from calibnorm.lab.data.pictures import pixels_of, read_picture
from calibnorm.lab.data.workers import readers
from calibnorm.lab.training.machine import choose
from calibnorm.report.files import write_csv, writing

Answer = list[tuple[str, float]]
"""Classes with their probabilities, the most probable first."""


def run(config: PredictConfig, console: Console | None = None) -> int:
    """Predict.

    Returns:
        The exit status: 0; 1 where pictures were left out, which cannot be read.

    Raises:
        UsageError: The run or a picture that was named is not there, or the file cannot be written.
    """
    console = console or Console()
    device = torch.device(choose(config.accelerator))
    classifier = opened(config.run)
    paths = [below(place, path) for place, of in named(config.pictures) for path in of]
    rows, left_out = list[dict[str, Any]](), 0
    found = predicted(classifier, paths, config.batch_size, config.top, device)
    quiet = config.out is None or not console.is_terminal
    for path, answer in track(found, "predicting", len(paths), console=console, transient=True, disable=quiet):
        if isinstance(answer, UsageError):
            left_out += 1
            print(f"calibnorm: left out: {answer}", file=sys.stderr)
        elif config.out is None:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in answer)
            console.print(f"{path}: {shares}", highlight=False, markup=False, soft_wrap=True)
        else:
            rows.append(line(path, answer))
    if config.out is not None:
        with writing(config.out):
            write_csv(config.out, rows, columns(min(config.top, len(classifier.classes))))
        said = f"{config.out}: {len(paths) - left_out} of {len(paths)} pictures; {classifier.words}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    return 1 if left_out else 0


def below(place: Path, path: Path) -> Path:
    """Return a picture's path as it can be typed: below the folder that was named, if it is in one."""
    return place / path.relative_to(place.absolute()) if place.is_dir() else path


def columns(top: int) -> list[str]:
    """Return the columns of the file."""
    return ["picture", *(f"{of}_{place}" for place in range(1, top + 1) for of in ("class", "probability"))]


def line(path: Path, answer: Answer) -> dict[str, Any]:
    """Return a line of the file."""
    values = [value for name, share in answer for value in (name, f"{share:.6f}")]
    return dict(zip(columns(len(answer)), [str(path), *values], strict=True))


@torch.no_grad()
def predicted(
    classifier: Classifier, paths: Sequence[Path], batch_size: int, top: int, device: torch.device
) -> Iterator[tuple[Path, Answer | UsageError]]:
    """Yield every picture's classes in order, or why it cannot be read.

    Args:
        classifier: The network.
        paths: The pictures.
        batch_size: How many go through the network together; memory holds as many.
        top: So many classes.
        device: Where the network runs.
    """
    network, classes = Deployed(classifier).to(device).eval(), classifier.classes
    with ThreadPoolExecutor(readers()) as pool:
        for first in range(0, len(paths), batch_size):
            part = paths[first : first + batch_size]
            read = list(pool.map(lambda path: seen(path, classifier.pixels), part))
            whole = [picture for picture in read if isinstance(picture, Tensor)]
            shares = network(torch.stack(whole).to(device).float() / 255).cpu() if whole else torch.empty(0, 1)
            best = iter(zip(*shares.topk(min(top, shares.shape[1])), strict=True))
            for path, picture in zip(part, read, strict=True):
                if isinstance(picture, UsageError):
                    yield path, picture
                else:
                    values, places = (each.tolist() for each in next(best))
                    yield path, [(classes[at], share) for at, share in zip(places, values, strict=True)]


def seen(path: Path, pixels: Pixels) -> Tensor | UsageError:
    """Return a picture (channels, size, size) in uint8 as the test sees it; or the error of one that cannot be read."""
    from torchvision.transforms import v2

    try:
        picture = read_picture(path)
    except UsageError as error:
        return error
    cut = v2.Compose([v2.Resize(pixels.short), v2.CenterCrop(pixels.size)])(picture)
    return pixels_of(cut.convert("L").convert("RGB") if pixels.channels == 1 else cut)[: pixels.channels]
