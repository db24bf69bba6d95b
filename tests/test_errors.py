"""Errors carry setting, value and reason; the words are made where they are printed."""

from __future__ import annotations

import pickle

import pytest

from calibnorm.errors import Diverged, RunFailed, Setting, UsageError, as_option, called


def milestones() -> UsageError:
    return UsageError(
        Setting("milestones", (3, 9)), "9 is never reached in ", Setting("epochs", 6), "; see ", Setting("clip_norm")
    )


def test_words_of_python_and_of_the_command_line():
    assert str(milestones()) == "milestones=3, 9: 9 is never reached in epochs=6; see clip_norm"
    assert milestones().words(as_option) == "--milestones 3 9: 9 is never reached in --epochs 6; see --clip-norm"


def test_a_text_alone_stays_as_it_is():
    assert str(RunFailed("no space left")) == RunFailed("no space left").words(as_option) == "no space left"
    assert UsageError().setting is None


@pytest.mark.parametrize(("value", "text"), [(None, "--ema none"), ("", "--ema"), ((), "--ema"), (0.5, "--ema 0.5")])
def test_values_as_options(value, text):
    assert UsageError(Setting("ema", value), "is wrong").words(as_option) == f"{text}: is wrong"


def test_other_processes_see_the_same_error():
    error = milestones()
    error.shared = True
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UsageError
    assert again.shared
    assert again.words(as_option) == error.words(as_option)
    assert Diverged("NaN").shared


def test_a_block_calls_a_setting_by_another_name():
    with pytest.raises(UsageError, match=r"^mix=nope: is not known$"), called(data="mix"):
        raise UsageError(Setting("data", "nope"), "is not known")
    with pytest.raises(UsageError, match=r"^norm=nope: is not known$"), called(data="mix"):
        raise UsageError(Setting("norm", "nope"), "is not known")
