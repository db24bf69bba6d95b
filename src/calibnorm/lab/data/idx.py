"""The idx files of MNIST and FashionMNIST, plain or gzipped, read strictly: header, sizes and length must agree."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from calibnorm.errors import UsageError

UNSIGNED_BYTES = 0x08  # the type code in an idx file's magic number
LARGEST = 1 << 26  # bytes; the largest of the files has 47 million. A tampered .gz could unpack to anything


def read(path: Path, dimensions: int, sha256: str) -> Tensor:
    """Return the array of unsigned bytes in an idx file.

    The file is two zero bytes, the type code (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the bytes. (torchvision's reader asserts where ours names the file, and checks no plain file.)

    Args:
        path: The file; one whose name ends in .gz is unpacked in memory.
        dimensions: How many the array must have: 3 for images, 1 for labels.
        sha256: That of the unpacked content, so that plain files and files that were packed again are known too.

    Raises:
        UsageError: The file cannot be read, is truncated, is not what its header says, or not the original.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if len(content) < header or content[:4] != magic:
        begin = content[:4].hex() or "nothing"
        raise UsageError(f"{path}: no idx file: begins with {begin}, not {magic.hex()}; put the original file there")
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    count = math.prod(sizes)
    if len(content) != header + count:
        said = f"its header, {' x '.join(map(str, sizes))}, says {header + count}"
        raise UsageError(f"{path}: has {len(content)} bytes where {said}; put the original file there")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UsageError(f"{path}: not the original (SHA-256 {found}, not {sha256}); put the original file there")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header, count=count).view(sizes)


def _content(path: Path) -> bytearray:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray(file.read(LARGEST))
            more = file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); put the original file there") from None
    if more:
        raise UsageError(f"{path}: more than {LARGEST} bytes; put the original file there")
    return content
