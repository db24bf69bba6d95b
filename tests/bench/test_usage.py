"""`calibnorm bench` called in ways that cannot be meant."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from calibnorm.bench import command
from calibnorm.lab import cli

FILTERS = ("shapes", "layouts", "dtypes", "ops", "modes", "impls", "load")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `calibnorm bench` and `python -m calibnorm.bench` both say."""
    said = []
    for main in (lambda: cli.main(["bench", *args]), lambda: command.main(args)):
        assert main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        said.append(line)
    assert said[0] == said[1]
    return said[0]


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_without_a_value_is_not_the_whole_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = line_of(["layer", f"--{name}"], capsys)
    assert said == f"calibnorm: --{name}: a value is missing; must be one or more texts"


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["layer", "--repeats", "many"], "--repeats many: must be a whole number"),
        (["layer", "--threads", "x"], "--threads x: must be a whole number or none"),
        (["model", "--batch_size", "x"], "--batch-size x: must be a whole number"),
        (["model", "--batch-siz", "3"], "--batch-siz 3: is not known; did you mean --batch-size?"),
        (["layer", "--shape", "3"], "--shape 3: is not known; did you mean --shapes?"),
        (["layer", "--impl", "x"], "--impl x: is not known; did you mean --impls?"),
        (["layer", "--repeats", "30", "40"], "40: belongs to no option"),
        (["layer", "3"], "3: belongs to no option (calibnorm bench layer --help)"),
        (
            ["model", "resnet18"],
            "resnet18: belongs to no option; did you mean --network resnet18? (calibnorm bench model",
        ),
        (["layers"], "bench layers: is not known; did you mean layer?"),
        ([], "bench: needs a word; choose from layer, model, inference"),
    ],
)
def test_wrong_words_are_a_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(args, capsys).startswith(f"calibnorm: {said}")


@pytest.mark.usefixtures("no_timing")
def test_what_is_loaded_is_named_where_it_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "needs.py").write_text("import no_such_package")
    for source, reason in (
        ("nofile.py", "cannot be read (No such file or directory); name a Python file or a module that is here"),
        ("folder.py", "cannot be read (Is a directory); name a Python file or a module that is here"),
        ("nomodule", "No module named 'nomodule'; install it, or name a file that ends in .py"),
        ("needs.py", "No module named 'no_such_package'; install what it imports"),
    ):
        assert line_of(["layer", "--load", source], capsys) == f"calibnorm: --load {source}: {reason}"


def test_what_a_loaded_file_prints_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speaks.py"
    file.write_text("import sys; print('registered', file=sys.stderr)")
    assert cli.main(["bench", "layer", "--load", str(file), "--repeats", "3"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "registered"


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["layer"], ["model"], ["inference"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", *words, "--help"])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        settings = fields(command.BENCHES[words[0]]) if words else ()
        assert all(f"--{field.name.replace('_', '-')} " in text for field in settings)
        assert ("(default: 20)" in text) == bool(words)
