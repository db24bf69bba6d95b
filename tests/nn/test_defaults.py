"""The defaults of every method are those of its source."""

from __future__ import annotations

import pytest

import calibnorm as cn
from calibnorm.nn import layer_type

TORCHS = {"eps": 1e-5, "momentum": 0.1}
SOURCES = {
    "bn": {},
    "iebn": {
        "operator": "linear",
        "position": "gamma",
        "activation": "sigmoid",
        "init": (0.0, -1.0),
        "reduction": 16,
        "gate_input": "mean",
    },
    "rbn": {"center_stat": "mean", "scale_stat": "mean", "restrict": "sigmoid", "init": (0.0, 0.0, 1.0)},
    "se": {"reduction": 16},
    "in": {},
    "gn": {"groups": None},  # 32
    "ln": {},
    "sn": {},
    "bcn": {"groups": None},
    "ilm": {"reduction": 16},
    "frn": {"eps": 1e-6},
    "an": {"mixtures": 10},
    "ghost": {"size": 128},
    "brn": {"r_max": 3.0, "d_max": 5.0, "start": 5000, "r_batches": 40_000, "d_batches": 25_000},
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", cn.methods())
def test_defaults(name, dims):
    layer = layer_type(name, dims)(32)
    for argument, value in {**TORCHS, **SOURCES[name]}.items():
        holder = layer if argument in TORCHS else layer.method
        assert getattr(holder, argument) == value, argument
    assert layer_type(name, dims)(32, 1e-3).eps == 1e-3
    assert layer_type(name, dims)(32, eps=1e-4).eps == 1e-4
