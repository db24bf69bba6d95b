"""The kernels compiled to PTX for an H100, which needs no GPU: they are valid Triton, and load widely."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from typing import Any

import pytest

from calibnorm.ops.triton import config

COMPUTE_CAPABILITY = 90
NUMBERS = {"m", "v", "scale", "shift", "slope", "offset", "sum_1", "sum_2", "parts_m", "parts_v", "parts_1", "parts_2"}
SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
PASSES = {
    "moments": (None, ()),
    "affine": (False, ("residual",)),
    "affine, relu and residual": (True, ()),
    "gradient_sums": (False, ("scale", "shift", "residual", "masked")),
    "gradient_sums, relu": (True, ("residual", "masked")),
    "gradient_sums, relu and residual": (True, ()),
    "gradient_apply": (False, ("shift",)),
    "gradient_apply, relu": (True, ()),
}
WHOLE = ["moments", "affine, relu and residual", "gradient_sums, relu and residual", "gradient_apply, relu"]
"""Each pass once, with the most that it does."""
SHAPES = {"56x56": (64, 64, 56 * 56), "7x7": (64, 512, 49)}


def ptx(case: str, dtype: str, rows: bool, shape: tuple[int, int, int]) -> str:
    """The kernel in assembly, compiled as ``passes`` launches it on tensors whose addresses are multiples of 16."""
    name, (relu, none) = case.partition(",")[0], PASSES.get(case, (None, ()))
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", COMPUTE_CAPABILITY, 32)
    pixels = importlib.import_module("calibnorm.ops.triton.kernels.pixels")
    cut = config.plan(rows, *shape, SIZES[dtype])
    accumulator = triton.language.float64 if dtype == "fp64" else triton.language.float32
    constants: dict[str, Any] = {"CW": cut.CW, "SW": cut.SW, "ROWS": rows, "P": cut.P, "B": cut.B}
    constants |= {"ACC": accumulator, "RELU": relu, "K": config.CONFIG.merged} | dict.fromkeys(none)
    kernel = getattr(pixels, name)
    signature, alignment = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in pixels.INTEGERS:
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp64" if argument in NUMBERS else f"*{dtype}"
            alignment[(i,)] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={a: constants[a] for a in kernel.arg_names if a in constants},
        attrs=alignment,
    )
    options = {"num_warps": config.CONFIG.warps, "enable_fp_fusion": False}
    return str(triton.compile(source, target=target, options=options).asm["ptx"])


def accesses(assembly: str) -> Counter[str]:
    return Counter(re.findall(r"\b((?:ld|st)\.global\S*)", assembly))


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", PASSES)
def test_compiles(case: str, rows: bool) -> None:
    check_accesses(case, "bf16", rows, "56x56")


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "shape"), [("fp32", "56x56"), ("bf16", "7x7")])
@pytest.mark.parametrize("case", WHOLE)
def test_compiles_other_widths(case: str, dtype: str, rows: bool, shape: str) -> None:
    check_accesses(case, dtype, rows, shape)


def check_accesses(case: str, dtype: str, rows: bool, shape: str) -> None:
    """16 bytes at once where rows are aligned, one element where they are not, and no atomics."""
    assembly = ptx(case, dtype, rows, SHAPES[shape])
    found = accesses(assembly)
    aligned = rows or SHAPES[shape][2] % 8 == 0
    wide = {kind for kind in found if kind.endswith("v4.b32")}
    assert any(kind.startswith("ld") for kind in wide) == aligned, found
    stores = "affine" in case or "gradient_apply" in case or "residual" in case
    assert any(kind.startswith("st") for kind in wide) == (aligned and stores), found
    narrow = {kind for kind in found if kind.endswith((".b16", ".b32"))} - wide
    assert bool(narrow) == (not aligned), found
    assert not re.search(r"\b(atom|red)\.", assembly), "results must be repeatable"


@pytest.mark.parametrize("dtype", ["fp64", "fp16"])
def test_compiles_for_the_other_dtypes(dtype: str) -> None:
    for case in WHOLE:
        assert accesses(ptx(case, dtype, False, SHAPES["56x56"]))


@pytest.mark.parametrize("name", ["merge_moments", "merge_sums"])
def test_merging_compiles(name: str) -> None:
    assert accesses(ptx(name, "fp32", False, SHAPES["7x7"])) == {"ld.global.b64": 2, "st.global.b64": 2}


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
def test_the_mask_is_computed_as_the_output_was(rows: bool) -> None:
    """No product may be fused with a sum but where the kernels say so, or forward and backward would differ."""
    for case in ("affine, relu and residual", "gradient_sums, relu", "gradient_apply, relu"):
        assembly = ptx(case, "fp32", rows, SHAPES["56x56"])
        # ptxas contracts what is not marked; .rn forbids it.
        assert not re.search(r"\b(mul|add|sub)\.f(32|64)", assembly)
        assert re.search(r"\bfma\.rn\.f32", assembly)
