"""Folders' names, which never change: runs on people's disks are found by them."""

from __future__ import annotations

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab.naming import check_name, slug
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training.command import run_name


@pytest.mark.parametrize(
    ("first", "second"),
    [("iebn:init=(0,1)", "iebn:init=(0,-1)"), ("iebn:init=(0,1)", "iebn:init=(1,0)"), ("rbn", "rbn:scaling=false")],
)
def test_folders_of_norms_differ(first: str, second: str) -> None:
    assert slug(first).lower() != slug(second).lower()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".hidden", "-x", "a b", "a\x00", "é", "x\n"])
def test_names_that_are_no_plain_folder(name: str) -> None:
    with pytest.raises(UsageError, match=r"^name="):
        check_name(name)


def test_names_that_are() -> None:
    assert [check_name(name) for name in ("resnet83-noise_0.5,0.2", "_x", "7")] == ["resnet83-noise_0.5,0.2", "_x", "7"]


@pytest.mark.parametrize(
    ("norm", "compared", "trained"),
    [
        ("iebn", "iebn", "iebn-seed0"),
        ("bn:gamma_init=0.269", "bn_gamma_init=0.269", "bn-gamma_init=0.269-seed0"),
        ("iebn:init=(0,1)", "iebn_init=0,1", "iebn-init=0,1-seed0"),
        ("rbn:over=gn(groups=8)", "rbn_over=gngroups=8", "rbn-over=gngroups=8-seed0"),
        ("iebn:init=(1e-05,-1)", "iebn_init=1e-05,-1", "iebn-init=1e-05,-1-seed0"),
    ],
)
def test_a_norms_folders_in_a_comparison_and_by_itself(norm: str, compared: str, trained: str) -> None:
    assert slug(norm) == compared
    assert run_name(Classification("resnet11", "digits", 1, norm=norm)) == trained
