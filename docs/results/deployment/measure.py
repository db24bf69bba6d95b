"""What deployment tools make of a trained network: whether they take it, what it costs, and its accuracy.

python docs/results/deployment/measure.py RUN [TOOL ...]      a finished run's folder; all tools by default

The network is taken as it was trained, and as cn.fold without a limit makes it: plain BatchNorm in the convolutions.
Time is that of one image on one thread, in time of the processor, both networks in turns. Quantizers read 64 training
images. Results go to results.csv and report.md beside this file; lines of other tools stay in results.csv.
"""

from __future__ import annotations

import copy
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "folding")]

import tools  # noqa: E402
from measure_folding import ProcessorClock, first_images, nothing  # noqa: E402

import calibnorm as cn  # noqa: E402
from calibnorm.bench.clock import measure  # noqa: E402
from calibnorm.lab.training.trained import Trained, trained  # noqa: E402
from calibnorm.report import markdown  # noqa: E402
from calibnorm.report.document import Document, Facts, Paragraph, Section, Table  # noqa: E402
from calibnorm.report.environment import describe_environment, named  # noqa: E402
from calibnorm.report.files import read_csv, write_csv  # noqa: E402

REPEATS, CALIBRATION = 100, 64


class Called(nn.Module):
    """The call of a tool, which takes one image at a time, as a network that can be tested."""

    def __init__(self, answer: tools.Answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of every image."""
        return torch.cat([self.answer(image[None]) for image in images])


def line(tool: str, of: Trained, networks: dict[str, nn.Module], images: Tensor) -> dict[str, Any]:
    """Return what a tool makes of the networks; the reason where it refuses one."""
    make, found = (tools.FLOAT | tools.INT8)[tool], dict[str, Any]()
    package = tools.PACKAGES.get(tool.partition(",")[0], "torch")
    found |= {"tool": f"{tool} ({package} {version(package)})", "works": "yes"}
    answers: dict[str, tools.Answer] = {}
    for name, network in networks.items():
        with torch.no_grad():
            try:
                answers[name] = make(copy.deepcopy(network), images[:1], images)
                answers[name](images[:1])
            except Exception as error:
                found["works"] = f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"
    with torch.no_grad():
        calls = {n: (nothing, lambda a=a: a(images[:1])) for n, a in answers.items()}
        times = measure(calls, ProcessorClock(), REPEATS)
        found |= {f"{n}_ms": round(times[n].quantiles[1], 2) if n in answers else None for n in networks}
        for name in networks:
            known = name in answers
            found[f"{name}_differs"] = apart(answers[name], networks[name], images) if known else None
            tested = Trained(of.task, of.feeds, Called(answers[name])).headline() if known else None
            found[f"{name}_accuracy"] = tested and round(tested, 2)
    return found


def apart(answer: tools.Answer, network: nn.Module, images: Tensor) -> float:
    """Return by how much the scores of eight images differ from eager ones, over the largest of these."""
    expected = network(images[:8])
    found = torch.cat([answer(image[None]) for image in images[:8]])
    return float(f"{((found - expected).abs().max() / expected.abs().max()).item():.1e}")


def document(rows: list[dict[str, Any]], run: str) -> Document:
    """Return the report."""
    how = (
        f"{run}: calibrated as it was trained, and folded by cn.fold without a limit into the convolutions. ms is one "
        "image on one thread, in time of the processor, the median. Differs is the largest difference of a score to "
        "eager torch, over the largest score. Accuracy is that of all test images, in percent."
    )
    facts = Section("Made with", [Facts(named(describe_environment()))])
    return Document("Networks in deployment tools", [Section("", [Paragraph(how), Table.of(rows, left=2)]), facts])


def main() -> None:
    """Measure the tools of the command line."""
    torch.set_num_threads(1)
    run, *asked = sys.argv[1:]
    kept: dict[str, dict[str, Any]] = {}
    table = HERE / "results.csv"
    if asked:
        kept = {row["tool"]: row for row in read_csv(table)}
    with trained(Path(run), Path("data")) as of:
        images = first_images(of)[:CALIBRATION]
        folded = cn.fold(copy.deepcopy(of.network), images, tolerance=None, into_convolutions=True, report=print)
        networks = {"calibrated": of.network, "folded": folded}
        for tool in asked or [*tools.FLOAT, *tools.INT8]:
            package = tools.PACKAGES.get(tool.partition(",")[0], "torch")
            if find_spec(package) is None:
                print(f"skipped, {tool}: needs {package}, which is not installed", flush=True)
                continue
            found = line(tool, of, networks, images)
            kept[found["tool"]] = found
            print(found, flush=True)
            write_csv(table, list(kept.values()))
        recipe = of.task.recipe
    name = f"{recipe.model} on {recipe.data}, {recipe.norm}, seed {recipe.seed}"
    markdown.write(document(list(kept.values()), name), HERE / "report.md")


if __name__ == "__main__":
    main()
