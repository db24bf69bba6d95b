from __future__ import annotations

import pytest

from calibnorm.methods.ilm import ILM
from cases import errors
from contract import batch, passes, tensors_of
from oracles.ilm import ilm
from tolerances import ORACLE


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "groups", "keys"),
    [(ILM(), 4, 1), (ILM(groups=2, key_size=2), 2, 2), (ILM(groups=1, key_size=1, reduction=2), 1, 4)],
    ids=str,
)
def test_equals_the_equations(method, groups, keys, dims):
    found = errors(passes(method), lambda x, p: ilm(x, p, groups, keys, 1e-3), batch(dims, 0), tensors_of(method))
    assert max(found.values()) <= ORACLE, found


def test_without_gamma_and_beta_predicts_around_one_and_zero():
    method = ILM(groups=2, key_size=2)
    p = {name: t for name, t in tensors_of(method).items() if name not in ("weight", "bias")}
    found = errors(passes(method), lambda x, p: ilm(x, p, 2, 2, 1e-3), batch(2, 0), p)
    assert max(found.values()) <= ORACLE, found


def test_parameters():
    shapes = [spec.shape for spec in ILM().parameters(512).values()]
    assert shapes == [(2, 32), (32, 2), (32, 2)]
    assert ILM().parameters(64)["encoder_weight"].shape == (2, 4)
    assert ILM().parameters(1024)["encoder_weight"].shape == (4, 64)
    with pytest.raises(ValueError, match="key_size=3 does not divide 64 channels"):
        ILM(key_size=3).parameters(64)
    with pytest.raises(ValueError, match="key_size=0 must be at least 1"):
        ILM(key_size=0)
