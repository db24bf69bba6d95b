"""The commands: one list, one way to read their words, and the place where errors become words and exit statuses."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from inspect import getdoc
from itertools import chain
from pathlib import Path
from typing import TypeVar

from calibnorm.errors import ReasonedError, Setting, Stopped, UnknownOption, UsageError, as_option, exit_status, written
from calibnorm.lab.arguments import option_names, parsed, places
from calibnorm.lab.classifier.config import ExportClassifierConfig, PredictConfig
from calibnorm.lab.detect.config import EvalConfig, MiniConfig, ShowConfig
from calibnorm.lab.experiments.config import (
    CompareConfig,
    GatesConfig,
    InspectConfig,
    ReportConfig,
    TableConfig,
    for_recipe,
)
from calibnorm.lab.recipes import RECIPES, Classification, Panoptic, Stylization, recipe
from calibnorm.lab.stylize.config import ApplyConfig, ExportConfig, StyleCompareConfig
from calibnorm.loading import load
from calibnorm.report.streams import nobody_listens

DESCRIPTION = """Experiments with batch normalization that is calibrated by each instance (IEBN, RBN).

Start with `calibnorm demo`. Every command explains its options: `calibnorm demo --help`.
`calibnorm --version` prints the version."""
HELP = ("-h", "--help", "help")
POSITIONAL = ("recipe", "table", "run")
"""Settings that are words of their own, not options."""
OF_MANY = ("--load", "--norms")
"""Options that take all words up to the next option."""

T = TypeVar("T")
Comparing = TypeVar("Comparing", bound=CompareConfig)
Status = int | None
"""An exit status; None is 0."""
Command = Callable[[Sequence[str]], Status]
"""What runs the words behind a command's name."""


def reads(settings: Callable[..., T]) -> Callable[[Callable[[T], Status]], Command]:
    """Make a command of a function of settings: its words are read, then it runs.

    The function's name is the command's, its docstring the help.
    """

    def made(function: Callable[[T], Status]) -> Command:
        name = f"calibnorm {function.__name__.replace('_', ' ', 1).replace('_', '-')}"

        @wraps(function)
        def command(words: Sequence[str]) -> Status:
            return function(parsed(settings, words, prog=name, description=getdoc(function)))

        return command

    return made


def demo(words: Sequence[str]) -> Status:
    """Show what depth does to a norm: BN, IEBN and RBN in a ResNet-56 on real handwritten digits.

    A comparison of the recipe digits-deep, from the same initial weights and in the same batches, without and with the
    constant noise attack of the IEBN paper. Beside IEBN stands its control, BatchNorm that starts with the same small
    scale, and beside RBN one that starts so too. Prints tables and writes learning curves, a picture of the learned
    gates and a report; runs that are there are not trained again. About three minutes on two CPU cores; nothing is
    downloaded.
    """
    # Here, as below, so that `calibnorm --help` does not wait for scikit-learn and matplotlib.
    from calibnorm.lab.demo import DemoConfig, run

    return run(comparison(DemoConfig, demo, words))


def train(words: Sequence[str]) -> Status:
    """Train a recipe into a folder, resumable: the papers' settings, or small ones for a CPU.

    `calibnorm train --list` lists the recipes, `calibnorm train RECIPE --help` a recipe's settings.
    """
    from calibnorm.lab.training.command import main as run

    return run(words)


def compare(words: Sequence[str]) -> Status:
    """Train norms side by side: each with the same seeds, without and with noise attacks.

    Prints mean, standard deviation and 95 % intervals, differences from the first norm paired by seed, and what failed;
    writes a report, learning curves, and a CSV with every run. Finished runs are used again, unfinished ones go on: the
    same command after Ctrl-C, or with more seeds or norms, trains what is missing. Several such commands may share a
    folder.
    """
    from calibnorm.lab.experiments.compare import run

    return run(comparison(CompareConfig, compare, words))


@reads(TableConfig)
def table(config: TableConfig) -> Status:
    """Make a table or figure of the IEBN or the RBN paper again: ours beside what was printed.

    `calibnorm table iebn-2` runs in minutes on digits, which shows how it goes; --scale small takes a part of
    FashionMNIST, --scale paper the paper's own data, networks and epochs. Writes a report with learning curves. What is
    finished is not trained again: the same command after Ctrl-C goes on.
    """
    from calibnorm.lab.experiments.tables.run import run

    return run(config)


@reads(InspectConfig)
def inspect(config: InspectConfig) -> Status:
    """Read a finished run: its result, its curves, and its trained gates by layer, as a page in its folder.

    FOLDER is the run's. The page, report.html, is one file that needs nothing beside it; report.md says the same.
    `calibnorm inspect gates FOLDER` tests the network again with its gates held constant.
    """
    from calibnorm.lab.experiments.single import run

    return run(config)


@reads(ReportConfig)
def report(config: ReportConfig) -> Status:
    """Write the page of runs, a comparison, a table or a bench, from the folders that they have left.

    Of several runs, or comparisons, it is a comparison of all their runs. Nothing is trained, and what is named is
    only read. The page is one file that needs nothing beside it; Markdown, pictures and tables lie beside it.
    """
    from calibnorm.lab.experiments.reopening import run

    return run(config)


@reads(GatesConfig)
def inspect_gates(config: GatesConfig) -> Status:
    """Test trained networks again with every gate held constant: what they take from each image.

    FOLDER is a comparison's or a run's. Every finished run in it is tested; a table is printed and written into the
    folder as average_gates.csv.
    """
    from calibnorm.lab.experiments.gates import run

    return run(config)


@reads(PredictConfig)
def predict(config: PredictConfig) -> Status:
    """Say what pictures show, by a trained classifier: `calibnorm predict RUN PICTURE ... --out answers.csv`.

    Pictures are files or folders, of any size and mode, and are cut as those of the run's test. A picture that cannot
    be read is named and left out, and the exit status is then 1. The data that the run was trained on are not needed.
    """
    from calibnorm.lab.classifier.predict import run

    return run(config)


@reads(ExportClassifierConfig)
def export(config: ExportClassifierConfig) -> Status:
    """Write a trained classifier as ONNX, torch.export or safetensors: `calibnorm export RUN --out classifier.onnx`."""
    from calibnorm.lab.classifier.export import run

    return run(config)


def stylize_train(words: Sequence[str]) -> Status:
    """Train a network that puts photographs into the style of a picture, with any norm (Johnson et al., ECCV 2016).

    `calibnorm stylize train --style IMAGE --content FOLDER --norm iebn`; without --style and --content it learns a
    texture from photographs, which scikit-image and scikit-learn bring. Resumable, like `calibnorm train style-small`,
    which it is; another recipe may stand first. --features says whose VGG-16 compares pictures: the default, random
    weights, needs nothing and learns colours and simple strokes; hed learns more.
    """
    from calibnorm.lab.stylize.train import run

    return run(words, getdoc(stylize_train) or "")


@reads(ApplyConfig)
def stylize_apply(config: ApplyConfig) -> Status:
    """Put pictures into a trained style: `calibnorm stylize apply RUN IMAGE ... --out FOLDER`.

    Pictures have any size and mode; those larger than the memory goes through in strips, to the same result. A
    picture that cannot be read is named and left out, and the exit status is then 1.
    """
    from calibnorm.lab.stylize.apply import run

    return run(config)


def stylize_compare(words: Sequence[str]) -> Status:
    """Train style networks side by side, norms x styles x seeds: the IEBN paper's Figures 2, 3 and 5.

    Like `calibnorm compare`, with a row for each style. The report shows photographs beside what every norm makes of
    them, the content and style losses over the steps, and what the rest of a batch does to one picture.
    """
    from calibnorm.lab.experiments.compare import run
    from calibnorm.lab.stylize.compare import StyleComparison

    return run(comparison(StyleCompareConfig, stylize_compare, words), report=StyleComparison)


@reads(ExportConfig)
def stylize_export(config: ExportConfig) -> Status:
    """Write a trained style network as safetensors or ONNX: `calibnorm stylize export RUN --out style.onnx`."""
    from calibnorm.lab.stylize.export import run

    return run(config)


def detect_train(words: Sequence[str]) -> Status:
    """Train a detector, with boxes, masks or panoptic maps, in COCO's way, with any norm (RBN's Tables 5 to 7).

    `calibnorm detect train --task box|mask|panoptic --data FOLDER|mini --norm rbn`. Without --data it learns a
    miniature, digits on textures, in minutes on a CPU, as the recipes box-mini, mask-mini and panoptic-mini do; on a
    folder in COCO's layout it is trained as box-x1, mask-x1 and panoptic-x1 say. Resumable, like `calibnorm train`,
    which it is; a recipe may stand first, in the place of --task.
    """
    from calibnorm.lab.detect.train import run

    return run(words, getdoc(detect_train) or "")


@reads(EvalConfig)
def detect_eval(config: EvalConfig) -> Status:
    """Print the papers' columns of a trained detector: AP of boxes and masks, PQ, SQ and RQ.

    `calibnorm detect eval RUN` tests on the run's validation. --out FOLDER writes what was found in COCO's formats, and
    --results FOLDER evaluates such files, of whatever detector, in the place of the network.
    """
    from calibnorm.lab.detect.evaluation import run

    return run(config)


@reads(ShowConfig)
def detect_show(config: ShowConfig) -> Status:
    """Draw what a trained detector finds in pictures: `calibnorm detect show RUN PICTURE ... --out FOLDER`.

    Boxes, masks and panoptic maps, with a legend; pictures of the validation stand beside the truth. Without pictures
    it draws the first ones of the validation. What cannot be read is named and left out; the exit status is then 1.
    """
    from calibnorm.lab.detect.show import run

    return run(config)


@reads(MiniConfig)
def detect_make_mini(config: MiniConfig) -> Status:
    """Make a miniature in COCO's layout from real material: `calibnorm detect make-mini FOLDER --train 600 --val 150`.

    Handwritten digits (scikit-learn), scaled, turned and one upon another, lie on textures (scikit-image), which are
    the stuff. Boxes, masks and panoptic maps are exact. Training and validation share no digit and no part of a
    texture. `calibnorm detect train --data FOLDER` reads it.
    """
    from calibnorm.lab.detect.making import run

    return run(config)


def bench(words: Sequence[str]) -> Status:
    """Time layers, whole training steps or inference against nn.BatchNorm2d.

    `calibnorm bench layer`, `bench model` and `bench inference`; with torch alone, `python -m calibnorm.bench`.
    """
    from calibnorm.bench.command import call

    return call(words)


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "train": train,
    "compare": compare,
    "table": table,
    "inspect": inspect,
    "inspect gates": inspect_gates,
    "report": report,
    "predict": predict,
    "export": export,
    "stylize train": stylize_train,
    "stylize apply": stylize_apply,
    "stylize compare": stylize_compare,
    "stylize export": stylize_export,
    "detect train": detect_train,
    "detect eval": detect_eval,
    "detect show": detect_show,
    "detect make-mini": detect_make_mini,
    "bench": bench,
}
"""By name; a command of a group has two words."""


def comparison(settings: type[Comparing], command: Command, words: Sequence[str]) -> Comparing:
    """Return the settings of a comparison, whose first word is its recipe: the recipe's kind says what can be replaced.

    Raises:
        UsageError: A word is not known, or a value cannot be used.
    """
    name = words[0] if words and not words[0].startswith("-") else settings.recipe
    kind = for_recipe(settings, type(recipe(name)))
    program = f"calibnorm {command.__name__.replace('_', ' ')}"
    return parsed(kind, words, prog=program, description=getdoc(command))


def main(args: Sequence[str]) -> int:
    """Run one command.

    Args:
        args: What follows the command's name, such as ``["demo", "--quick"]``.

    Returns:
        The exit status: 0; 1 for a run that failed or wrong values; 2 for input that cannot be used, which the message
        names; 128 + its number after a signal, such as 130 after Ctrl-C.
    """
    words, status = list(args), 0
    try:
        if words in (["--version"], ["-V"]):
            print(f"calibnorm {version('calibnorm')}")
        elif not words or words[0] in HELP:
            print(listing())
        else:
            command, rest = find(words)
            load_named(words[: -len(rest) or None], rest)  # what it registers may be in the words
            status = command(rest) or 0
        sys.stdout.flush()  # here, where it is caught that nobody reads
    except (ReasonedError, Stopped, KeyboardInterrupt) as error:
        text = error.words(as_typed) if isinstance(error, ReasonedError) else str(error) or "stopped by Ctrl-C"
        text += elsewhere(error.option) if isinstance(error, UnknownOption) else ""
        behind_ctrl_c = "\n" if isinstance(error, KeyboardInterrupt) else ""  # a terminal has shown ^C
        print(f"{behind_ctrl_c}calibnorm: {text}", file=sys.stderr)
        return exit_status(error)
    except (BrokenPipeError, SystemExit) as error:  # whoever read the output, such as `head`, has left
        if not isinstance(error.__context__ or error, BrokenPipeError):  # rich makes a SystemExit of it
            raise
        nobody_listens()
        return 141  # as a shell has it for SIGPIPE
    return status


def find(words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """Return the command that a line begins with, and the words behind its name.

    Raises:
        UsageError: There is none; the text names those that there are.
    """
    for count in (2, 1):  # a command of two words may begin with another one
        if (name := " ".join(words[:count])) in COMMANDS:
            return COMMANDS[name], words[count:]
        near = difflib.get_close_matches(name, [each for each in COMMANDS if " " in each], 1, 0.8)
        if near and not Path(words[1]).exists():  # such as inspect gate
            raise UsageError(f"{name}: is not known; did you mean {near[0]}? (calibnorm --help)")
    groups = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    known = groups or list(COMMANDS)
    if groups and len(words) == 1:
        raise UsageError(f"{words[0]}: needs a word; choose from {', '.join(known)} (calibnorm --help)")
    word = " ".join(words[: 2 if groups else 1])
    near = difflib.get_close_matches(word, known, 1)
    advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    raise UsageError(f"{word}: is not known; {advice} (calibnorm --help)")


def load_named(command: Sequence[str], words: Sequence[str]) -> None:
    """Import what --load names, but for what belongs to the command itself.

    Args:
        command: The words of the command's name.
        words: Those behind it.

    Raises:
        UsageError: It cannot be imported, or an option has taken the command's own word; or there is a bare ``--``.
    """
    if "--" in words:
        raise UsageError("--: is not needed here; leave it out")
    load(word for _, *values in places("--load", words) for word in values if not is_own(word))
    for option in OF_MANY if words and words[0].startswith("-") else ():
        for given, *values in places(option, words):
            if len(values) > 1 and is_own(own := values[-1]):
                order = " ".join(["calibnorm", *command, own, given, *values[:-1]])
                raise UsageError(f"{given} {' '.join(values)}: takes all words behind it; write {own} first: {order}")


def is_own(word: str) -> bool:
    """Return whether a word is a recipe or the folder of runs: what a command takes without an option."""
    return word in RECIPES or ("/" in word and Path(word).is_dir())


def elsewhere(option: str) -> str:
    """Return, for the end of a sentence, which commands have an option; those that train have their recipes' too."""
    from calibnorm.bench.command import BENCHES
    from calibnorm.lab.training.command import RunOptions

    compared = for_recipe(CompareConfig, Classification)  # the demo's, too, which takes seconds to import
    settings: dict[str, tuple[type, ...]] = {
        "train": (Classification, RunOptions), "stylize train": (Stylization, RunOptions),
        "detect train": (Panoptic, RunOptions), "detect eval": (EvalConfig,), "detect show": (ShowConfig,),
        "detect make-mini": (MiniConfig,), "predict": (PredictConfig,), "export": (ExportClassifierConfig,),
        "stylize apply": (ApplyConfig,), "stylize export": (ExportConfig,),
        "compare": (compared,), "demo": (compared,), "table": (TableConfig,),
        "inspect gates": (GatesConfig,), **{f"bench {name}": (kind,) for name, kind in BENCHES.items()},
    }  # fmt: skip
    *others, last = [name for name, kinds in settings.items() if option in chain(*map(option_names, kinds))] or [""]
    return f"; {', '.join(others)}{' and ' if others else ''}{last} {'have' if others else 'has'} it" if last else ""


def as_typed(setting: Setting) -> str:
    """Return a setting as the command line has it: an option, or a word of its own."""
    return f"{setting.name} {written(setting.value)}" if setting.name in POSITIONAL else as_option(setting)


def listing() -> str:
    """Return what the commands are, with the first line of what each says of itself."""
    width = max(map(len, COMMANDS))
    first = {name: (getdoc(command) or "").splitlines()[0] for name, command in COMMANDS.items()}
    lines = [f"  {name:<{width}}  {text}" for name, text in first.items()]
    return "\n".join(["usage: calibnorm COMMAND [OPTIONS]", "", DESCRIPTION, "", "commands:", *lines])
