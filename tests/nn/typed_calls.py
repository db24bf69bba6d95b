"""Calls of layers as type checkers see them: mypy reads this file with the sources, and nothing runs it.

An ``ignore`` that mypy does not need is an error too, so each one says that a wrong call is found.
"""

from __future__ import annotations

from typing import assert_type

import calibnorm as cn
from calibnorm.nn import CalibratedNorm, layer_type


def calls() -> None:
    assert_type(cn.IEBN2d(64, operator="fc"), cn.IEBN2d)
    cn.IEBN2d(64, operatr="fc")  # type: ignore[call-arg]
    cn.IEBN2d(64, operator=1)  # type: ignore[arg-type]
    cn.IEBN2d(64, 1e-3, None, False, True, "cpu", None, init=(0, 1), over={"method": "gn", "groups": 8}, act="relu")
    cn.IEBN2d(64, 1e-3, 0.1, True, True, None, None, "fc")  # type: ignore[call-arg, arg-type]
    cn.IEBN2d()  # type: ignore[call-arg]
    cn.RBN1d(64, scale_stat="std", noise=(0.8, 0.5))
    cn.RBN1d(64, scale_stats="std")  # type: ignore[call-arg]
    cn.GN3d(num_features=64, groups=8)
    cn.GN3d(64, group=8)  # type: ignore[call-arg]
    cn.IN2d(64, groups=8)  # type: ignore[call-arg]
    assert_type(layer_type("iebn")(64, position="both"), CalibratedNorm)
