"""What stands in each table: which network, images, norm and attack a printed number belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from calibnorm.lab.experiments.tables.published import Printed, of_paper

Figures = dict[str, Any]
"""What a paper prints, as published.yaml has it."""


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
        name: As the command takes it; what stands before the hyphen is the paper.
        place: Where in the paper.
        title: What it is about.
        read: From the paper's figures to the entries, row by row.
        shows: Accuracies, or errors; or what compares detectors.
        baseline: The column that the others of a row are compared with.
        notes: What the paper does not say and was chosen here; sentences.
        undisturbed: The row that the other rows' losses are counted from, for a table of an attack.
        task: What is learned.
    """

    name: str
    place: str
    title: str
    read: Callable[[Figures], Iterator[Entry]]
    shows: Literal["accuracy", "error", "AP", "mask AP", "PQ"] = "accuracy"
    baseline: str = "bn"
    notes: tuple[str, ...] = ()
    undisturbed: str | None = None
    task: Literal["classification", "box", "mask", "panoptic"] = "classification"

    @property
    def paper(self) -> str:
        """Which paper, "iebn" or "rbn"."""
        return self.name.partition("-")[0]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Everything in it, by row."""
        return tuple(self.read(of_paper(self.paper)))


ABLATED = ("resnet164", "cifar100")
"""The network and the images of the IEBN paper's attacks and ablations."""
NOT_MIXED = "not mixed"


def architectures_iebn(paper: Figures) -> Iterator[Entry]:
    """Rows are networks and data sets, columns norms."""
    for line in paper["table1"]:
        model, data = line["arch"], line["data"]
        for norm in ("bn", "se", "iebn"):
            parameters, accuracy = line[norm]
            yield Entry(f"{model}, {data}", norm, Printed(accuracy, parameters=parameters), model, data, norm)


def noise_attack(paper: Figures) -> Iterator[Entry]:
    """Rows are the noise (N_a, N_b), where (0, 0) is printed for none; columns are norms."""
    for line in paper["table2"]:
        n_a, n_b = line["noise"]
        noise = None if n_a == n_b == 0 else (n_a, n_b)
        row = f"noise {n_a:g}, {n_b:g}" if noise else "no noise"
        for norm in ("bn", "se", "iebn"):
            yield Entry(row, norm, Printed(*line[norm]), *ABLATED, norm, noise)


def mix_attack(paper: Figures) -> Iterator[Entry]:
    """Rows are the data set that is mixed in and k, columns norms."""
    for line in paper["table3"]:
        other, k = line["mix"], line["k"]
        mix = None if other == "none" else (other, k)
        row = f"{120 * k} of {other} a batch" if mix else NOT_MIXED
        for norm in ("bn", "iebn"):
            yield Entry(row, norm, Printed(line[norm]), *ABLATED, norm, mix=mix)


def bn_of_table_1(paper: Figures, row: str) -> Entry:
    """Return BN in the network and on the images of the ablations, whose tables have none."""
    (bn,) = (e for e in architectures_iebn(paper) if (e.model, e.data) == ABLATED and e.column == "bn")
    return Entry(row, "bn", bn.printed, *ABLATED, "bn")


def operators(paper: Figures) -> Iterator[Entry]:
    """Rows are operator and position of the gate, columns their values."""
    norms = {
        "linear": "iebn",
        "identity": "iebn:operator=identity",
        "fc": "iebn:operator=fc",
        "gamma": "iebn",
        "beta": "iebn:position=beta",
        "gamma_and_beta": "iebn:position=both",
    }
    for row, columns in paper["table4"].items():
        yield bn_of_table_1(paper, row)
        for column, figures in columns.items():
            yield Entry(row, column, Printed(*figures), *ABLATED, norms[column])


def initial_values(paper: Figures) -> Iterator[Entry]:
    """One row; the columns are the initial g_hat and b_hat."""
    row = "initial values"
    yield bn_of_table_1(paper, row)
    for name, columns in paper["table5"].items():
        g_hat = name.removeprefix("gamma_hat_")
        for b_hat, accuracy in columns.items():
            yield Entry(row, f"{g_hat}, {b_hat}", Printed(accuracy), *ABLATED, f"iebn:init=({g_hat},{b_hat})")


def activations(paper: Figures) -> Iterator[Entry]:
    """One row; the columns are activations of the gate."""
    sigmoid = Printed(*paper["table4"]["operator"]["linear"])
    for name in paper["figure4"]["activations"]:
        printed = sigmoid if name == "sigmoid" else None
        yield Entry("iebn", name, printed, *ABLATED, f"iebn:activation={name}")


def architectures_rbn(paper: Figures) -> Iterator[Entry]:
    """Rows are networks, columns norms."""
    for network, columns in paper["table1"].items():
        model = "resnext50_32x4d" if network == "resnext50" else network
        for column, (top1, top5) in columns.items():
            norm = "rbn:scale_stat=std" if column == "rbn_sigma" else column
            yield Entry(model, column, Printed(top1, top5=top5), model, "imagenet", norm)


def calibrations(paper: Figures) -> Iterator[Entry]:
    """Rows are networks, columns say which of the calibrations there are."""
    norms = {"bn": "bn", "scaling": "rbn:centering=false", "centering": "rbn:scaling=false", "rbn": "rbn"}
    for model, columns in paper["table2"].items():
        for column, error in columns.items():
            yield Entry(model, column, Printed(error), model, "imagenet", norms[column])


def calibrating_statistics(paper: Figures) -> Iterator[Entry]:
    """One row; the columns are K_m and K_s, such as "mu_c,sigma_c", or "bn" for neither."""
    names = {"mu_c": "mean", "mu_s": "spatial_mean", "sigma_c": "std", "sigma_s": "spatial_std"}
    for cell in paper["table3"]:
        column, norm = "bn", "bn"
        if cell["km"] is not None:
            column = f"{cell['km']},{cell['ks']}"
            norm = f"rbn:center_stat={names[cell['km']]},scale_stat={names[cell['ks']]}"
        yield Entry("resnet50", column, Printed(cell["err"]), "resnet50", "imagenet", norm)


def stages(paper: Figures) -> Iterator[Entry]:
    """Rows are networks, columns the stage whose BatchNorms are replaced."""
    models = {"resnet50": "resnet50_32", "resnext29": "resnext29_8x64d"}
    for network, columns in paper["table4"].items():
        model = models[network]
        for column, accuracy in columns.items():
            norm = "bn" if column == "none" else "rbn"
            where = column if column.startswith("stage") else "all"
            yield Entry(model, column, Printed(accuracy), model, "cifar100", norm, stages=where)


COLUMNS = ("ap", "ap50", "ap75", "aps", "apm", "apl")
"""Of a detector's tables, as our figures are called."""


def boxes(paper: Figures) -> Iterator[Entry]:
    """Rows are backbones, columns norms."""
    for model, norms in paper["table5"].items():
        for norm, values in norms.items():
            yield detector(model, norm, 0, named("box", values))


def instances(paper: Figures) -> Iterator[Entry]:
    """Rows are backbones, columns norms; the boxes' figures stand before the masks'."""
    for model in ("resnet50", "resnet101"):
        for norm in ("bn", "rbn"):
            figures = [of for kind in ("box", "mask") for of in named(kind, paper["table6"][f"{model}_{kind}"][norm])]
            yield detector(model, norm, len(COLUMNS), figures)


def pixels(paper: Figures) -> Iterator[Entry]:
    """Rows are backbones, columns norms."""
    names = ("test_box_ap", "test_mask_ap", "test_sq", "test_rq", "test_pq")
    for model, norms in paper["table7"].items():
        for norm, values in norms.items():
            yield detector(model, norm, 4, [*zip(names, values, strict=True)])


def named(kind: str, values: list[float]) -> list[tuple[str, float]]:
    """Return the six columns of boxes or masks by the names of our figures."""
    return [(f"test_{kind}_{column}", value) for column, value in zip(COLUMNS, values, strict=True)]


def detector(model: str, norm: str, headline: int, figures: list[tuple[str, float]]) -> Entry:
    """Return an entry of a detector, of whose figures one compares runs."""
    return Entry(model, norm, Printed(figures[headline][1], figures=tuple(figures)), model, "coco", norm)


X1 = (
    'The paper says "x1 lr schedule" and no more: here that is 12 epochs of batches of 16, learning rate 0.02, a tenth '
    "after epochs 8 and 11, and a warm-up of 500 steps.",
    'It replaces "all BN layers" and does not say where there are some: here in backbone, pyramid and heads. Its '
    "backbones are pretrained, which it does not say either; with RBN, ours begin with the function of BN's.",
)
TWO_GPUS = (
    'The paper made its ablations "using 2 GPUs" and does not speak of synchronized statistics: they are then those of '
    "about 64 images a GPU, and ours, of one process, those of the whole batch (128 at paper scale)."
)
BN_FROM_TABLE_1 = "The paper has no BN in this table; the figure here is that of its Table 1."

TABLES = {
    table.name: table
    for table in (
        Table("iebn-1", "Table 1", "BN, SE and IEBN over networks and data sets", architectures_iebn),
        Table(
            "iebn-2",
            "Table 2",
            "the constant noise attack",
            noise_attack,
            notes=(
                "The paper does not say whether its noise stays on at test time: here it does.",
                "The row of noise 0.8, 0.2 is printed in the first version of the paper alone.",
            ),
        ),
        Table(
            "iebn-3",
            "Table 3",
            "the mix-datasets attack: 100 images of the data set and 120 k of another in every batch",
            mix_attack,
            notes=(
                "The paper does not say how the others are trained on: here their classes follow the data set's own in "
                "one loss, and accuracy is measured on the data set's test images over all outputs.",
                "Every mixed row takes a step for 100 images of the data set. At paper scale the row that is not mixed "
                "is that of the other tables, with 128 a step, so it takes fewer steps; at the other scales it has 100 "
                "too.",
            ),
            undisturbed=NOT_MIXED,
        ),
        Table(
            "iebn-4",
            "Table 4",
            "IEBN's operator, and what its gate multiplies",
            operators,
            notes=(BN_FROM_TABLE_1, TWO_GPUS),
        ),
        Table(
            "iebn-5",
            "Table 5",
            "initial values of IEBN's gate",
            initial_values,
            notes=(
                "The columns are the initial gate_weight and gate_bias (g_hat and b_hat).",
                BN_FROM_TABLE_1,
                TWO_GPUS,
            ),
        ),
        Table(
            "iebn-fig4",
            "Figure 4",
            "activations of IEBN's gate",
            activations,
            baseline="sigmoid",
            notes=(
                f"The paper shows curves and says: {of_paper('iebn')['figure4']['finding']}.",
                "The figure of sigmoid is that of Table 4.",
                TWO_GPUS,
            ),
        ),
        Table(
            "rbn-1",
            "Table 1",
            "RBN beside other norms, and over networks",
            architectures_rbn,
            shows="error",
            notes=(
                "The learning curves of mobilenet_v2 are the counterpart of the paper's Figure 1.",
                "The paper took the figures of other methods from their papers, whose recipes differ.",
            ),
        ),
        Table("rbn-2", "Table 2", "the scaling and the centering calibration alone", calibrations, shows="error"),
        Table(
            "rbn-3",
            "Table 3",
            "which statistics calibrate, of the centering and of the scaling",
            calibrating_statistics,
            shows="error",
            notes=(
                "mu and sigma are mean and standard deviation, c over a channel's pixels, s over the channels at a "
                "pixel.",
            ),
        ),
        Table(
            "rbn-4",
            "Table 4",
            "RBN in one stage of the network, or in all",
            stages,
            baseline="none",
            notes=(
                'The paper says "CIFAR" and gives no recipe. Its figures fit CIFAR-100; the ResNeXt-29 is taken to be '
                "the one of 8 groups of 64, and the recipe is a usual one for these networks "
                "(calibnorm.lab.recipes.rbn.cifar).",
            ),
        ),
        Table("rbn-5", "Table 5", "Faster R-CNN on COCO", boxes, shows="AP", notes=X1, task="box"),
        Table("rbn-6", "Table 6", "Mask R-CNN on COCO", instances, shows="mask AP", notes=X1, task="mask"),
        Table("rbn-7", "Table 7", "Panoptic FPN on COCO", pixels, shows="PQ", notes=X1, task="panoptic"),
    )
}
