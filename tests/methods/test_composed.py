from __future__ import annotations

import pytest

from calibnorm.methods import BN, IEBN, RBN
from calibnorm.methods.composed import Composed
from calibnorm.methods.group import GN, IN
from calibnorm.methods.se import SE
from calibnorm.methods.sn import SN
from cases import errors
from contract import batch, passes, running_statistics, tensors_of
from oracles.composed import iebn_over, rbn_centering, rbn_over
from oracles.group import gn
from oracles.sn import sn
from tolerances import ORACLE

RBN_OVER_SN = Composed(RBN(), SN())
CENTERING = RBN(scaling=False)


def sn_alone(p):
    """SN without gamma and beta."""
    return lambda x: sn(x, {name: p[name] for name in ("mean_weight", "var_weight")}, None, 1e-3)


CASES = [
    (RBN_OVER_SN, lambda x, p: rbn_over(x, p, sn_alone(p))),
    (Composed(RBN(), IN()), lambda x, p: rbn_over(x, p, lambda z: gn(z, {}, 4, 1e-3))),
    (Composed(IEBN(), GN(groups=2)), lambda x, p: iebn_over(x, p, lambda z: gn(z, {}, 2, 1e-3), "gamma")),
    (Composed(IEBN(), CENTERING), lambda x, p: iebn_over(x, p, lambda z: rbn_centering(z, p), "gamma")),
    (Composed(IEBN(position="beta"), CENTERING), lambda x, p: iebn_over(x, p, lambda z: rbn_centering(z, p), "beta")),
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("method", "oracle"), CASES, ids=[f"{m.outer}-{m.base}" for m, _ in CASES])
def test_equals_the_equations(method, oracle, dims):
    found = errors(passes(method), oracle, batch(dims, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize("method", [IEBN(position="both"), RBN(), RBN(scale_stat="std")], ids=str)
@pytest.mark.parametrize("running", [False, True], ids=["train", "eval"])
def test_over_batch_norm_is_the_method_itself(method, running):
    fixed = running_statistics() if running else None
    ours, theirs = (passes(m, statistics=fixed, noise=(0.8, 0.5)) for m in (Composed(method, BN()), method))
    found = errors(ours, theirs, batch(2, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


@pytest.mark.parametrize(
    ("outer", "base", "message"),
    [
        (SE(), BN(), "make it the base"),
        (RBN(), IEBN(position="both"), "position='gamma'"),
        (RBN(), RBN(scaling=False), "both have center_weight"),
        (RBN(center_stat="spatial_mean"), SN(), "over channels"),
    ],
)
def test_refuses_what_has_no_meaning(outer, base, message):
    with pytest.raises(ValueError, match=message):
        Composed(outer, base)
