"""The layers of the library, under the names that ``calibnorm.nn`` and ``calibnorm`` show too: listed here alone."""

from __future__ import annotations

from calibnorm.nn.an import AN1d, AN2d, AN3d
from calibnorm.nn.bcn import BCN1d, BCN2d, BCN3d
from calibnorm.nn.bn import BN1d, BN2d, BN3d
from calibnorm.nn.brn import BRN1d, BRN2d, BRN3d
from calibnorm.nn.frn import TLU, FRN1d, FRN2d, FRN3d
from calibnorm.nn.ghost import GhostBN1d, GhostBN2d, GhostBN3d
from calibnorm.nn.group import GN1d, GN2d, GN3d, IN1d, IN2d, IN3d, LN1d, LN2d, LN3d
from calibnorm.nn.iebn import IEBN1d, IEBN2d, IEBN3d
from calibnorm.nn.ilm import ILM1d, ILM2d, ILM3d
from calibnorm.nn.rbn import RBN1d, RBN2d, RBN3d
from calibnorm.nn.se import SE1d, SE2d, SE3d
from calibnorm.nn.sn import SN1d, SN2d, SN3d

# A tuple: others add to theirs without changing this one. Type checkers follow an import of ``__all__``.
# fmt: off
__all__: tuple[str, ...] = (
    "TLU",
    "AN1d", "AN2d", "AN3d",
    "BCN1d", "BCN2d", "BCN3d",
    "BN1d", "BN2d", "BN3d",
    "BRN1d", "BRN2d", "BRN3d",
    "FRN1d", "FRN2d", "FRN3d",
    "GN1d", "GN2d", "GN3d",
    "GhostBN1d", "GhostBN2d", "GhostBN3d",
    "IEBN1d", "IEBN2d", "IEBN3d",
    "ILM1d", "ILM2d", "ILM3d",
    "IN1d", "IN2d", "IN3d",
    "LN1d", "LN2d", "LN3d",
    "RBN1d", "RBN2d", "RBN3d",
    "SE1d", "SE2d", "SE3d",
    "SN1d", "SN2d", "SN3d",
)
# fmt: on
