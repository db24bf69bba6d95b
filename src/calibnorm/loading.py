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
    is_file = source.endswith(".py")
    if not is_file and not re.fullmatch(r"\w+(\.\w+)*", source):
        raise UsageError(Setting("load", source), "is neither a Python file, whose name ends in .py, nor a module")
    path = str(Path(source).resolve()) if is_file else source
    name, folder = (Path(path).stem, str(Path(path).parent)) if is_file else (source, str(Path.cwd()))
    digest = _digest(source, Path(path)) if is_file else ""
    if path in _LOADED:
        if is_file and _LOADED[path].sha256 != digest:
            raise UsageError(Setting("load", source), "has changed since this process loaded it; start Python again")
        return
    if folder not in sys.path:
        sys.path.append(folder)
    known, before = sys.modules.get(name), _registered()
    module = _imported(source, name, Path(path) if is_file else None)
    new = tuple(each for each in _registered() if each not in before)
    if not new and known is None:
        reason = f"registers nothing; it needs {_REMEDY} (docs/register_a_method.md)"
        raise UsageError(Setting("load", source), reason)
    if not is_file and getattr(module, "__file__", None):
        digest = _digest(source, Path(str(module.__file__)))
    _LOADED[path] = Source(path, digest, new)


_REMEDY = "a function below @cn.register_method, or in the lab a recipe or a task"


def _registered() -> list[str]:
    return [f"{kind} {name}" for kind, names in REGISTRIES.items() for name in names()]


def _digest(source: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); name a Python file or a module that is here"
        raise UsageError(Setting("load", source), reason) from None


def _imported(source: str, name: str, path: Path | None) -> ModuleType:
    """Import a module, from a file where one is given; what its own code raises is told with the line."""
    wrong = Setting("load", source)
    there = sys.modules.get(name) if path else None
    if there is not None and Path(str(getattr(there, "__file__", None))).resolve() == path:
        return there
    if path and (there is not None or name in sys.stdlib_module_names):
        raise UsageError(wrong, f"has the name of another module, {name}; give the file another name")
    try:
        if path is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UsageError as error:  # a recipe with a value that cannot be
        raise error.after(f"{source}: ") from error
    except (Exception, SystemExit) as error:
        raise UsageError(wrong, _reason(error, name, path)) from error


def _reason(error: Exception, name: str, path: Path | None) -> str:
    """Return what went wrong, where, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        ours = path is None and error.name in (name, name.partition(".")[0])
        return f"{error}; {'install it, or name a file that ends in .py' if ours else 'install what it imports'}"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}; mend the file {error.filename}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = [frame for frame in frames if path is None or Path(frame.filename).resolve() == path] or frames
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{where}{type(error).__name__}: {error}; mend the file"


def used_by(words: Iterable[str]) -> list[dict[str, Any]]:
    """Return what was loaded and registers any of these, such as "method my_norm", as JSON can hold it."""
    wanted = set(words)
    return [{**each._asdict(), "registers": list(each.registers)} for each in loaded() if wanted & {*each.registers}]


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
