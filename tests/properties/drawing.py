"""What a case is: a layer with any of its options, an input of any shape, dtype and layout, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import calibnorm as cn
from cases import randomize
from drawn import generator, randn

Options = dict[str, Any]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "every second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "channels of more": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "instances of more": lambda x: torch.cat([x, x])[x.shape[0] :],
    "offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last of more": lambda x: torch.cat([x, x], 1).movedim(1, -1).contiguous().movedim(-1, 1)[:, ::2],
    "backwards": lambda x: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim))),
}
"""Ways in which a tensor of given values may lie in memory; the values may be others than before."""
MOST = 60_000
"""Elements of an input: a case is over in milliseconds."""


@dataclass(frozen=True)
class Case:
    """A layer and a call of it.

    Args:
        method: Its name.
        options: Of the method.
        shape: Of the input, (N, C) or (N, C, *spatial).
        dtype: Of the input.
        wide: Whether the parameters are float32 where the input is of half precision.
        layout: Of the input.
        layout_dy: Of the incoming gradient.
        mode: "train", "eval", "frozen" (training by running statistics) or "untracked" (eval without any).
        mean: Of the values; their standard deviation is about 1.
        constant: Whether the first channel has one value in all images.
        arguments: eps, momentum and the like.
        end: What follows the layer: "", "relu", "residual", "residual relu".
        learns: What has gradients: "all", "input" (and the residual) or "parameters".
        seed: Of all values.
        steps: Calls one after the other, each with running statistics that the one before has left.
    """

    method: str
    options: Options
    shape: tuple[int, ...]
    dtype: str
    wide: bool
    layout: str
    layout_dy: str
    mode: str
    mean: float
    constant: bool
    arguments: Options
    end: str
    learns: str
    seed: int
    steps: int

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def groups(self) -> str:
        return f"{self.method} over {self.options['over']['method']}" if "over" in self.options else self.method


def divisors(count: int) -> st.SearchStrategy[int]:
    return st.sampled_from([number for number in range(1, count + 1) if count % number == 0])


def noises() -> st.SearchStrategy[tuple[float, float] | None]:
    return st.one_of(st.none(), st.sampled_from([(0.8, 0.5), (0.5, -0.2), (-1.5, 0.0)]))


@st.composite
def methods(draw: st.DrawFn, channels: int, images: int, inner: bool = False) -> tuple[str, Options]:
    """Draw a method with options that a layer of so many channels takes."""
    names = ["in", "gn", "ln", "sn", "bcn", "frn", "ghost", "brn"]
    if not inner:
        names += ["bn", "iebn", "iebn", "iebn", "rbn", "rbn", "rbn", "se", "ilm", "an"]
    method = draw(st.sampled_from(names))
    options: Options = {}
    if method == "iebn":
        options["operator"] = draw(st.sampled_from(["linear", "linear", "linear", "identity", "fc"]))
        options["position"] = draw(st.sampled_from(["gamma", "beta", "both"]))
        options["activation"] = draw(st.sampled_from(["sigmoid", "sigmoid", "tanh", "softmax"]))
        if options["operator"] == "linear":
            options["gate_input"] = draw(st.sampled_from(["mean", "standardized"]))
        if options["operator"] == "fc":
            options["reduction"] = draw(st.integers(1, 4))
    elif method == "rbn":
        statistics = st.sampled_from(["mean", "mean", "std", "spatial_mean", "spatial_std"])
        options["center_stat"], options["scale_stat"] = draw(statistics), draw(statistics)
        options["restrict"] = draw(st.sampled_from(["sigmoid", "sigmoid", "tanh", "softsign"]))
        options["centering"], options["scaling"] = draw(
            st.sampled_from([(True, True), (True, True), (True, False), (False, True)])
        )
    elif method in ("gn", "bcn", "ilm"):
        options["groups"] = draw(divisors(channels))
        if method == "bcn":
            options["per_channel"] = draw(st.booleans())
        if method == "ilm":
            options["key_size"] = draw(st.integers(1, 3))
            options["reduction"] = draw(st.integers(1, 4))
    elif method == "se":
        options["reduction"], options["biases"] = draw(st.integers(1, 4)), draw(st.booleans())
    elif method == "an":
        options["mixtures"] = draw(st.integers(1, 4))
    elif method == "ghost":
        options["size"] = draw(st.integers(1, images + 1))
    elif method == "brn":
        options |= {"start": 0, "r_batches": 1, "d_batches": 1}
    if method in ("iebn", "rbn") and draw(st.integers(0, 3)) == 0:
        name, others = draw(methods(channels, images, inner=True))
        options["over"] = {"method": name, **others}
    return method, options


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a case; most are small, some have planes or rows of many vectors."""
    dims = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3]))
    images = draw(st.integers(1, 9))
    channels = draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 24, 33, 64])))
    longest, long = {0: (0, [0]), 1: (70, [500, 4099]), 2: (19, [33, 57, 128]), 3: (7, [12])}[dims]
    sizes = st.one_of(st.integers(1, longest), st.integers(1, longest), st.integers(1, longest), st.sampled_from(long))
    spatial: list[int] = []
    for _ in range(dims):
        left = MOST // (images * channels * math.prod(spatial))
        spatial.append(min(draw(sizes), max(1, left)))
    shape = (images, channels, *spatial)
    method, options = draw(methods(channels, images))
    dtype = draw(st.sampled_from(["float32", "float32", "float32", "float64", "bfloat16", "float16"]))
    noisy = {"noise": draw(noises())} if method in ("bn", "iebn", "rbn") else {}
    return Case(
        method,
        options,
        shape,
        dtype,
        draw(st.booleans()),
        draw(st.sampled_from([*LAYOUTS])),
        draw(st.sampled_from([*LAYOUTS])),
        draw(st.sampled_from(["train", "train", "eval", "frozen", "untracked"])),
        draw(st.sampled_from([0.0, 0.5, -3.0, 100.0])),
        draw(st.booleans()),
        {
            "eps": draw(st.sampled_from([1e-5, 1e-3, 0.1])),
            "momentum": draw(st.sampled_from([0.1, 1.0, 0.0, None])),
            "affine": draw(st.sampled_from([True, True, False])),
            **noisy,
        },
        draw(st.sampled_from(["", "", "relu", "residual", "residual relu"])),
        draw(st.sampled_from(["all", "all", "input", "parameters"])),
        draw(st.integers(0, 2**31)),
        draw(st.integers(1, 2)),
    )


def layer_of(case: Case) -> Any:
    """Return the case's layer in float64, with random tensors, in its mode; or raise what the constructor raises."""
    more = dict(case.arguments)
    if case.mode == "untracked":
        more["track_running_stats"] = False
    dims = max(1, len(case.spatial))
    act = {"act": "relu"} if "relu" in case.end else {}
    made = cn.norm_layer(case.method, dims=dims, **case.options)(case.shape[1], **more, **act)
    layer = randomize(made.double(), seed=case.seed + 1)
    if case.mode == "frozen":
        cn.freeze_stats(layer)
    if case.learns == "input":
        layer.requires_grad_(False)
    return layer.train(case.mode in ("train", "frozen"))


def tensors_of(case: Case, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return input, incoming gradient and residual of a step, of the case's dtype, laid out as it says."""
    dtype, seed = DTYPES[case.dtype], case.seed + 10 * step
    draw = generator(seed + 3)
    x = randn(*case.shape, seed=seed, mean=case.mean, dtype=torch.float64)
    x = x * (0.5 + torch.rand(*case.shape[:2], *[1] * len(case.spatial), generator=draw, dtype=torch.float64))
    if case.constant:
        x[:, 0] = case.mean
    dy = randn(*case.shape, seed=seed + 1, dtype=dtype)
    residual = randn(*case.shape, seed=seed + 2, dtype=dtype) if "residual" in case.end else None
    return LAYOUTS[case.layout](x.to(dtype)), LAYOUTS[case.layout_dy](dy), residual


def as_given(layer: nn.Module, case: Case) -> nn.Module:
    """Return the layer in the dtype of the parameters that it is called with; in place."""
    half = case.dtype in ("bfloat16", "float16")
    return layer.to(torch.float32 if half and case.wide else DTYPES[case.dtype])
