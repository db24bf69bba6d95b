"""What looking into a network costs, as ratios: ResNet-50 of torchvision with random weights, converted to IEBN.

    python benchmarks/inspect_overhead.py [--images 256] [--side 64] [--rounds 3]

Every ratio is the median over rounds of the processor time of an instrument over that of as many images sent through
the network in the same round, on one thread, so that other work on the machine counts little. The last line is what a
training step costs with a reading of the meter every 50 steps, as `calibnorm train --noise-every 50` takes it, over one
without: ``1 + reading / (50 * step)``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision

import calibnorm as cn
from calibnorm.lab.training.noise import DRAWS, POOL, PROBES

BATCH = 32


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = cn.convert(torchvision.models.resnet50(), "iebn")
    images, labels = torch.randn(given.images, 3, given.side, given.side), torch.randint(1000, (given.images,))
    batches = images.split(BATCH)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)

    @torch.no_grad()
    def plain(train: bool) -> None:
        network.train(train)
        for batch in batches:
            network(batch)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batches[0]), labels[:BATCH]).backward()
        optimizer.step()

    def reading(gradients: bool, probes: int, draws: int, sizes: tuple[int, ...], pool: int) -> None:
        data = [(images, labels)]
        cn.inspect.batch_noise(network.train(), data, probes, sizes, draws, gradients=gradients, pool=pool)

    ratios: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        of_evaluation, of_training = seconds(lambda: plain(False)), seconds(lambda: plain(True))
        of_step = seconds(lambda: [step() for _ in range(3)]) / 3
        for name, work in (
            ("gates", lambda: cn.inspect.gates(network, batches)),
            ("channel_std", lambda: cn.inspect.channel_std(network, batches)),
        ):
            ratios.setdefault(f"{name}, of an evaluation", []).append(seconds(work) / of_evaluation)
        took = seconds(lambda: reading(False, 4, 2, (8, 32), given.images))
        forwards = 8 * (8 + 32) + given.images
        ratio = took / (of_training * forwards / given.images)
        ratios.setdefault("batch_noise without a loss, of its forwards in training mode", []).append(ratio)
        took = seconds(lambda: reading(True, 4, 2, (8, 32), 64))
        ratio = took / (of_step * (forwards - given.images + 64) / BATCH)
        ratios.setdefault("batch_noise with gradients, of as many images in training steps", []).append(ratio)
        took = seconds(lambda: reading(False, PROBES, DRAWS, (BATCH,), POOL))
        ratios.setdefault("a step with the meter every 50 steps, of one without", []).append(1 + took / (50 * of_step))
    print(f"{given.images} images of {given.side} x {given.side}, one thread, batches of {BATCH}")
    for name, values in ratios.items():
        print(f"{statistics.median(values):6.2f}  {name} ({', '.join(f'{v:.2f}' for v in values)})")


if __name__ == "__main__":
    main()
