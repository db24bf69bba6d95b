"""Checkpoints that are whole or absent, and that know when a byte of them has changed.

The digest of the content is in the file's name, so that one rename publishes both: torch.load alone accepts most files in
which a bit has flipped.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KEPT = 2
"""The newest one, and the one before it, for the case that the newest is found damaged."""
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{32})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made when the first is saved.
        warn: Called with a sentence for every damaged file that is passed over.
    """

    folder: Path
    warn: Callable[[str], object]

    def save(self, content: dict[str, Any], step: int) -> Path:
        """Write a checkpoint, then remove all but the newest two."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        path = self.folder / f"step-{step:09d}-{digest(data)}.pt"
        write_whole(path, data)
        for old in self.paths()[:-KEPT]:
            old.unlink()
        return path

    def load(self) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that is whole; None where there is none."""
        for path in reversed(self.paths()):
            data = path.read_bytes()
            match = _NAME.fullmatch(path.name)
            if match is not None and digest(data) == match[2]:
                content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return content
            self.warn(f"{path.name} is damaged (its content is not what was written); going on from the one before")
        return None

    def paths(self) -> list[Path]:
        """Return the checkpoints, the newest last."""
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def digest(data: bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its old content is there or its new one, and nothing between.

    Beside its place, to the disk, then renamed; the rename, too, to the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
