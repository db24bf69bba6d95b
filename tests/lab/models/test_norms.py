"""Normalizations as text: what can be written, its canonical form, and what is said of everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import calibnorm as cn
from calibnorm.errors import UsageError
from calibnorm.lab.models import Norm, parse_norm
from calibnorm.methods import METHODS
from calibnorm.nn import LAYERS, registered

TEXTS = [
    ("bn:gamma_init=0.269", "bn", {"gamma_init": 0.269}, "bn:gamma_init=0.269"),
    ("bn:gamma_init=1", "bn", {}, "bn"),
    (
        " iebn : init = ( 0, 1 ) , position=both",
        "iebn",
        {"position": "both", "init": (0.0, 1.0)},
        "iebn:position=both,init=(0,1)",
    ),
    ("iebn:init=(0,-1)", "iebn", {}, "iebn"),
    ("iebn:operator=fc,reduction=8", "iebn", {"operator": "fc", "reduction": 8}, "iebn:operator=fc,reduction=8"),
    (
        "rbn:center_stat=std,scaling=false",
        "rbn",
        {"scaling": False, "center_stat": "std"},
        "rbn:scaling=false,center_stat=std",
    ),
    ("rbn:scaling=TRUE", "rbn", {}, "rbn"),
    ("rbn:init=(0,1e-3,1.)", "rbn", {"init": (0.0, 0.001, 1.0)}, "rbn:init=(0,0.001,1)"),
    ("rbn:over=sn", "rbn", {"over": "sn"}, "rbn:over=sn"),
    ("rbn:over=gn(groups=8)", "rbn", {"over": {"method": "gn", "groups": 8}}, "rbn:over=gn(groups=8)"),
    ("rbn:over=none", "rbn", {}, "rbn"),
    ("rbn:over=gn()", "rbn", {"over": "gn"}, "rbn:over=gn"),
    ("gn:groups=none", "gn", {}, "gn"),
    ("gn:groups=8", "gn", {"groups": 8}, "gn:groups=8"),
    ("iebn:skip=none", "iebn", {"skip": None}, "iebn:skip=none"),
    ("iebn:skip=shortcut", "iebn", {}, "iebn"),
    ("rbn:skip=shortcut", "rbn", {"skip": "shortcut"}, "rbn:skip=shortcut"),
    ("iebn:preserve=false", "iebn", {"preserve": False}, "iebn:preserve=false"),
    ("bn:statistics=frozen", "bn", {"statistics": "frozen"}, "bn:statistics=frozen"),
    ("bn:statistics=batch", "bn", {}, "bn"),
    ("rbn:gate_rate=0", "rbn", {"gate_rate": 0.0}, "rbn:gate_rate=0"),
    ("iebn:gate_input=mean", "iebn", {"gate_input": "mean"}, "iebn:gate_input=mean"),
    ("rbn:gate_rate=1", "rbn", {}, "rbn"),
    ("se:biases=true", "se", {"biases": True}, "se:biases=true"),
]


@pytest.mark.parametrize(("text", "method", "options", "canonical"), TEXTS)
def test_text(text: str, method: str, options: dict[str, Any], canonical: str) -> None:
    norm = parse_norm(text)
    assert norm == Norm(method, options)
    assert dict(norm.options) == options
    assert hash(norm) == hash(Norm(method, options))
    assert parse_norm(str(norm)) == norm
    assert str(norm) == canonical


@pytest.mark.parametrize("method", cn.methods())
def test_every_method_stands_for_itself(method: str) -> None:
    assert str(parse_norm(method)) == method
    assert parse_norm(method).layer_options == {}


def test_numbers_come_back_exactly() -> None:
    for value in (0.1 + 0.2, 1 / 3, 1e-30, 123456789.0):
        assert parse_norm(str(Norm("bn", {"gamma_init": value}))).options["gamma_init"] == value


def test_order_and_form_do_not_matter() -> None:
    one, other = parse_norm("iebn:init=(1,0),position=beta"), Norm("iebn", {"position": "beta", "init": [1, 0]})
    assert one == other
    assert str(one) == str(other) == "iebn:position=beta,init=(1,0)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bnn", "norm=bnn: is not known; did you mean bn\\?"),
        ("", "norm=: is not known; choose from bn"),
        ("bn,iebn", "norm=bn,iebn: names several; write blanks between them, where several can be"),
        ("bn:", "norm=bn:: nothing follows the colon; write bn, or bn:option=value"),
        ("bn:gamma=1", "norm=bn: 'gamma' is not an option of 'bn', which takes gamma_init, skip"),
        ("rbn:gamma_init=1", "'gamma_init' is not an option of 'rbn', which takes .*; 'bn' has it"),
        ("bn:gamma_init", "norm=bn:gamma_init: 'gamma_init' is not option=value"),
        ("bn:gamma_init=1,,", "'' is not option=value"),
        ("bn:gamma_init=one", "norm=bn:gamma_init=one: gamma_init=one must be a number"),
        ("bn:gamma_init=nan", "gamma_init=nan must be a number"),
        ("bn:gamma_init=1_0", "gamma_init=1_0 must be a number"),
        ("bn:gamma_init=1e999", "gamma_init=inf must be finite"),
        ("bn:gamma_init=1,gamma_init=1", "gamma_init is given twice"),
        ("bn:noise=1", "norm=bn: noise cannot be given here; it is an option of its own"),
        ("rbn:act=relu", "act cannot be given here; the networks have their activations"),
        ("se:alone=true", "alone cannot be given here; a network whose branches end in a convolution"),
        ("se:reduction=0", "reduction=0 must be an integer, at least 1"),
        ("iebn:init=(0)", r"init=\(0\) must be 2 numbers, such as init=\(0,0\)"),
        ("iebn:init=0", r"init=0 must be 2 numbers, such as init=\(0,0\)"),
        ("iebn:init=(0,a)", "init=a must be a number"),
        ("iebn:init=((0,1)", "the parentheses do not match"),
        ("iebn:init=0),1(", "the parentheses do not match"),
        ("iebn:position=gama", "position='gama' is not known; choose one of 'gamma', 'beta', 'both'"),
        ("iebn:position=__import__('os')", "must be a word"),
        ("iebn:skip=all", "skip=all must be shortcut or none"),
        ("rbn:scaling=1", "scaling=1 must be true or false"),
        ("gn:groups=1.5", "groups=1.5 must be a whole number"),
        ("rbn:over=xn", "norm=xn: is not known; choose from"),
        ("rbn:over=gn(size=8)", "'size' is not an option of 'gn', which takes groups"),
        ("rbn:over=gn(groups=8", "the parentheses do not match"),
        ("rbn:over=8", r"over=8 must be a method such as sn, or gn\(groups=8\)"),
        ("rbn:over=rbn", "norm=rbn: outer and base both have .*; compose two different calibrations"),
    ],
)
def test_what_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_norm(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bn", {"gamma_init": "1"}, "norm=bn: gamma_init='1' must be a real number"),
        ("bn", {"skip": "shortcuts"}, "norm=bn: skip='shortcuts' must be 'shortcut' or None"),
        ("bn", {"noise": (0.5, 0.5)}, "noise cannot be given here"),
        (None, {}, "norm=None: is not known"),
    ],
)
def test_what_cannot_be_is_named_in_python_too(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Norm(method, options)


def test_a_norm_is_a_text_or_a_norm() -> None:
    norm = Norm("rbn")
    assert parse_norm(norm) is norm
    with pytest.raises(UsageError, match="norm=3: must be a text"):
        parse_norm(3)  # type: ignore[arg-type]


@pytest.fixture
def half() -> Iterator[None]:
    """Register a method for one test."""
    spaces = (METHODS, LAYERS, vars(registered))
    before = [dict(space) for space in spaces]

    @cn.register_method("half_norm")
    def half(x, batch, p, *, factor=0.5, power=2, table=None):  # type: ignore[no-untyped-def]
        return batch.standardize(factor * x.m)

    yield
    for space, kept in zip(spaces, before, strict=True):
        for name in [name for name in space if name not in kept]:
            del space[name]


@pytest.mark.usefixtures("half")
def test_a_registered_method() -> None:
    norm = parse_norm("half_norm:power=3,factor=1")
    assert norm.options == {"factor": 1.0, "power": 3}
    assert str(norm) == "half_norm:factor=1,power=3"
    with pytest.raises(UsageError, match=r"power=2\.5 must be a whole number"):
        parse_norm("half_norm:power=2.5")
    with pytest.raises(UsageError, match="table is a NoneType, which cannot be written as text"):
        parse_norm("half_norm:table=1")
