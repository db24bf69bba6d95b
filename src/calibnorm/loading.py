"""`--load`: Python files and modules of users, whose import registers what the commands then know by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from calibnorm.errors import Setting, UsageError
from calibnorm.methods import methods

REGISTRIES: dict[str, Callable[[], Iterable[str]]] = {"method": methods}
"""What can be registered, with the names that there are; the lab adds its recipes and tasks."""


class Source(NamedTuple):
    """What was imported.

    Args:
        path: A file's whole path, or a module's name: what `--load` takes.
        sha256: The digest of the file, or of the module's own file; empty where a module has none.
        registers: Such as ("method my_norm", "recipe my-digits").
    """

    path: str
    sha256: str
    registers: tuple[str, ...]


_LOADED: dict[str, Source] = {}


def loaded() -> list[Source]:
    """Return what this process has loaded, in its order."""
    return list(_LOADED.values())


def load(sources: Iterable[str]) -> None:
    """Import files (they end in .py) and modules, each once.

    A file is imported under its name, as ``import my_norms`` would from its folder, which becomes the last place where
    Python looks for modules: so the file can import its neighbours, and other processes can unpickle its classes.

    Raises:
        UsageError: There is no such file or module, it cannot be imported, it registers nothing, or the file has
            changed since this process loaded it.
    """
    for source in sources:
        _load(source)


def _load(source: str) -> None:
    wrong = Setting("load", source)
    if not re.fullmatch(r".*\.py|\w+(\.\w+)*", source):
        raise UsageError(wrong, "is neither a Python file, whose name ends in .py, nor a module")
    file = Path(source).resolve() if source.endswith(".py") else None
    path, name = (str(file), file.stem) if file else (source, source)
    digest = _digest(wrong, file) if file else ""
    if path in _LOADED:
        if digest not in ("", _LOADED[path].sha256):
            raise UsageError(wrong, "has changed since this process loaded it; start Python again")
        return
    if file:
        _check_name(wrong, file)
    if (folder := str(file.parent if file else Path.cwd())) not in sys.path:
        sys.path.append(folder)
    imported_before, known = name in sys.modules, _registered()
    module = _imported(wrong, name)
    new = tuple(each for each in _registered() if each not in known)
    if not new and not imported_before:
        del sys.modules[name]  # so that the next attempt ends like this one
        needed = "a function below @cn.register_method, or in the lab a recipe or a task"
        raise UsageError(wrong, f"registers nothing; it needs {needed} (docs/register_a_method.md)")
    if not file and getattr(module, "__file__", None):
        digest = _digest(wrong, Path(str(module.__file__)))
    _LOADED[path] = Source(path, digest, new)


def _registered() -> list[str]:
    return [f"{kind} {name}" for kind, names in REGISTRIES.items() for name in names()]


def _digest(wrong: Setting, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); name a Python file or a module that is here"
        raise UsageError(wrong, reason) from None


def _check_name(wrong: Setting, file: Path) -> None:
    """Refuse a file that would be imported in place of another module, such as random.py, or never."""
    spec = importlib.util.find_spec(file.stem) if "." not in file.stem else None
    if "." in file.stem or (spec is not None and Path(spec.origin or "").resolve() != file):
        what = f"the module {file.stem}" if spec else "a package"
        raise UsageError(wrong, f"its name is that of {what}; give the file another name")


def _imported(wrong: Setting, name: str) -> ModuleType:
    """Import a module; what its own code raises is told with the line."""
    importlib.invalidate_caches()  # the file may be younger than what Python knows of its folder
    try:
        return importlib.import_module(name)
    except UsageError as error:  # a recipe with a value that cannot be
        raise error.after(f"{wrong.value}: ") from error
    except ModuleNotFoundError as error:
        absent = error.name in (name, name.partition(".")[0])
        advice = "install it, or name a file that ends in .py" if absent else "install what it imports"
        raise UsageError(wrong, f"{error}; {advice}") from None
    except SyntaxError as error:
        raise UsageError(wrong, f"mend line {error.lineno} of {error.filename}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise _fault(wrong, error, name) from error


def fault(error: BaseException) -> UsageError | None:
    """Return the error of what was loaded, where its code raised one while it ran; None for an error of other code."""
    for source in loaded():
        name = Path(source.path).stem if source.path.endswith(".py") else source.path
        if any(_place(name) == Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)):
            return _fault(Setting("load", source.path), error, name)
    return None


def _fault(wrong: Setting, error: BaseException, name: str) -> UsageError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _place(name) == Path(frame.filename)] or frames
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return UsageError(wrong, f"mend line {own[-1].lineno} of {own[-1].filename}: {what}")


def _place(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin or "") if spec else Path()


def used_by(words: Iterable[str]) -> list[dict[str, Any]]:
    """Return what was loaded and registers any of these, such as "method my_norm", as JSON can hold it."""
    wanted = set(words)
    kept = [(each, [name for name in each.registers if name in wanted]) for each in loaded()]
    return [{**each._asdict(), "registers": names} for each, names in kept if names]


def check(noted: object, where: Path | str) -> list[str]:
    """Compare what was noted, by `used_by`, with what there is now.

    Args:
        noted: The note.
        where: What it stands for, for the error.

    Returns:
        The files that have changed since.

    Raises:
        UsageError: Something that it registered is not registered here.
    """
    changed = []
    for note in noted if isinstance(noted, list) else []:
        if not isinstance(note, Mapping):
            continue
        registers = [str(each) for each in note.get("registers", ())]
        if lost := [each for each in registers if each not in _registered()]:
            remedy = Setting("load", note.get("path"))
            raise UsageError(f"{where}: needs the {lost[0]}, which is not known here; add ", remedy)
        for now in loaded():
            if now.sha256 != note.get("sha256") and {*now.registers} & {*registers}:
                changed.append(now.path)
    return changed
