"""Checkpoints that are whole or absent, and that know when a byte of them has changed.

The digest of the content is in the file's name, so that one rename publishes both: torch.load alone accepts most files
in which a bit has flipped.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibnorm.lab.training.contents import Part, read
from calibnorm.report.files import write_whole

KEPT = 2
"""The newest one, and the one before it, for the case that the newest is found damaged."""
REMEDY = "remove it, and the same command goes on from the one before it, or from the beginning"
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
        """Write a checkpoint, in place of one of the same step, then remove all but the newest two.

        Raises:
            OSError: The disk is full, or the like; the checkpoints of before are whole.
        """
        data = dumped(content)
        path = self.folder / f"step-{step:09d}-{digest(data)}.pt"
        write_whole(path, data)
        others = [old for old in self.paths() if old != path]
        # One of the same step: at an epoch's last step, it has the epoch's test still before it.
        same = [old for old in others if old.name.startswith(f"step-{step:09d}-")]
        for old in [*same, *[old for old in others if old not in same][: 1 - KEPT]]:
            old.unlink()
        return path

    def load(self, parts: Mapping[str, Part] | None = None) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that is whole, the last of `paths`; None where there is none.

        Damaged ones are put aside under another name.

        Args:
            parts: What has to be in it, such as `contents.CHECKPOINT`.

        Raises:
            UsageError: A file holds something else, such as code.
        """
        paths = self.paths()
        while paths:
            path = paths.pop()
            data = path.read_bytes()
            match = _NAME.fullmatch(path.name)
            if match is not None and digest(data) == match[2]:
                return read(path, data, parts or {}, REMEDY)
            path.rename(path.with_name(f"{path.name}.damaged"))
            remedy = "going on from the one before" if paths else "there is none before it: starting from the beginning"
            self.warn(f"{path.name} is damaged (its content is not what was written); {remedy}")
        return None

    def paths(self) -> list[Path]:
        """Return the checkpoints, the newest last."""
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def dumped(content: dict[str, Any]) -> bytes:
    """Return the bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def clear(folder: Path) -> None:
    """Remove what a killed process left half written. Only for the process that owns the folder."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)
