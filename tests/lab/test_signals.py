"""SIGINT and SIGTERM at any moment, of imports too: a line, status 130 or 143, and nobody is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibnorm import _stopping
from calibnorm.lab.training import companions
from lab.processes import is_there
from lab.training import children

AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may have been started with it ignored

class Sends:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Sends())
sys.argv = ["calibnorm", *{words!r}]
from calibnorm.lab.entry import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "number", "words"),
    [
        ("torch", signal.SIGINT, ["bench", "layer"]),
        ("torch.nn", signal.SIGTERM, ["train", "digits-tiny"]),
        ("calibnorm.lab.cli", signal.SIGINT, ["inspect", "gates", "x"]),
        ("lightning.fabric", signal.SIGINT, ["train", "digits-tiny", "--accelerator", "cpu"]),
        ("sklearn.datasets", signal.SIGTERM, ["compare", "digits-tiny", "--accelerator", "cpu"]),
    ],
)
def test_a_signal_in_an_import_is_a_line(module: str, number: int, words: list[str], tmp_path: Path) -> None:
    code = AT_IMPORT.format(module=module, number=int(number), words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.strip() == f"calibnorm: stopped by {_stopping.name_of(number)}"


@pytest.mark.parametrize("module", ["calibnorm", "calibnorm.bench"])
def test_python_m_is_the_command_from_its_first_import_on(module: str) -> None:
    # A shell starts background jobs with SIGINT ignored, and this process may be in one: SIGTERM.
    command = [sys.executable, "-X", "importtime", "-m", module, "layer"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("torch" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        *_, last = process.stderr
    assert process.returncode == 143
    assert last == "calibnorm: stopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("words", "given", "is_it"),
    [
        (["/venv/bin/calibnorm", "train"], ["python", "/venv/bin/calibnorm", "train"], True),
        (["-m", "train"], ["python", "-u", "-m", "calibnorm", "train"], True),
        (["-m", "train"], ["python", "-mcalibnorm", "train"], True),
        (["-m", "calibnorm"], ["python", "-m", "pytest", "calibnorm"], False),
        (["-c"], ["python", "-c", "import calibnorm"], False),
        (["/home/me/train.py", "calibnorm"], ["python", "train.py", "calibnorm"], False),
        ([], [], False),
    ],
)
def test_only_the_command_gets_handlers(
    words: list[str], given: list[str], is_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", given)
    assert _stopping.runs_the_command() is is_it


def test_ignored_signals_stay_ignored() -> None:
    before = [signal.getsignal(number) for number in _stopping.SIGNALS]
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _stopping.begin()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == _stopping.end_at_once
    finally:
        for number, handler in zip(_stopping.SIGNALS, before, strict=True):
            signal.signal(number, handler)


KILLED = (
    "process 1 ended with signal SIGKILL, perhaps for want of memory; the same command goes on from the last checkpoint"
)


class Ended(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(_stopping, "_process", os.getpid())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_of_a_run_speaks_and_a_forked_one_never(
    ends: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, said in ((signal.SIGINT, "\ncalibnorm: stopped by Ctrl-C\n"), (15, "calibnorm: stopped by SIGTERM\n")):
        with pytest.raises(Ended, match=str(128 + number)):
            _stopping.end_at_once(number)
        assert capfd.readouterr().err == said
    ends.setenv("LOCAL_RANK", "1")
    with _stopping.advised("; nothing was written"), pytest.raises(Ended, match="143"):
        _stopping.end_at_once(15)
    ends.setenv("RANK", "0")
    with _stopping.advised("; nothing was written"), pytest.raises(Ended, match="143"):
        _stopping.end_at_once(15)
    ends.setattr(_stopping, "_process", 1)
    with pytest.raises(Ended, match="143"):
        _stopping.end_at_once(15)
    assert capfd.readouterr().err == "calibnorm: stopped by SIGTERM; nothing was written\n"


@pytest.mark.parametrize(
    ("codes", "status", "said"),
    [
        ([0, -9], 1, f"calibnorm: {KILLED.replace('process 1', 'process 2')}\n"),
        ([None, 130], 130, "\ncalibnorm: stopped by Ctrl-C\n"),
        ([143, None], 143, "calibnorm: stopped by SIGTERM\n"),
        ([2, None], 2, ""),
        ([0, 0], None, ""),
    ],
)
def test_the_first_process_ends_after_another(
    codes: list[int | None], status: int | None, said: str, ends: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int | None] = []
    others = [
        SimpleNamespace(poll=lambda code=code: code, kill=lambda code=code: killed.append(code)) for code in codes
    ]
    ends.setattr(companions, "_started", others)
    ends.setattr(companions.time, "sleep", lambda seconds: None)
    assert (companions.killed() is not None) is (-9 in codes)
    if status is None:
        companions._watch()
    else:
        with pytest.raises(Ended, match=str(status)):
            companions._watch()
        assert killed == codes
    assert capfd.readouterr().err == said


def test_a_process_that_is_alone_ends(ends: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ends.setattr(companions.time, "sleep", lambda seconds: None)
    ends.setenv("LOCAL_RANK", "3")
    with pytest.raises(Ended, match="1"):
        companions._watch_first(-1)
    assert capfd.readouterr().err.startswith(
        "calibnorm: process 3: the first process is gone; the same command goes on"
    )


def test_a_first_process_that_waits_ends_after_one_that_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert children.run(children.first_that_waits, code, output=output) == 1
    assert output.read_text() == f"calibnorm: {KILLED}\n"


def test_a_further_process_ends_after_the_first(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert children.run(children.first_that_ends, output=output) == 0
    group = int(output.read_text().split()[0])
    assert not is_there(group)
    assert output.read_text().endswith(
        "calibnorm: process 1: the first process is gone; " + KILLED.partition("; ")[2] + "\n"
    )


def test_a_hidden_cursor_is_shown_and_workers_end() -> None:
    code = (
        "import multiprocessing, os, time; import calibnorm._stopping as s\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)); worker.start()\n"
        "print(worker.pid, flush=True)\n"
        "with s.advised('; so it is'): s.end_at_once(2)"
    )
    main, other = os.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=other, stderr=other, start_new_session=True) as process:
        os.close(other)
        assert process.wait(300) == 130  # torch is imported, which takes long on a busy machine
    said = os.read(main, 4096)
    os.close(main)
    assert _stopping.SHOW_CURSOR in said
    assert b"calibnorm: stopped by Ctrl-C; so it is" in said
    assert not is_there(process.pid)
