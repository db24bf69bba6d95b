"""The parts of training by themselves: the clock, what is shown, the schedule."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from calibnorm.errors import UsageError
from calibnorm.lab import tasks
from calibnorm.lab.recipes import Classification
from calibnorm.lab.training import clock, machine, processes, watchers
from calibnorm.lab.training.checkpoints import clear
from calibnorm.lab.training.clock import HostClock, Timing
from calibnorm.lab.training.progress import LossWatch
from calibnorm.lab.training.schedule import learning_rate
from lab.training.tiny import TINY, row

MEASURES = tasks.of(TINY).measures
ROW = row(1, 1.5, 50.0, 1.25, 60.0, 90.0, 0.1)


def test_the_clock_gives_medians_of_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.001, 0.003, 0.006, 0.010, 1.0, 1.001, 1.003, 1.006, 1.010, 2.0, 2.5])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    measured = HostClock()
    assert measured.medians() is None
    for _ in range(2):
        measured.begin()
        for _ in clock.PHASES:
            measured.mark()
    measured.begin()  # the feed was at its end
    measured.mark()
    medians = measured.medians()
    assert medians == pytest.approx({"data_ms": 1, "forward_ms": 2, "backward_ms": 3, "update_ms": 4})
    assert medians is not None
    said = "a step: data 1.00 ms (10.0 %), forward 2.00 ms (20.0 %), backward 3.00 ms (30.0 %), "
    assert str(Timing(epoch=1, images_per_second=1234.5, **medians)) == said + "update 4.00 ms (40.0 %); 1234 images/s"


def test_the_clock_of_a_gpu_records_events_and_times_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        now = 0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = Event.now

        def synchronize(self) -> None:
            Event.waits += 1

        waits = 0

        def elapsed_time(self, other: Event) -> float:
            return float(other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    measured = clock.make_clock(torch.device("cuda"), 3 * clock.SAMPLES)
    assert measured.medians() is None
    for step in range(9):
        measured.begin()
        for phase in range(4):
            Event.now += 10 * step + phase
            measured.mark()
    # Every third step is timed: numbers 2, 5 and 8.
    expected = {"data_ms": 50.0, "forward_ms": 51.0, "backward_ms": 52.0, "update_ms": 53.0}
    assert Event.waits == 0
    assert measured.medians() == expected
    assert Event.waits == 1


def test_a_gpu_is_told_to_add_in_one_order() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with torch.backends.__allow_nonbracketed_mutation():  # torch's own test harness, in this process, freezes the flags
        with machine.convolutions(torch.device("cuda"), "float32"):
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert (cudnn.deterministic, cudnn.benchmark) == before


def test_the_loss_watch_remembers_the_first_step() -> None:
    watch = LossWatch(torch.device("cpu"))
    for step, loss in enumerate([1.0, float("inf"), 2.0, float("nan")], 1):
        watch.see(torch.tensor(loss), step)
    assert watch.first_bad() == 2


def test_the_cosine_with_warm_up_starts_and_ends_where_it_should() -> None:
    recipe = Classification("resnet11", "digits", epochs=10, schedule="cosine", warmup_epochs=2, learning_rate=0.4)
    rates = [learning_rate(recipe, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)
    assert 0 < rates[49] < 0.002


def test_the_bar_shows_lines_above_and_figures_in_it() -> None:
    bar = watchers.Bar()
    text = io.StringIO()
    bar._bar.live.console = Console(file=text, force_terminal=True, width=120)
    bar.PAUSE_S = 0.0
    bar.start(MEASURES, 2)
    bar.begin(1, 4, 1)
    bar.step(2, lambda: {"train_loss": 1.5, "train_accuracy": 50.0})
    bar._bar.refresh()
    bar.epoch(ROW, None, 2.0)
    bar.close()
    shown = text.getvalue()
    assert "2/4" in shown
    assert "loss 1.500  accuracy 50.0 %" in shown
    assert "epoch 1/2  train loss 1.5000 accuracy 50.00 %  test loss 1.2500 accuracy 60.00 %" in shown


def test_an_untested_epoch_has_no_test_figures_in_its_line() -> None:
    nan = float("nan")
    line = watchers.line(row(3, 1.5, 50.0, nan, nan, nan, 0.1), 120, MEASURES)
    assert line == "epoch   3/120  train loss 1.5000 accuracy 50.00 %  learning rate 0.1"


def test_clear_removes_only_what_was_half_written(tmp_path: Path) -> None:
    for name in (".step-000000001-00.pt.123", ".config.json.7", ".lock", "file.1", ".keep"):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "file.1", ".keep"}


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UsageError, match="devices=3: there are 2 GPUs here"):
        processes.start(processes.Machine("cuda", devices=3), "float32")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match="precision=bfloat16"):
        processes.start(processes.Machine("cuda"), "bfloat16")
