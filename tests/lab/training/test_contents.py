"""Files of a run that are well signed, or whole, but not ours: each is used, or refused in a line that names it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.experiments.outcomes import curve, epochs_done
from calibnorm.lab.training import folder as folders
from calibnorm.lab.training.checkpoints import Checkpoints, dumped
from calibnorm.lab.training.contents import CHECKPOINT, WEIGHTS, read, refused
from calibnorm.lab.training.loop import Loop
from calibnorm.lab.training.trained import trained
from calibnorm.lab.training.watchers import Watcher
from lab.calling import main
from lab.training.tiny import RICH, STEPS, TINY, Interrupting, arguments, feeds, learner, run, state

ONE = replace(TINY, epochs=1)
PATH = Path("step")
ODD: list[Any] = [None, True, -5, 2**70, 0.5, float("nan"), "x", [], {}, [0], torch.zeros(3), torch.tensor(1j)]
"""What stands in another part's place."""


def damaged(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the content with one part removed, or in its place something odd; of long mappings two parts."""
    yield "itself", None
    for path in paths(content):
        for number in range(-1, len(ODD)):
            inside = copied = copy.copy(content)
            for key in path[:-1]:
                inside[key] = copy.copy(inside[key])
                inside = inside[key]
            if number < 0:
                del inside[path[-1]]
            else:
                inside[path[-1]] = ODD[number]
            yield f"{'/'.join(map(str, path))} {'missing' if number < 0 else ODD[number]!r}", copied


def paths(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = [*content] if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    for key in [*keys][:1] + [*keys][-1:] if len(keys) > 10 else keys:
        yield (*before, key)
        yield from paths(content[key], (*before, key))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RICH that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        run(RICH, folder, checkpoint_minutes=0.0, watcher=Interrupting(STEPS + 2))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(ONE, folder)
    return folder


def loop() -> Loop[Any]:
    of = learner(RICH)
    return Loop(tasks.of(RICH), of.fabric, feeds(RICH), of, lambda content, number: None, Watcher(), int, 10.0)


@pytest.mark.parametrize("share", [0.03, pytest.param(1.0, marks=pytest.mark.nightly)])
def test_a_damaged_checkpoint_is_gone_on_from_or_refused(share: float, stopped: Path) -> None:
    """Nothing but UsageError is raised; what is accepted has the run's own place, weights and momenta."""
    going, content, draw = loop(), state(stopped), random.Random(0)
    going.restore(content)
    cases = [case for case in damaged(content) if draw.random() < share]
    taken = []
    for name, each in cases:
        try:
            found = read(PATH, dumped(each), CHECKPOINT, "")
            with refused(PATH, "", ""):
                going.restore(found)
        except UsageError:
            continue
        taken.append(name)
        assert (going.progress.epoch, going.progress.step) == (1, STEPS + 1), name
        assert going.learner.finite(), name
    assert len(cases) > 800 * share
    # Settings of the optimizer are the recipe's, and figures may be any numbers: nothing else is taken. The data, which
    # same_data looks at, are not the loop's.
    free = ("optimizer", "progress/rows", "progress/timings", "scaler", "average/updates", "seconds", "sums", "data")
    assert [name for name in taken if not name.startswith(free)] == []


def test_damaged_weights_are_refused_or_tested(finished: Path) -> None:
    content = torch.load(finished / "last.pt", weights_only=True)
    from lab.training.tiny import network

    net, refusals, count = network(ONE), 0, 0
    for name, each in damaged(content):
        if name.startswith("recipe"):
            continue
        count += 1
        try:
            found = read(PATH, dumped(each), WEIGHTS, "")
            with refused(PATH, "", ""):
                net.load_state_dict(found["network"])
        except UsageError:
            refusals += 1
        else:
            assert not name.startswith(("network ", "epoch", "itself")) or name == "epoch 1", name
    assert 40 < refusals <= count


@pytest.mark.parametrize("what", ["cut", "flipped", "empty", "list", "tensor", "shape", "number", "none"])
def test_who_tests_a_run_and_who_goes_on_say_what_is_wrong(
    what: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (finished / "last.pt").read_bytes()
    content = torch.load(finished / "last.pt", weights_only=True)
    odd: dict[str, Callable[[], bytes | None]] = {
        "cut": lambda: whole[: len(whole) // 2],
        "flipped": lambda: bytes([whole[0] ^ 1]) + whole[1:],
        "empty": lambda: b"",
        "list": lambda: dumped([1]),  # type: ignore[arg-type]
        "tensor": lambda: dumped(torch.zeros(3)),  # type: ignore[arg-type]
        "shape": lambda: dumped({**content, "network": {**content["network"], "fc.weight": torch.zeros(1, 2)}}),
        "number": lambda: dumped({**content, "network": 3}),
        "none": lambda: None,
    }
    data = odd[what]()
    for name in ("config.json", "result.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    if data is not None:
        (tmp_path / "last.pt").write_bytes(data)
    with (
        pytest.raises(UsageError, match=r"last\.pt: .* remove its folder, and train it again"),
        trained(tmp_path, Path()),
    ):
        pass
    assert main(["inspect", "gates", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if data is None:
        return
    # The same bytes, well signed, as a checkpoint: the command says so and trains nothing.
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(ONE.to_dict()))
    from calibnorm.lab.training.checkpoints import digest

    path = folder / "checkpoints" / f"step-000000004-{digest(data)}.pt"
    path.write_bytes(data)
    assert main(arguments(ONE, folder)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"calibnorm: {path}: ")
    assert "remove it, and the same command goes on" in said
    assert said.count("\n") == 1


def test_a_checkpoint_of_another_run_is_refused_and_its_removal_is_a_remedy(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, content = tmp_path / "run", state(stopped)
    content["progress"]["step"] += 2 * STEPS
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_bytes((stopped / "config.json").read_bytes())
    path = Checkpoints(folder / "checkpoints", print).save(content, 13)
    assert main(arguments(RICH, folder)) == 2
    said = capsys.readouterr().err
    assert f"{path}: does not fit this run (step {3 * STEPS + 1} is not in epoch 2 of {STEPS} steps each)" in said
    path.unlink()
    assert main(arguments(replace(RICH, epochs=2), folder)) == 0


def odd_texts(whole: bytes) -> Iterator[bytes]:
    """Yield damaged forms of a text file."""
    draw = random.Random(0)
    yield from (
        b"",
        b"\0",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b"1",
        b"[" * 100_000,
        b'{"later": 3, "task": []}',
        b"a,b\n1",
    )
    for _ in range(60):
        data = bytearray(whole)
        start = draw.randrange(len(data))
        data[start : start + draw.randrange(1, 9)] = draw.choice(
            [b"", b"x", b'"', b",", b"-5", b"NaN", b"1e999", b"\n"]
        )
        yield bytes(data)


def test_damaged_texts_of_a_run_are_read_or_named(finished: Path, tmp_path: Path) -> None:
    task, wrong = tasks.of(ONE), 0
    reading: dict[str, Callable[[], Any]] = {
        "config.json": lambda: folders.read_recipe(tmp_path),
        "result.json": lambda: folders.read_result(tmp_path),
        "metrics.csv": lambda: curve(Run(ONE, tmp_path)),
    }
    for name, look in reading.items():
        for data in odd_texts((finished / name).read_bytes()):
            (tmp_path / name).write_bytes(data)
            try:
                look()
            except UsageError:
                wrong += 1
            assert 0 <= epochs_done([Run(ONE, tmp_path)]) <= 1 or name == "metrics.csv"
    assert wrong > 100
    for data in odd_texts((finished / "environment.json").read_bytes()):
        (tmp_path / "environment.json").write_bytes(data)
        folders.note_environment(tmp_path, {"threads": 1})
    for counted in (float("nan"), -1, 0.5, True, None):
        result = json.loads((finished / "result.json").read_text())
        (tmp_path / "result.json").write_text(json.dumps({**result, "best_epoch": counted}))
        with pytest.raises(UsageError, match=r"result\.json: is damaged"):
            folders.finished(tmp_path, task)


def test_damaged_figures_of_a_finished_run_can_be_had_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the error of `read_rows` says: remove both files, and start the same command."""
    folder = tmp_path / "run"
    run(ONE, folder)
    whole = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv").write_bytes(whole[:-9])
    with pytest.raises(UsageError, match=r"metrics\.csv: is damaged; remove it and result\.json, and the same command"):
        curve(Run(ONE, folder))
    for name in ("metrics.csv", "result.json"):
        (folder / name).unlink()
    run(ONE, folder)
    assert (folder / "metrics.csv").read_bytes() == whole
