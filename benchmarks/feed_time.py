"""How long a batch of images takes to make: crops, flips and standardization, on one core or on a GPU.

    PYTHONPATH=src python benchmarks/feed_time.py [--device cuda]

Images are random, as many as the sets have. Prints the median of 60 batches, each waited for, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from calibnorm.lab import data
from calibnorm.lab.data.image_set import ImageSet, make

BATCHES = 60


def random_set(count: int, channels: int, size: int, classes: int) -> ImageSet:
    """Return a set of random pixels."""

    def part(count: int) -> data.Split:
        images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
        return data.Split(images, torch.arange(count) % classes)

    return make("random", part(count), part(1000), classes)


def milliseconds(feed: data.Feed, device: torch.device) -> float:
    """Return the median time of a batch."""
    times = []
    batches = iter(feed)
    next(batches)  # the epoch's order is drawn here
    for _ in range(BATCHES):
        start = time.perf_counter()
        next(batches)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def main() -> None:
    """Time the feeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (one core) or cuda")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    gray, color = random_set(60_000, 1, 28, 10), random_set(50_000, 3, 32, 100)
    common = {"seed": 0, "device": device}
    for name, feed in (
        ("128 of 1 x 28 x 28", data.train_feed(gray, batch_size=128, **common)),
        ("128 of 1 x 28 x 28, no augmentation", data.train_feed(gray, batch_size=128, augment="none", **common)),
        ("128 of 3 x 32 x 32", data.train_feed(color, batch_size=128, **common)),
        ("100 of 3 x 32 x 32 and 240 others", data.train_feed(color, batch_size=340, mix=gray, **common)),
    ):
        print(f"{milliseconds(feed, device):.2f} ms  {name}")


if __name__ == "__main__":
    main()
