"""`--load`: files and modules of users, whose norms, recipes and tasks the commands know; what runs keep of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import calibnorm as cn
from calibnorm import loading, nn
from calibnorm.errors import UsageError
from calibnorm.lab import cli
from calibnorm.lab.recipes import named, recipe
from calibnorm.lab.tasks import Task, classify
from calibnorm.methods import METHODS
from test_docs import python_blocks

RECIPES = "from calibnorm.lab.recipes import *\n"
OK = RECIPES + '@register_recipe("mine")\ndef mine():\n    return Classification("resnet11", "digits", 1)\n'
SHORT = ["--epochs", "1", "--seeds", "1", "--train-images", "64", "--image-size", "4"]


@pytest.fixture(autouse=True)
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """In an empty folder, return what makes this process one that has loaded nothing; it is one again afterwards."""
    assert Task.kinds[named.RECIPES["digits-tiny"].__class__] is classify.Classify  # it is imported when it is needed
    registries = [METHODS, nn.LAYERS, named.MAKERS, named.RECIPES, recipe_classes(), Task.kinds]
    before = [(registry, dict(registry)) for registry in registries]
    others = dict(loading._LOADED)
    path = list(sys.path)

    def back() -> None:
        for registry, content in before:
            for name in registry.keys() - content.keys():
                del registry[name]
            registry.update(content)
        loading._LOADED.clear()
        sys.path[:] = path
        for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(tmp_path))]:
            del sys.modules[name]

    monkeypatch.chdir(tmp_path)
    loading._LOADED.clear()  # of what another file's tests loaded
    yield back
    back()
    loading._LOADED.update(others)


def recipe_classes() -> dict[str, object]:
    return dict.__getitem__(vars(sys.modules[named.Recipe.__module__]), "_CLASSES")


def said(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    assert cli.main(words) == status
    out, err = capsys.readouterr()
    return " ".join((err if status else out + err).split())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read (No such file or directory); name a Python file or a module that is here"),
        ("def f(:", "mend line 1 of {file}: invalid syntax"),
        ("import no_such_package", "No module named 'no_such_package'; install what it imports"),
        ("a = 1", "registers nothing; it needs a function below @cn.register_method, or in the lab a recipe or a task"),
        ("a = 1\nb", "mend line 2 of {file}: NameError: name 'b' is not defined"),
        ("import sys\nsys.exit(3)", "mend line 2 of {file}: SystemExit: 3"),
        ("import json\njson.loads('{')", "mend line 2 of {file}: JSONDecodeError"),
        (
            "import calibnorm as cn\ncn.register_method('iebn')",
            "mend line 2 of {file}: ValueError: name='iebn' is a method of calibnorm itself; choose another name",
        ),
        (
            OK.replace("mine", "digits-tiny", 1),
            "ValueError: name='digits-tiny' is a recipe already; choose another name",
        ),
        (OK.replace("mine", "a/b", 1), "ValueError: name='a/b' must be letters, digits, _, - and . alone"),
        (
            RECIPES + "@register_recipe('three')\ndef three():\n    return 3",
            "TypeError: the function of recipe 'three' must return a Recipe, not int",
        ),
        (
            RECIPES + "class Mine(Classification):\n    pass",
            "TypeError: Mine: task 'classification' is that of calibnorm.lab.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: str | None, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("wrong_file.py").resolve()
    if text is not None:
        file.write_text(text)
    for command in (["train", "digits-tiny"], ["compare", "digits-tiny"], ["demo"], ["inspect", "gates", "runs"]):
        heard = said([*command, "--load", "wrong_file.py"], capsys)
        assert heard.startswith("calibnorm: --load wrong_file.py: ")
        assert reason.format(file=file) in heard


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no_such_module", "No module named 'no_such_module'; install it, or name a file that ends in .py"),
        ("some/folder", "is neither a Python file, whose name ends in .py, nor a module"),
        ("json.py", "its name is that of the module json; give the file another name"),
        ("a.b.py", "its name is that of a package; give the file another name"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(
    source: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if source.endswith(".py"):
        Path(source).write_text(OK)
    assert said(["train", "digits-tiny", "--load", source], capsys) == f"calibnorm: --load {source}: {reason}"


WRONG_ON_DATA = """import calibnorm as cn

@cn.register_method("wrong")
def wrong(x, batch, p):
    "Well where it is tried, without an image of real pixels."
    if x.m.shape[1] == 32 and not x.m.is_meta:
        raise TypeError("32 channels" + p)
    return batch.standardize(x.m)
"""


@pytest.mark.parametrize(
    "command", ["train digits-tiny --norm wrong", "compare digits-tiny --norms bn rbn:over=wrong --jobs 0"]
)
def test_a_mistake_in_a_method_is_named_with_its_line_before_training(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong_on_data.py").write_text(WRONG_ON_DATA)
    heard = said([*command.split(), "--load", "wrong_on_data.py", *SHORT[:2]], capsys)
    where = Path("wrong_on_data.py").resolve()
    assert heard.startswith(f"calibnorm: --load {where}: mend line 7 of {where}: TypeError: ")
    assert not Path("runs").exists()


def test_a_value_that_a_recipe_cannot_have_is_named_with_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong_value.py").write_text(OK.replace("1)", "0)"))
    heard = said(["train", "mine", "--load", "wrong_value.py"], capsys)
    assert heard == "calibnorm: wrong_value.py: --epochs 0: must be at least 1"


def test_files_and_modules_are_loaded_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("some_module.py").write_text(OK + "print('imported')\n")
    Path("other.py").write_text("import some_module\n" + OK.replace("mine", "other"))
    loading.load(["other.py", "some_module", "some_module.py", "other.py"])
    assert capsys.readouterr().out == "imported\n"
    assert loading.loaded()[0].registers == ("recipe mine", "recipe other")
    assert recipe("other").epochs == 1
    assert "  mine " in said(["train", "--list", "--load", "other.py"], capsys, 0).replace("mine", "  mine ")
    Path("other.py").write_text("changed = True")
    with pytest.raises(
        UsageError, match=r"load=other\.py: has changed since this process loaded it; start Python again"
    ):
        loading.load(["other.py"])


def test_a_recipe_without_a_task_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    kind = "class Mine(Recipe):\n    task = 'mine'\n"
    Path("no_task.py").write_text(
        RECIPES + kind + '@register_recipe("mine")\ndef mine():\n    return Mine("a", "b", 1)\n'
    )
    heard = said(["train", "mine", "--load", "no_task.py"], capsys)
    assert heard == "calibnorm: task mine: has no class; one is needed: class X(Task[Batch], recipes=Mine)"


@pytest.mark.untraced
@pytest.mark.usefixtures("forked_workers")
def test_the_page_s_method_is_trained_compared_and_asked_for(
    forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (method,) = [block for block in python_blocks("docs/register_a_method.md") if ">>>" not in block]
    file = Path("my_method.py").resolve()
    file.write_text(method)
    compare = [
        "compare",
        "digits-tiny",
        "--norms",
        "bn",
        "mymethod:start=0.3",
        "--load",
        "my_method.py",
        "--jobs",
        "1",
        *SHORT,
    ]
    assert "mymethod:start=0.3" in said(compare, capsys, 0)
    root = Path("runs/compare/digits-tiny")
    kept = {
        norm: json.loads((root / "clean" / norm / "seed0" / "environment.json").read_text())["loaded"]
        for norm in ("bn", "mymethod_start=0.3")
    }
    (note,) = kept["mymethod_start=0.3"]
    assert kept["bn"] == []
    assert (note["path"], note["registers"], len(note["sha256"])) == (str(file), ["method mymethod"], 64)
    report = (root / "report.md").read_text()
    assert f"my_method.py ({note['sha256'][:12]})" in report
    assert "--load my_method.py" in report

    train = ["train", "digits-tiny", "--norm", "mymethod", "--load", "my_method.py", *SHORT[:2], *SHORT[4:]]
    assert "test accuracy" in said(train, capsys, 0)
    forget()
    file.write_text(method + "# another\n")
    assert f"{file} has changed since it trained 1 run, such as {root}/clean/mymethod" in said(compare, capsys, 0)
    assert f"{file} has changed since; choose another --name" in said(train, capsys, 0)
    train[train.index("--epochs") + 1] = "2"
    on = said([*train, "--override", "epochs"], capsys, 0)
    assert f"runs/digits-tiny/mymethod-seed0: goes on with {file}, which has changed since it began" in on
    assert "holds no finished run of iebn, rbn or se; its runs are of bn, mymethod" in said(
        ["inspect", "gates", str(root), "--load", "my_method.py"], capsys
    )

    forget()
    missing = f"needs the method mymethod, which is not known here; add --load {file}"
    assert missing in said(["inspect", "gates", str(root)], capsys)
    assert said(train[:4] + SHORT[:2], capsys).endswith("; for one of your own, --load FILE that registers it")


@pytest.mark.untraced
@pytest.mark.usefixtures("forked_workers")
def test_the_page_s_task_is_compared_by_name(forget: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    *parts, _ = python_blocks("docs/tasks.md")
    Path("turned.py").write_text("\n\n".join(parts).replace('"angles"', '"turned"'))
    words = ["compare", "turned", "--load", "turned.py", "--norms", "bn", "iebn", "--widest", "0.5", "--seeds", "1"]
    assert "angle error (rad)" in said([*words, "--jobs", "1"], capsys, 0)
    run = Path("runs/compare/turned/clean/iebn/seed0")
    assert json.loads((run / "environment.json").read_text())["loaded"][0]["registers"] == ["task turned"]
    forget()
    heard = said(["inspect", "gates", "runs/compare/turned"], capsys)
    assert heard.endswith(f"needs the task turned, which is not known here; add --load {Path('turned.py').resolve()}")
    assert cn.methods()[-1] == "brn"
