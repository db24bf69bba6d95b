"""Files that are whole: their old content or their new one, whatever happens in between."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibnorm.errors import Setting, UsageError


def refuse_file(name: str, folder: Path) -> None:
    """Raise UsageError for a setting that names no folder, because it or a folder above it is a file: that is named."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(Setting(name, place), "is a file; name a folder")


def refuse_folder(name: str, file: Path, example: str) -> None:
    """Raise UsageError for a setting that names no file, because it is a folder or a folder above it is a file."""
    if file.is_dir():
        raise UsageError(Setting(name, file), f"is a folder; name a file, such as {file / example}")
    refuse_file(name, file.parent)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raise UsageError, which names the setting ``out``, where the system refuses what is written inside."""
    try:
        yield
    except OSError as error:
        raise UsageError(Setting("out", out), f"cannot be written ({error.strerror})") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its old content is there or its new one, and nothing between.

    Beside its place, to the disk, then renamed; the rename, too, to the disk. Its folder is made where it is missing.

    Raises:
        OSError: The disk is full, or the like.
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole, that is good to read and to compare."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping that a JSON file holds; None where there is no such file, or something else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file as mappings; none where there is no such file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV file, whole, a mapping a line; None is an empty field.

    Args:
        path: The file.
        rows: With the same keys.
        columns: The keys; those of the first row where none are given.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def png(picture: Tensor) -> bytes:
    """Return a picture as the bytes of a PNG file.

    Args:
        picture: (C, H, W) in uint8: red, green and blue, or gray alone.

    >>> png(torch.zeros(3, 2, 2, dtype=torch.uint8))[1:4]
    b'PNG'
    """
    channels, high, wide = picture.shape
    filtered = torch.cat([torch.zeros(high, 1, dtype=torch.uint8), picture.cpu().permute(1, 2, 0).flatten(1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 0 if channels == 1 else 2, 0, 0, 0))
    pixels = zlib.compress(filtered.numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
