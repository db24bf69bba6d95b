"""The folder of results: written whole beside its place, then moved into it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibnorm.errors import UsageError

CONFIG = "config.json"
COMMAND = "calibnorm demo"
FILES = frozenset({CONFIG, "environment.json", "metrics.csv", "gates.csv", "curves.png", "gates.png", "report.md"})


@contextmanager
def result_folder(out: Path, quick: bool = False) -> Iterator[Path]:
    """Give an empty folder to write to; move it to ``out`` where the block ends without an exception.

    ``out`` therefore holds the earlier demo or the new one, never a mixture. A demo that is already there is replaced,
    but never a full one by a ``quick`` one; anything else is refused before the block starts.

    Raises:
        UsageError: If ``out`` holds what a demo did not write, or cannot be written.
    """
    out = out.expanduser().resolve()
    refuse_foreign(out, quick)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        new, old = staging / "new", staging / "old"
        new.mkdir()
        yield new
        # Again: minutes have passed.
        refuse_foreign(out, quick)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(staging)


def refuse_foreign(out: Path, quick: bool = False) -> None:
    """Raise UsageError unless ``out`` is missing, empty, or holds an earlier demo (a quick one for ``quick``) alone."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder")
    names = sorted(entry.name for entry in out.iterdir())
    if foreign := [name for name in names if name not in FILES]:
        raise UsageError(f"--out {out}: holds {foreign[0]}, which no demo wrote; choose another folder")
    if not names:
        return
    config = demo_config(out)
    if config is None:
        raise UsageError(f"--out {out}: was not written by `{COMMAND}`; choose another folder")
    if quick and not config.get("quick"):
        raise UsageError(f"--out {out}: holds a full demo, which --quick would replace; choose another folder")


def demo_config(folder: Path) -> dict[str, Any] | None:
    """Return the folder's config.json where it is that of a demo."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("command") == COMMAND else None
