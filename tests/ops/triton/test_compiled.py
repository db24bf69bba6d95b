"""The kernels compiled to PTX for an H100, which needs no GPU: they are valid Triton, and load widely."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from typing import Any

import pytest

from calibnorm.ops.triton import config

COMPUTE_CAPABILITY = 90
NUMBERS = {
    "m",
    "v",
    "mean",
    "var",
    "scale",
    "shift",
    "slope",
    "offset",
    "sum_1",
    "sum_2",
    "parts_m",
    "parts_v",
    "parts_1",
    "parts_2",
}
CHANNELS = {"weight", "bias", "center_weight", "gate_weight", "gate_bias", "running_mean", "running_var"}
"""Numbers of the channels, and their gradients, are float32 here; mean, var and the rest float64."""
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


STEPS = {
    "bn": {"CENTER": 0, "GATE": 0, "ON_GAMMA": False, "ON_BETA": False},
    "iebn": {"CENTER": 0, "GATE": 3, "ON_GAMMA": True, "ON_BETA": True},
    "rbn": {"CENTER": 1, "GATE": 1, "ON_GAMMA": True, "ON_BETA": False},
    "rbn, std": {"CENTER": 2, "GATE": 2, "ON_GAMMA": True, "ON_BETA": False},
}
NUMBERS_OF_A_STEP = {"EPS": 1e-5, "NOISE_A": 1.0, "NOISE_B": 0.0}


def ptx(case: str, dtype: str, rows: bool, shape: tuple[int, int, int]) -> str:
    """A pass in assembly, compiled as ``passes`` launches it."""
    name, (relu, none) = case.partition(",")[0], PASSES.get(case, (None, ()))
    constants = constants_of(config.plan(rows, *shape, SIZES[dtype]), rows, dtype)
    constants |= {"RELU": relu, "K": config.CONFIG.merged} | dict.fromkeys(none)
    return assembly("pixels", name, dtype, constants, config.CONFIG.warps)


def constants_of(cut: config.Plan, rows: bool, dtype: str) -> dict[str, Any]:
    language = importlib.import_module("triton.language")
    found = {"CW": cut.CW, "SW": cut.SW, "ROWS": rows, "P": cut.P, "B": cut.B}
    return found | {"ACC": language.float64 if dtype == "fp64" else language.float32}


def assembly(module: str, name: str, dtype: str, constants: dict[str, Any], warps: int) -> str:
    """A kernel in assembly, compiled as it is launched on tensors whose addresses are multiples of 16."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", COMPUTE_CAPABILITY, 32)
    kernels = importlib.import_module(f"calibnorm.ops.triton.kernels.{module}")
    kernel = getattr(kernels, name)
    signature, alignment = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in kernels.INTEGERS:
            signature[argument] = "i64" if argument in ("momentum", "unbias") else "i32"
        else:
            of_channels = argument.removeprefix("d_") in CHANNELS
            pixels = module != "coefficients" and argument not in NUMBERS
            signature[argument] = "*fp32" if of_channels else f"*{dtype}" if pixels else "*fp64"
            signature[argument] = "*i64" if argument == "count" else signature[argument]
            alignment[(i,)] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={a: constants[a] for a in kernel.arg_names if a in constants},
        attrs=alignment,
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return str(triton.compile(source, target=target, options=options).asm["ptx"])


def accesses(code: str) -> Counter[str]:
    return Counter(re.findall(r"\b((?:ld|st)\.global\S*)", code))


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
    code = ptx(case, dtype, rows, SHAPES[shape])
    found = accesses(code)
    aligned = rows or SHAPES[shape][2] % 8 == 0
    wide = {kind for kind in found if kind.endswith("v4.b32")}
    assert any(kind.startswith("ld") for kind in wide) == aligned, found
    stores = "affine" in case or "gradient_apply" in case or "residual" in case
    assert any(kind.startswith("st") for kind in wide) == (aligned and stores), found
    narrow = {kind for kind in found if kind.endswith((".b16", ".b32"))} - wide
    assert bool(narrow) == (not aligned), found
    assert not re.search(r"\b(atom|red)\.", code), "results must be repeatable"


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
        code = ptx(case, "fp32", rows, SHAPES["56x56"])
        check_marked(code)
        assert re.search(r"\bfma\.rn\.f32", code)


def check_marked(code: str) -> None:
    """ptxas contracts what is not marked; .rn forbids it."""
    assert not re.search(r"\b(mul|add|sub)\.f(32|64)", code)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("fixed", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_coefficients_compile(step: dict[str, Any], cut: bool, fixed: bool) -> None:
    """The step and its gradient; in nobody's way, nothing of a stack or of local memory, and no atomics."""
    constants = {**step, **NUMBERS_OF_A_STEP, "FIXED": fixed, "BN": 256, "BC": config.CONFIG.channels}
    if not cut:
        constants |= dict.fromkeys(("parts_m", "parts_v", "parts_1", "parts_2"))
    for name in ("coefficients", "coefficients_vjp"):
        code = assembly("coefficients", name, "fp32", constants, config.CONFIG.coefficient_warps)
        check_marked(code)
        assert accesses(code)["st.global.b64"] >= 2
        assert not re.search(r"\b(atom|red)\.|\.local\b", code)


def test_moving_statistics_compiles() -> None:
    code = assembly("coefficients", "update_running", "fp32", {"BC": 128}, config.CONFIG.warps)
    assert accesses(code) == {"ld.global.b32": 2, "ld.global.b64": 3, "st.global.b32": 2, "st.global.b64": 1}


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "shape"), [("bf16", (64, 256, 28 * 28)), ("fp32", (64, 512, 49))], ids=str)
def test_whole_planes_compile(dtype: str, shape: tuple[int, int, int], rows: bool) -> None:
    """One kernel, which reads its pixels once, vectors of them where they are aligned."""
    found = config.whole(rows, *shape, SIZES[dtype])
    assert found is not None
    cut, warps = found
    constants = {**STEPS["rbn"], **NUMBERS_OF_A_STEP, **constants_of(cut, rows, dtype), "RELU": True}
    code = assembly("whole", "normalize", dtype, constants | {"residual": None}, warps)
    check_marked(code)
    aligned = rows or shape[2] % 8 == 0
    wide = {kind: count for kind, count in accesses(code).items() if kind.endswith("v4.b32")}
    assert ({kind[:2] for kind in wide} == {"ld", "st"}) == aligned
    share = cut.P * cut.B // (32 * warps) * SIZES[dtype] // 16  # vectors of a tile to a thread
    if aligned:
        assert wide["st.global.v4.b32"] == share
        # Where channels are innermost, those of gamma and so on are loaded as vectors too.
        assert wide["ld.global.v4.b32"] == share + (5 * max(elements_of(dtype) // 4, 1) if rows else 0)


def elements_of(dtype: str) -> int:
    """Of 16 bytes."""
    return 16 // SIZES[dtype]
