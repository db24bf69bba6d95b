"""Wrong words on the command line: exit status 2 and one line with what was typed and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from calibnorm.errors import UsageError
from calibnorm.lab import arguments, cli


@dataclass(frozen=True)
class Settings:
    """Some."""

    batch_size: int = 3
    rate: float | None = 0.5
    schedule: Literal["step", "cosine"] = "step"
    folder: Path = Path("here")
    names: tuple[str, ...] = ("a",)
    several: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    fast: bool = False


def read(*words: str) -> Settings:
    return arguments.parsed(Settings, words, prog="program")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--batch-size x", "--batch-size x: must be a whole number"),
        ("--batch_size=x", "--batch_size x: must be a whole number"),
        ("--batch-size 1.5 --rate 3", "--batch-size 1.5: must be a whole number"),
        ("--batch-size", "--batch-size: a value is missing; must be a whole number"),
        ("--batch-size --rate 3", "--batch-size: a value is missing; must be a whole number"),
        ("--rate high", "--rate high: must be a number or none"),
        ("--schedule cosin", "--schedule cosin: must be step or cosine; did you mean cosine?"),
        ("--schedule zzz", "--schedule zzz: must be step or cosine"),
        ("--folder", "--folder: a value is missing; must be a path"),
        ("--names", "--names: a value is missing; must be one or more texts"),
        ("--several 3 x -1", "--several 3 x -1: must be whole numbers"),
        ("--pair 0.5", "--pair 0.5: must be two numbers"),
        ("--fast yes", "--fast yes: takes no value"),
        ("--fast=yes", "--fast yes: takes no value"),
        ("--no-fast=yes", "--no-fast yes: takes no value"),
        ("--no-fast yes", "--no-fast yes: takes no value"),
        ("--batchsize 3", "--batchsize 3: is not known; did you mean --batch-size? (program --help)"),
        ("--batch=3", "--batch 3: is not known; did you mean --batch-size? (program --help)"),
        ("--zzz", "--zzz: is not known (program --help)"),
        ("--seconds 3", "--seconds 3: is not known (program --help)"),
        ("--names a --rate 3 --names b", "--names: is there twice; name all values behind one"),
        ("--pair 1 2 --batch-size x --rate high", "--batch-size x: must be a whole number"),
        ("--rate 3 --batch-size 4 5", "5: belongs to no option (program --help)"),
        (f"--{'long' * 40} 3", f"--{'long' * 40} 3: is not known (program --help)"),
        (f"--rate {'long' * 40}", f"--rate {'long' * 40}: must be a number or none"),
    ],
)
@pytest.mark.parametrize("columns", ["30", "200"])
def test_what_is_wrong_is_one_line(
    words: str, said: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UsageError) as caught:
        read(*words.split())
    assert str(caught.value) == said
    assert capsys.readouterr() == ("", "")


def test_right_words() -> None:
    assert read() == Settings()
    words = "--batch_size -4 --rate None --schedule cosine --names x y --several --pair -1 2 --fast"
    assert read(*words.split()) == Settings(-4, None, "cosine", Path("here"), ("x", "y"), (), (-1.0, 2.0), True)
    assert read("--rate", "none") == Settings(rate=None)


def test_help_is_tyros(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: program [-h] [OPTIONS]")
    assert "--rate FLOAT|none" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("demo --epcohs 3", "--epcohs 3: is not known; did you mean --epochs? (calibnorm demo --help)"),
        ("demo --epochs many", "--epochs many: must be a whole number"),
        ("demo --noise 0.5", "--noise 0.5: must be none or two numbers such as 0.8,0.5"),
        ("demo --quick yes", "--quick yes: takes no value"),
        (
            "train digits-tiny --precision half",
            "--precision half: must be float32 or tf32 or bfloat16 or float16; did you mean float16?",
        ),
        ("train digits-tiny --batch-size", "--batch-size: a value is missing; must be a whole number"),
        ("train digits-tiny --ema x", "--ema x: must be a number or none"),
        ("train digits-tiny --nesterov maybe", "--nesterov maybe: takes no value"),
        (
            "compare digits-tiny --normz bn",
            "--normz bn: is not known; did you mean --norms? (calibnorm compare --help)",
        ),
        ("compare digits-tiny --epochs many", "--epochs many: must be a whole number"),
        (
            "train digits-tiny --accelerator gpu",
            "--accelerator gpu: a GPU is called cuda here; CUDA_VISIBLE_DEVICES says which one",
        ),
        ("compare digits-tiny --schedule linear", "--schedule linear: must be step or cosine"),
        ("compare digits-tiny --nesterov maybe", "--nesterov maybe: takes no value"),
        ("compare digits-tiny --milestones 3 x", "--milestones 3 x: must be whole numbers"),
        (
            "compare digits-tiny --workers 0",
            "--workers 0: is not known; did you mean --jobs? (calibnorm compare --help); train, stylize train "
            "and detect train have it",
        ),
        (
            "train digits-tiny --jobs 0",
            "--jobs 0: is not known; did you mean --workers? (calibnorm train digits-tiny --help); compare, demo and "
            "table have it",
        ),
        (
            "train digits-tiny --norms bn",
            "--norms bn: is not known; did you mean --norm? (calibnorm train digits-tiny --help); compare and demo "
            "have it",
        ),
        (
            "table iebn-2 --impls x",
            "--impls x: is not known (calibnorm table --help); bench layer, bench model and bench inference have it",
        ),
        (
            "train digits-tiny --lr 3",
            "--lr 3: is not known; did you mean --learning-rate? (calibnorm train digits-tiny --help)",
        ),
        ("inspect gates", "FOLDER: is missing (calibnorm inspect gates --help)"),
        ("inspect gates --data-root here", "FOLDER: is missing (calibnorm inspect gates --help)"),
        ("compare digits-tiny more", "more: is a word too much (calibnorm compare --help)"),
        ("table iebn-2 rbn-2", "rbn-2: is a word too much (calibnorm table --help)"),
        (
            "demo digits-deep",
            "digits-deep: is a word too much; did you mean --recipe digits-deep? (calibnorm demo --help)",
        ),
        ("train digits-tiny -- --epochs 1", "--: is not needed here; leave it out"),
        ("bench layer -- --threads 1", "--: is not needed here; leave it out"),
        ("compare digits-tiny --noise 0.5 0.2", "--noise 0.5 0.2: takes one word at a time; write --noise 0.5,0.2"),
        (
            "demo --noise none 0.5,0.2 --seeds 1",
            "--noise none 0.5,0.2: takes one word at a time; write --noise none --noise 0.5,0.2",
        ),
        (
            "compare --norms bn iebn digits-tiny",
            "--norms bn iebn digits-tiny: takes all words behind it; write digits-tiny first: calibnorm compare "
            "digits-tiny --norms bn iebn",
        ),
        (
            "inspect gates --load json tests/lab",
            "--load json tests/lab: takes all words behind it; write tests/lab first: calibnorm inspect gates "
            "tests/lab --load json",
        ),
        ("inspect gate runs/x", "inspect gate: is not known; did you mean inspect gates? (calibnorm --help)"),
        ("train digits_tiny", "recipe digits_tiny: is not known; did you mean digits-tiny? (calibnorm train --list)"),
        ("train digits-tiny --norm IEBN", "--norm IEBN: is not known; did you mean iebn?"),
        ("train digits-tiny --norm GroupNorm", "--norm GroupNorm: is not known; did you mean gn?"),
        ("table iebn-2 --scale huge", "--scale huge: must be tiny or small or paper"),
        ("table iebn-2 --job 3", "--job 3: is not known; did you mean --jobs? (calibnorm table --help)"),
        ("table iebn-2 --seeds", "--seeds: a value is missing; must be a whole number or none"),
        ("dmeo", "dmeo: is not known; did you mean demo? (calibnorm --help)"),
        (
            "--frobnicate",
            "--frobnicate: is not known; choose from demo, train, compare, table, inspect, inspect gates, report, "
            "predict, export, stylize train, stylize apply, stylize compare, stylize export, detect train, "
            "detect eval, detect show, detect make-mini, bench (calibnorm --help)",
        ),
    ],
)
def test_every_command_says_it_in_a_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert capsys.readouterr() == ("", f"calibnorm: {said}\n")
