"""The command `calibnorm`: what it says and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from calibnorm.errors import RunFailed, Setting, Stopped, UsageError
from calibnorm.lab import cli, entry
from calibnorm.lab.experiments import experiment
from lab.calling import main
from lab.processes import is_there

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(experiment, "train_grid", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["demo", "--epcohs", "3"], "--epcohs"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--epochs", "0"], "--epochs 0"),
        (["demo", "--jobs", "-1"], "--jobs -1"),
        (["demo", "--batch-size", "2000"], "--batch-size 2000"),
        (["demo", "--learning-rate", "nan"], "--learning-rate nan"),
        (["demo", "--weight-decay", "-0.1"], "--weight-decay -0.1"),
        (["demo", "--noise", "0,0.5"], "--noise 0,0.5"),
        (["demo", "--norms", "bn", "bn"], "--norms bn bn"),
        (["demo", "--norms", "layer"], "--norms layer"),
        (["train"], "train"),
        (["compare", "nope"], "recipe nope: is not known"),
        (["table", "iebn-9"], "table iebn-9: is not known"),
        (["inspect"], "inspect: needs a word; name a run's folder"),
        (["inspect", "gate"], "inspect gate: is not known; did you mean inspect gates?"),
        (["report"], "report: needs a word; name runs"),
    ],
)
def test_wrong_input_is_named_before_training(
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*args, "--out", str(out)] if args[0] == "demo" else args) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"calibnorm {version('calibnorm')}\n"
    for args in ([], ["--help"], ["help"]):
        assert main(args) == 0
        assert "demo" in capsys.readouterr().out
    assert main(["demo", "--help"]) == 0
    assert "--seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (RunFailed("no space left"), 1, "no space left"),
        (Stopped(15, "stopped in epoch 3"), 143, "stopped in epoch 3"),
        (UsageError(Setting("batch_size", 0), "see ", Setting("recipe", "x")), 2, "--batch-size 0: see recipe x"),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_status(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "demo", fails)
    assert main(["demo"]) == status
    assert capsys.readouterr().err.strip() == f"calibnorm: {line}"


def left(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command whose reader has left, as `head -1` does: the pipe is closed before anything is written.

    Python writes when a buffer is full, and at the end, unless a variable has it otherwise.
    """
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "calibnorm", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(writing)
    return done


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--list"], ["demo", "--help"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    done = left(words)
    assert (done.returncode, done.stderr) == (141, "")


BENCHED = ["--shapes", "2x4x2x2", "--dtypes", "float32", "--layouts", "NCHW", "--modes", "eval", "--device", "cpu"]


@pytest.mark.parametrize(
    ("words", "page", "status"),
    [
        (["inspect", "RUN"], "run/report.html", 141),
        (["inspect", "gates", "RUN"], "run/average_gates.html", 141),
        (["bench", "layer", *BENCHED, "--out", "OUT"], "out/layer.html", 0),  # it speaks while it measures
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else "",
)
def test_a_reader_that_leaves_finds_the_page_all_the_same(
    words: list[str], page: str, status: int, tmp_path: Path
) -> None:
    run = shutil.copytree(Path(__file__).parents[1] / "upgrade/0.1/finished", tmp_path / "run")
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    done = left([places.get(word, word) for word in words])
    assert (done.returncode, done.stderr) == (status, "")
    assert (tmp_path / page).exists()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_real_ctrl_c_stops_the_workers(tmp_path: Path) -> None:
    # A shell starts background jobs with SIGINT ignored, and this process may be in one; a user's terminal does not.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from calibnorm.lab.entry import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # The comparison's note appears when the arguments were read and the work begins.
        while not (tmp_path / "out" / "demo" / "grid.json").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "stopped by Ctrl-C" in err
    assert not is_there(process.pid)  # no worker is left


def test_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(entry, "find_spec", lambda name: None if name in ("rich", "sklearn") else object())
    assert entry.main() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "calibnorm: this command needs rich, scikit-learn; in the folder of calibnorm's source run: "
        'pip install ".[lab]"\n'
    )


def test_python_m_calibnorm() -> None:
    command = [sys.executable, "-m", "calibnorm", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("calibnorm ")


def test_entry_runs_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["calibnorm", "--version"])
    assert entry.main() == 0
    assert capsys.readouterr().out.startswith("calibnorm ")


def test_entry_checks_what_the_extra_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in project["optional-dependencies"]["lab"]}
    assert names == set(entry.LAB_MODULES.values())
    assert project["scripts"] == {"calibnorm": "calibnorm.lab.entry:main"}
