"""How a bench's process starts: the allocator pinned, and a parser for machines without the lab extra."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from calibnorm.errors import UsageError
from calibnorm.lab.bench.config import LayerConfig, ModelConfig

# A fresh output costs page faults that hide everything else, for all implementations alike; these keep freed memory in
# the process. glibc reads them when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
BENCHES: dict[str, type[LayerConfig] | type[ModelConfig]] = {"layer": LayerConfig, "model": ModelConfig}


def pin_allocator() -> None:
    """Run this very command again with the allocator pinned, unless it is, or the system is not Linux."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def main(args: Sequence[str]) -> int:
    """Run a bench from the arguments of ``python -m calibnorm.lab.bench``.

    Returns:
        The exit status: 0; 1 for wrong values; 2 for input that cannot be used, which the message names; 130 after
        Ctrl-C.
    """
    try:
        config = parse(args)
        pin_allocator()
        from calibnorm.lab.bench.run import run

        return run(config)
    except UsageError as error:
        print(f"calibnorm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncalibnorm: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, where argparse puts the usage before it."""
        raise UsageError(f"{message} ({self.prog} --help)")


def parse(args: Sequence[str]) -> LayerConfig | ModelConfig:
    """Return the settings: the options of `calibnorm bench`, without tyro."""
    parser = _Parser("python -m calibnorm.lab.bench", allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, config in BENCHES.items():
        description = inspect.getdoc(config) or ""
        bench = benches.add_parser(name, help=description.splitlines()[0], description=description, allow_abbrev=False)
        texts = attribute_docstrings(config)
        for field in fields(config):
            kinds: dict[str, dict[str, Any]] = {
                "int": {"type": int},
                "int | None": {"type": int},
                "str": {"type": str},
                "Path": {"type": Path},
                "tuple[str, ...]": {"nargs": "+"},
            }
            option = f"--{field.name.replace('_', '-')}"
            default = f" (default: {field.default})" if field.default not in ((), None) else ""
            text = (texts[field.name] + default).replace("%", "%%")
            bench.add_argument(option, default=field.default, help=text, **kinds[str(field.type)])
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(args)).items()
    }
    return BENCHES[values.pop("bench")](**values)


def attribute_docstrings(config: type) -> dict[str, str]:
    """Return the string below each field of a class, which tyro shows as help too."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found
