"""The idx files of MNIST and FashionMNIST, plain or gzipped, read strictly: header, sizes and length must agree."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from calibnorm.lab.errors import UsageError

UNSIGNED_BYTES = 0x08  # the type code in an idx file's magic number


def read(path: Path, dimensions: int) -> Tensor:
    """Return the array of unsigned bytes in an idx file.

    The file is two zero bytes, the type code (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the bytes. torchvision's reader takes a file that is too long or of another rank.

    Args:
        path: The file; one whose name ends in .gz is unpacked in memory.
        dimensions: How many the array must have: 3 for images, 1 for labels.

    Returns:
        uint8, in the shape that the header gives.

    Raises:
        UsageError: The file cannot be read, is truncated, or is not what its header says.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if len(content) < header or content[:4] != magic:
        raise UsageError(
            f"{path}: no idx file of {dimensions}-dimensional bytes (it begins with {content[:4].hex() or 'nothing'}, "
            f"not {magic.hex()}); put the original file there"
        )
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header
    count = 1
    for size in sizes:
        count *= size
    expected += count
    if len(content) != expected:
        raise UsageError(
            f"{path}: holds {len(content)} bytes where its header {tuple(sizes)} says {expected}; put the original "
            "file there"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header, count=count).view(sizes)


def _content(path: Path) -> bytes:
    try:
        stored = path.read_bytes()
        return gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); put the original file there") from None
