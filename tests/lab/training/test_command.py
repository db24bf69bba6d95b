"""`calibnorm train`: what it refuses, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from calibnorm.lab.recipes import RECIPES, Recipe
from calibnorm.lab.training import command, machine
from calibnorm.lab.training import run as runs
from calibnorm.lab.training.interruption import Interruption
from lab.calling import main
from lab.training import children
from lab.training.tiny import RICH, arguments, assert_same_run

QUICK = [
    "train",
    "digits-tiny",
    "--train-images",
    "128",
    "--epochs",
    "1",
    "--accelerator",
    "cpu",
    "--model",
    "resnet11",
]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def epoch(*args: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(runs.Loop, "epoch", epoch)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["digits-tyni"], "recipe digits-tyni: is not known; did you mean digits-tiny or"),
        ([], "train: a recipe comes first"),
        (["--epochs", "3"], "train --epochs: a recipe comes first, such as calibnorm train digits-tiny ("),
        (["--data", "folders"], "train --data: a recipe comes first, such as calibnorm train folders-small ("),
        (
            ["/"],
            "/: is a folder, and a recipe comes first; for pictures of your own: calibnorm train folders-small ",
        ),
        (["digits-tiny", "--epcohs", "3"], "--epcohs"),
        (["digits-tiny", "--epochs", "many"], "--epochs"),
        (["digits-tiny", "--epochs", "0"], "--epochs 0"),
        (["digits-tiny", "--seed", "-1"], "--seed -1"),
        (["digits-tiny", "--learning-rate", "nan"], "--learning-rate nan"),
        (["digits-tiny", "--gamma", "2"], "--gamma 2.0"),
        (["digits-tiny", "--warmup-epochs", "3"], "--epochs 3: must be more than --warmup-epochs 3, in which the"),
        (["folders-small", "--epochs", "1"], "--epochs 1: must be more than --warmup-epochs 1, in which the learning"),
        (["digits-tiny", "--ema", "1"], "--ema 1.0"),
        (["digits-tiny", "--clip-norm", "0"], "--clip-norm 0.0"),
        (["digits-tiny", "--label-smoothing", "1"], "--label-smoothing 1.0"),
        (["digits-tiny", "--schedule", "step", "--milestones", "2", "1"], "--milestones 2 1"),
        (["iebn-resnet164-cifar100", "--epochs", "90"], "--milestones 81 122: 122 is never reached in --epochs 90"),
        (
            ["digits-tiny", "--milestones", "1", "2"],
            "--milestones 1 2: has no effect with --schedule cosine; ",
        ),
        (  # the recipe's own, but typed
            ["iebn-resnet164-cifar100", "--schedule", "cosine", "--milestones", "81", "122"],
            "--milestones 81 122: has no effect with --schedule cosine; ",
        ),
        (["digits-tiny", "--gamma=0.5"], "--gamma 0.5: has no effect with --schedule cosine; leave it out, or choose "),
        (["digits-tiny", "--schedule", "step", "--gamma", "0.5"], "--gamma 0.5: has no effect without --milestones\n"),
        (["digits-tiny", "--noise-in", "train"], "--noise-in train: has no effect without --noise\n"),
        (["digits-tiny", "--mix_main", "5"], "--mix-main 5: has no effect without --mix\n"),
        (
            ["digits-tiny", "--mix", "mnist", "--batch-size", "9"],
            "--batch-size 9: has no effect with --mix mnist; give --mix-main and --mix-others\n",
        ),
        (["digits-tiny", "--norm", "batch"], "calibnorm: --norm batch: "),
        (["digits-tiny", "--noise", "0.5"], "calibnorm: --noise 0.5: must be none or two numbers such as 0.8,0.5\n"),
        (["digits-tiny", "--noise"], "calibnorm: --noise: must be none or two numbers"),
        (["digits-tiny", "--noise", "0", "0"], "calibnorm: --noise 0,0: needs two finite numbers, the first not 0\n"),
        (["digits-tiny", "--noise=0,1", "--seed", "1"], "calibnorm: --noise 0,1: needs two finite numbers"),
        (["digits-tiny", "--norm", "iebn:inti=(0,1)"], "inti"),
        (["digits-tiny", "--model", "resnet12"], "calibnorm: --model resnet12: "),
        (["digits-tiny", "--stages", "stage9"], "calibnorm: --stages stage9: resnet11 has "),
        (["digits-tiny", "--data", "nist"], "calibnorm: --data nist: unknown; choose one of digits"),
        (["digits-tiny", "--data", "/"], "; for your own pictures give --data folders and --data-root /\n"),
        (["iebn-resnet164-cifar100"], "download"),
        (["rbn-resnet50-imagenet"], "calibnorm: --data imagenet: is missing; download"),
        (["digits-tiny", "--train-images", "5000"], "calibnorm: --train-images 5000: choose between 1 and the 1198 "),
        (["digits-tiny", "--batch-size", "5000"], "calibnorm: --batch-size 5000: choose between 1 and the 1198 "),
        (["digits-tiny", "--image-size", "5"], "calibnorm: --image-size 5: digits has 8 pixels a side"),
        (
            ["digits-tiny", "--image-size", "1", "--batch-size", "1"],
            "--model resnet11: does not take images of 1 x 1 x 1",
        ),
        (["digits-tiny", "--image-size", "2"], "--image-size 2: is too small: the network would halve a plane of one "),
        (["digits-tiny", "--image-size", "2"], "choose a larger one, such as 4\n"),
        (["digits-tiny", "--mix", "digits"], "--mix digits"),
        (["digits-tiny", "--mix", "imagenet"], "--mix imagenet"),
        (["digits-tiny", "--mix", "foo"], "calibnorm: --mix foo: unknown; choose one of digits"),
        (["digits-tiny", "--model", "resnet50"], "calibnorm: --model resnet50: takes images of 3 channels, not 1; "),
        (["digits-tiny", "--precision", "float16", "--accelerator", "cpu"], "--precision float16"),
        (["digits-tiny", "--precision", "half"], "--precision"),
        (["digits-tiny", "--devices", "0"], "--devices 0"),
        (["digits-tiny", "--devices", "9999", "--accelerator", "cpu"], "calibnorm: --devices 9999: there "),
        (["digits-tiny", "--epochs", "9" * 20], "calibnorm: --epochs 99999999999999999999: must be at most 2147483647"),
        (["digits-tiny", "--seed", str(2**63)], "--seed 9223372036854775808: must be at most"),
        (["digits-tiny", "--accelerator", "gpu"], "calibnorm: --accelerator gpu: a GPU is called cuda here; "),
        (["digits-tiny", "--accelerator", "cuda:0"], "calibnorm: --accelerator cuda:0: a GPU is called cuda here; "),
        (["digits-tiny", "--accelerator", "mps"], "--accelerator mps: training runs on the CPU and on GPUs that torch"),
        (["digits-tiny", "--accelerator", "fast"], "calibnorm: --accelerator fast: must be auto, cpu or cuda\n"),
        (["digits-tiny", "--num-nodes", "2"], "--num-nodes 2: start the command with torchrun"),
        (["digits-tiny", "--checkpoint-minutes", "-1"], "--checkpoint-minutes -1.0"),
        (["digits-tiny", "--workers", "-1"], "--workers -1"),
        (["digits-tiny", "--name", "../x"], "--name ../x"),
        (["digits-tiny", "--name", "/tmp/x"], "--name /tmp/x"),
        (["digits-tiny", "--name", "x", "--out", "y"], "--name"),
        (["digits-tiny", "--override", "everything"], "--override everything"),
    ],
)
def test_wrong_input_is_named_before_training(
    args: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_training")
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years")
    for out, said in ((tmp_path, "is not empty and holds no run"), (file, "is a file")):
        assert main(["train", "digits-tiny", "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("no_training")
def test_what_processes_cannot_be_is_named_before_one_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    given = ["train", "digits-tiny", "--accelerator", "cpu", "--devices"]
    for more, said in (
        (["9"], "--devices 9: there are 8 cores here; choose 8 or fewer"),
        (["3", "--batch-size", "2"], "--batch-size 2: 3 processes cannot share it equally; choose a multiple"),
        (["2", "--mix", "mnist", "--mix-others", "3"], "--mix-others 3: 2 processes cannot share it equally"),
    ):
        assert main([*given, *more]) == 2
        assert capsys.readouterr().err.startswith(f"calibnorm: {said}")
    monkeypatch.setattr(machine, "own_memory", lambda: 300 << 20)
    monkeypatch.setattr(machine, "free_memory", lambda: 1000 << 20)
    assert main([*given, "8"]) == 2
    assert "--devices: 7 more processes take 300 MiB of memory each at least, and 1000 MiB are left" in (
        capsys.readouterr().err
    )
    for words in (["compare", "digits-tiny", "--seeds", "9"], ["table", "iebn-2", "--seeds", "9"]):
        assert main([*words, "--jobs", "8", "--accelerator", "cpu"]) == 2
        assert "--jobs: 8 more processes take 300 MiB of memory each at least" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_advice_after_nan_can_be_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--learning-rate", "1e30"]) == 1
    said = capsys.readouterr().err
    assert said.endswith("try a smaller --learning-rate, more --warmup-epochs, or a --clip-norm\n")
    assert main([*QUICK, "--learning-rate", "0.01"]) == 0, "nothing was saved that would contradict it"
    compared = ["compare", *QUICK[1:], "--norms", "bn", "--seeds", "1", "--jobs", "0", "--learning-rate"]
    assert main([*compared, "1e30"]) == 1
    assert "a smaller --learning-rate" in (said := "".join(capsys.readouterr()))
    assert "give it a --name" in " ".join(said.split())
    assert main([*compared, "0.01"]) == 2
    assert main([*compared, "0.01", "--name", "slower"]) == 0


@pytest.mark.usefixtures("no_training")
def test_compilation_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled(*args: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr("torch.compile", lambda function: compiled)
    assert main(["train", "digits-tiny", "--compile"]) == 2
    said = "calibnorm: --compile: torch.compile does not work here: No working C++ compiler found\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "digits-tiny", "--accelerator", "cuda"]) == 2
    assert "--accelerator cuda" in capsys.readouterr().err


def test_a_run_and_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [*QUICK, "--norm", "bn:gamma_init=0.269", "--noise", "0.8", "0.5", "--seed", "3", "--tensorboard"]
    assert main(args) == 0
    said = capsys.readouterr().out.splitlines()
    folder = Path("runs/digits-tiny/bn-gamma_init=0.269-noise0.8,0.5-seed3")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert said[0].startswith("epoch 1/1  train loss ")
    assert said[1].startswith(f"{folder}: test accuracy {result['test_accuracy']:.2f} % after 1 epoch (the best was ")
    assert said[2].startswith("a step: data ")
    assert "images/s" in said[2]
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (settings["norm"], settings["noise"], settings["seed"]) == ("bn:gamma_init=0.269", [0.8, 0.5], 3)
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "best.pt", "checkpoints", "config.json", "data.json", "environment.json", "last.pt", "metrics.csv",
        "result.json", "tensorboard", "timing.csv",
    }  # fmt: skip
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    header, row = (folder / "timing.csv").read_text(encoding="utf-8").splitlines()
    assert header == "epoch,data_ms,forward_ms,backward_ms,update_ms,images_per_second"
    assert all(float(figure) > 0 for figure in row.split(",")[1:])
    # Again: nothing is done, and it is said.
    assert main(args) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: was finished before, with test accuracy")


def test_help_lists_the_recipes_and_all_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["train", "--help"], ["train", "--list"]):
        assert main(args) == 0
        listed = capsys.readouterr().out
        assert all(f"  {name} " in listed for name in RECIPES)
    assert main(["train", "iebn-densenet100_k12-cifar10", "--help"]) == 0
    helped = capsys.readouterr().out
    for name in (*vars(RICH), "out", "data_root", "accelerator", "devices", "num_nodes", "override", "tensorboard"):
        assert f"--{name.replace('_', '-')}" in helped


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (["--noise", "0.5,-0.2", "--seed", "1"], {"noise": (0.5, -0.2), "seed": 1}),
        (["--noise=0.5,0.2"], {"noise": (0.5, 0.2)}),
        (["--noise", "0.5", "-0.2"], {"noise": (0.5, -0.2)}),
        (["--noise", "None", "--epochs", "1"], {"epochs": 1}),
        (["--noise-in", "always", "--gamma", "0.1"], {}),  # of no effect, and nothing else than without them
        (["--noise-in", "train", "--noise", "0.5,0.2"], {"noise": (0.5, 0.2), "noise_in": "train"}),
        (["--clip-norm", "none", "--ema", "None"], {}),
    ],
)
def test_noise_and_none_are_written_as_in_compare(
    given: list[str], changed: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Recipe] = []

    def run(settings: Recipe, *_: object) -> int:
        asked.append(settings)
        return 0

    had = replace(RECIPES["digits-tiny"], clip_norm=1.0, ema=0.9)
    monkeypatch.setitem(RECIPES, "digits-tiny", had)
    monkeypatch.setattr(command, "run", run)
    assert main(["train", "digits-tiny", *given]) == 0
    none = {"clip_norm": None, "ema": None} if "--clip-norm" in given else {}
    assert asked == [replace(had, **changed, **none)]


def test_of_several_processes_one_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "digits-tiny", "--epochs", "many"]) == 2
    assert capsys.readouterr().err == "calibnorm: --epochs many: must be a whole number\n"


def test_who_gave_no_folder_is_told_of_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits-tiny/iebn-seed0")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**RECIPES["digits-tiny"].to_dict(), "epochs": 7}))
    (folder / "metrics.csv").touch()
    for out, said in (
        ([], f"{folder}: holds a run with epochs 7, not 3; choose another folder with --name or --out."),
        (["--out", str(folder)], f"--out {folder}: holds a run with epochs 7, not 3; choose another folder."),
    ):
        assert main(["train", "digits-tiny", "--accelerator", "cpu", *out]) == 2
        assert capsys.readouterr().err.startswith(f"calibnorm: {said}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_the_same_command_goes_on(
    number: int, status: int, tmp_path: Path, undisturbed: Path
) -> None:
    folder, output = tmp_path / "run", tmp_path / "output"
    assert children.run(children.command, arguments(RICH, folder), (number, 6), output=output) == status
    said = output.read_text(encoding="utf-8")
    assert said.splitlines()[-1] == (
        f"calibnorm: stopped in epoch 2 after 2 steps of it; the same command goes on from there ({folder})"
    )
    assert "Traceback" not in said
    assert children.run(children.command, arguments(RICH, folder), output=output) == 0
    assert f"{folder}: going on after step 6" in output.read_text(encoding="utf-8")
    assert_same_run(folder, undisturbed)


def test_a_signal_while_testing(tmp_path: Path, undisturbed: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "output"
    assert children.run(children.command_stopped_in_test, arguments(RICH, folder), output=output) == 143
    assert "stopped in epoch 1 after 4 steps of it" in output.read_text(encoding="utf-8")
    assert children.run(children.command, arguments(RICH, folder), output=output) == 0
    assert_same_run(folder, undisturbed)


def test_the_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption() as stop:
            assert stop() == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Interruption() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() == 0, "ignored as a shell's background job wants it"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.nightly
def test_a_real_command_killed_at_random_moments(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "calibnorm", *arguments(RICH, folder), "--checkpoint-minutes", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for seconds in (0.0, 0.01, 0.03, 0.1):  # after the first checkpoint of its own, some step or write later
        before = set(folder.glob("checkpoints/step-*.pt"))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            while process.poll() is None and set(folder.glob("checkpoints/step-*.pt")) <= before:
                time.sleep(0.005)
            time.sleep(seconds)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3
    subprocess.run(command, check=True, env=environment, timeout=children.PATIENCE)
    assert_same_run(folder, undisturbed)
