"""What stands in each table: which network, images, norm and attack a printed number belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from calibnorm.lab.experiments import published
from calibnorm.lab.experiments.published import Measure, Printed

Paper = Literal["iebn", "rbn"]


@dataclass(frozen=True)
class Entry:
    """One number of a table, and what gives it.

    Args:
        row: What it is compared under, as shown.
        column: What is compared, as shown.
        printed: What the paper prints; None where it has a picture, or nothing.
        model: The paper's network.
        data: The paper's images.
        norm: As text.
        noise: The constant noise attack.
        mix: The other data set of the mix-datasets attack, and k.
        stages: Where the norm replaces BatchNorm.
    """

    row: str
    column: str
    printed: Printed | None
    model: str
    data: str
    norm: str
    noise: tuple[float, float] | None = None
    mix: tuple[str, int] | None = None
    stages: str = "all"


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        name: As the command takes it.
        paper: Which paper.
        place: Where in it.
        title: What it is about.
        measure: Accuracies, or errors.
        entries: Everything in it, by row.
        baseline: The column that the others of a row are compared with.
        notes: What the paper does not say and was chosen here; sentences.
        undisturbed: The row that the other rows' losses are counted from, for a table of an attack.
    """

    name: str
    paper: Paper
    place: str
    title: str
    measure: Measure
    entries: tuple[Entry, ...]
    baseline: str
    notes: tuple[str, ...] = field(default=())
    undisturbed: str | None = None


def table(name: str) -> Table:
    """Return a table by its name, one of `TABLES`."""
    return TABLES[name](name)


def make(
    name: str, title: str, entries: Iterator[Entry], baseline: str, *notes: str, undisturbed: str | None = None
) -> Table:
    """Return a table with what published.yaml says of it."""
    source = published.SOURCES[name]
    return Table(name, source.paper, source.place, title, source.measure, tuple(entries), baseline, notes, undisturbed)


def iebn_1(name: str) -> Table:
    """Architectures and data sets."""

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            model, data = map(str, p.row)
            yield Entry(f"{model}, {data}", p.column, p, model, data, p.column)

    return make(name, "BN, SE and IEBN over networks and data sets", entries(), "bn")


def iebn_2(name: str) -> Table:
    """Constant noise."""

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            noise = (float(p.row[0]), float(p.row[1]))
            clean = noise == (0, 0)
            row = "no noise" if clean else f"noise {noise[0]:g}, {noise[1]:g}"
            yield Entry(row, p.column, p, "resnet164", "cifar100", p.column, None if clean else noise)

    note = "The paper does not say whether its noise stays on at test time: here it does."
    v1 = "The row of noise 0.8, 0.2 is printed in the first version of the paper alone."
    return make(name, "the constant noise attack", entries(), "bn", note, v1)


NOT_MIXED = "not mixed"


def iebn_3(name: str) -> Table:
    """Mixed data sets."""

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            other, k = str(p.row[0]), int(p.row[1])
            mix = None if other == "none" else (other, k)
            row = NOT_MIXED if mix is None else f"{120 * k} of {other} a batch"
            yield Entry(row, p.column, p, "resnet164", "cifar100", p.column, mix=mix)

    return make(
        name,
        "the mix-datasets attack: 100 images of the data set and 120 k of another in every batch",
        entries(),
        "bn",
        "The paper does not say how the others are trained on: here their classes follow the data set's own in one "
        "loss, and accuracy is measured on the data set's test images over all outputs.",
        "Every mixed row takes a step for 100 images of the data set. At paper scale the row that is not mixed is that "
        "of the other tables, with 128 a step, so it takes fewer steps; at the other scales it has 100 too.",
        undisturbed=NOT_MIXED,
    )


TWO_GPUS = (
    'The paper made its ablations "using 2 GPUs" and does not speak of synchronized statistics: they are then those of '
    "about 64 images a GPU, and ours, of one process, those of the whole batch (128 at paper scale)."
)
BN_FROM_TABLE_1 = "The paper has no BN in this table; the figure here is that of its Table 1."


def of_bn() -> Printed:
    """Return the IEBN paper's figure for BN, in the network and on the images of its ablations."""
    (bn,) = (p for p in published.table("iebn-1") if p.row == ("resnet164", "cifar100") and p.column == "bn")
    return bn


def iebn_4(name: str) -> Table:
    """The operator and the position of the gate."""
    norms = {
        "linear": "iebn",
        "identity": "iebn:operator=identity",
        "fc": "iebn:operator=fc",
        "gamma": "iebn",
        "beta": "iebn:position=beta",
        "gamma_and_beta": "iebn:position=both",
    }

    def entries() -> Iterator[Entry]:
        rows: dict[str, list[Printed]] = {}
        for p in published.table(name):
            rows.setdefault(str(p.row[0]), []).append(p)
        for row, figures in rows.items():
            yield Entry(row, "bn", of_bn(), "resnet164", "cifar100", "bn")
            for p in figures:
                yield Entry(row, p.column, p, "resnet164", "cifar100", norms[p.column])

    return make(name, "IEBN's operator, and what its gate multiplies", entries(), "bn", BN_FROM_TABLE_1, TWO_GPUS)


def iebn_5(name: str) -> Table:
    """Initial values."""

    def entries() -> Iterator[Entry]:
        yield Entry("initial values", "bn", of_bn(), "resnet164", "cifar100", "bn")
        for p in published.table(name):
            g_hat, b_hat = p.row[0], p.column
            yield Entry(
                "initial values", f"{g_hat}, {b_hat}", p, "resnet164", "cifar100", f"iebn:init=({g_hat},{b_hat})"
            )

    columns = "The columns are the initial gate_weight and gate_bias (g_hat and b_hat)."
    return make(name, "initial values of IEBN's gate", entries(), "bn", columns, BN_FROM_TABLE_1, TWO_GPUS)


def iebn_figure_4(name: str) -> Table:
    """Activations."""
    figure = published.content()["iebn"]["figure4"]
    (sigmoid,) = (p for p in published.table("iebn-4") if p.column == "linear")

    def entries() -> Iterator[Entry]:
        for activation in figure["activations"]:
            known = sigmoid if activation == "sigmoid" else None
            yield Entry("iebn", activation, known, "resnet164", "cifar100", f"iebn:activation={activation}")

    shown = f"The paper shows curves and says: {figure['finding']}."
    notes = (shown, "The figure of sigmoid is that of Table 4.", TWO_GPUS)
    return Table(name, "iebn", "Figure 4", "activations of IEBN's gate", "accuracy", tuple(entries()), "sigmoid", notes)


def rbn_1(name: str) -> Table:
    """Architectures and norms on ImageNet."""

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            model = IMAGENET.get(str(p.row[0]), str(p.row[0]))
            norm = "rbn:scale_stat=std" if p.column == "rbn_sigma" else p.column
            yield Entry(model, p.column, p, model, "imagenet", norm)

    note = "The learning curves of mobilenet_v2 are the counterpart of the paper's Figure 1."
    cited = "The paper took the figures of other methods from their papers, whose recipes differ."
    return make(name, "RBN beside other norms, and over networks", entries(), "bn", note, cited)


def rbn_2(name: str) -> Table:
    """One calibration alone."""
    norms = {"bn": "bn", "scaling": "rbn:centering=false", "centering": "rbn:scaling=false", "rbn": "rbn"}

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            model = str(p.row[0])
            yield Entry(model, p.column, p, model, "imagenet", norms[p.column])

    return make(name, "the scaling and the centering calibration alone", entries(), "bn")


def rbn_3(name: str) -> Table:
    """Statistics."""
    statistic = {"mu_c": "mean", "mu_s": "spatial_mean", "sigma_c": "std", "sigma_s": "spatial_std"}

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            model, norm = str(p.row[0]), "bn"
            if p.column != "bn":
                center, scale = (statistic[symbol] for symbol in p.column.split(","))
                norm = f"rbn:center_stat={center},scale_stat={scale}"
            yield Entry(model, p.column, p, model, "imagenet", norm)

    return make(
        name,
        "which statistics calibrate, of the centering and of the scaling",
        entries(),
        "bn",
        "mu and sigma are mean and standard deviation, c over a channel's pixels, s over the channels at a pixel.",
    )


def rbn_4(name: str) -> Table:
    """One stage alone."""
    models = {"resnet50": "resnet50_32", "resnext29": "resnext29_8x64d"}

    def entries() -> Iterator[Entry]:
        for p in published.table(name):
            model, norm = models[str(p.row[0])], "bn" if p.column == "none" else "rbn"
            stages = p.column if p.column.startswith("stage") else "all"
            yield Entry(model, p.column, p, model, "cifar100", norm, stages=stages)

    return make(
        name,
        "RBN in one stage of the network, or in all",
        entries(),
        "none",
        'The paper says "CIFAR" and gives no recipe. Its figures fit CIFAR-100; the ResNeXt-29 is taken to be the one '
        "of 8 groups of 64, and the recipe is a usual one for these networks (calibnorm.lab.recipes.rbn.cifar).",
    )


IMAGENET = {"resnext50": "resnext50_32x4d"}
"""RBN's names of networks that are called otherwise here."""

TABLES: dict[str, Callable[[str], Table]] = {
    "iebn-1": iebn_1,
    "iebn-2": iebn_2,
    "iebn-3": iebn_3,
    "iebn-4": iebn_4,
    "iebn-5": iebn_5,
    "iebn-fig4": iebn_figure_4,
    "rbn-1": rbn_1,
    "rbn-2": rbn_2,
    "rbn-3": rbn_3,
    "rbn-4": rbn_4,
}
