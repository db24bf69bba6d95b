"""What a process writes to its standard streams, also below Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_to(path: Path, streams: Sequence[int] = (1, 2)) -> Iterator[None]:
    """Append to a file what is written in a block to streams, by number: standard output is 1, standard error 2."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in streams}
    with path.open("ab") as file:
        for number in streams:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, handle in kept.items():
                os.dup2(handle, number)
                os.close(handle)


def nobody_listens() -> None:
    """Drop what is printed from now on, after the reader of standard output has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
