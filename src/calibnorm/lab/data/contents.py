"""What a set holds: its classes, the images of each, what was left out; and how two of these differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from calibnorm.lab.data.image_set import ImageSet, Split
from calibnorm.lab.data.sets import class_names, info

SHOWN = 3
"""Differences that an error names; it counts the rest."""


def digest(parts: Iterable[bytes]) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of bytes that come in parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:32]


@dataclass(frozen=True)
class Part:
    """What training reads, or what the test reads.

    Args:
        images: How many there are of each class, in the order of the labels.
        digests: Of each class: for a folder of its pictures' paths and sizes, for a set in memory of their pixels.
        left_out: By reason, how many files of a folder are not read, and the path of the first of them.
    """

    images: dict[str, int]
    digests: dict[str, str]
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def in_words(self) -> str:
        """Return how many images there are, and how many of each class.

        >>> Part({"cat": 3, "dog": 5}, {}).in_words()
        '8 (3 to 5 a class)'
        """
        low, high = min(self.images.values()), max(self.images.values())
        return f"{sum(self.images.values())} ({low if low == high else f'{low} to {high}'} a class)"

    def left_out_in_words(self) -> str:
        """Return what is not read and why; nothing where everything is.

        >>> Part({}, {}, {"hidden": (2, ".cache")}).left_out_in_words()
        '2 hidden (such as .cache)'
        """
        return ", ".join(f"{count} {reason} (such as {first})" for reason, (count, first) in self.left_out.items())


@dataclass(frozen=True)
class Contents:
    """What a set holds, as a run keeps it in its folder, in data.json, and in its checkpoints.

    Two folder sets are the same where classes, paths and sizes are. A copy on another disk is the same set, so times do
    not count. The pixels do not count either, as reading all of them at each start would take as long as an epoch: a
    picture that is replaced by one of exactly as many bytes is not noticed. Files that are left out do not count.

    Args:
        data: The set's name.
        classes: The names of the classes: that with number k is the network's output k.
        train: What a network learns from.
        test: What it is measured on.
    """

    data: str
    classes: tuple[str, ...]
    train: Part
    test: Part

    def to_dict(self) -> dict[str, Any]:
        """Return what data.json holds."""
        return asdict(self) | {"classes": list(self.classes)}

    @staticmethod
    def from_dict(content: Any) -> Contents:
        """Return what `to_dict` gave; raise ValueError for something else."""
        try:
            train, test = (
                Part(**{**content[name], "images": dict(content[name]["images"])}) for name in ("train", "test")
            )
            kind, more = Contents, {}
            for other in Contents.__subclasses__():  # known by the fields that it has besides
                names = {field.name for field in fields(other)} - {field.name for field in fields(Contents)}
                if names <= content.keys():
                    kind, more = other, {name: tuple(content[name]) for name in names}
            return kind(content["data"], tuple(content["classes"]), train, test, **more)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no contents of a set ({type(error).__name__}: {error})") from error

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each output of a network that learns the set stands for."""
        return self.classes

    def of_outputs(self) -> dict[str, list[str]]:
        """Return what a file of weights says of the network's outputs."""
        return {"classes": list(self.classes)}

    def in_words(self) -> list[str]:
        """Return sentences on what is read, and on what is not."""
        what = f"{self.data}: {len(self.classes)} classes, training images {self.train.in_words()}"
        left_out = [(name, part.left_out_in_words()) for name, part in (("training", self.train), ("test", self.test))]
        return [
            f"{what}, test images {self.test.in_words()}",
            *(f"{self.data}: left out of {name}: {text}" for name, text in left_out if text),
        ]

    def news(self) -> list[str]:
        """Return what a run says first: of a folder of pictures, whose contents nobody else knows."""
        return self.in_words() if info(self.data).folder else []

    def difference(self, before: Contents) -> str:
        """Return in words how this set differs from one of before; nothing where it is the same."""
        texts = [f"class {name!r} is gone" for name in before.classes if name not in self.classes]
        texts += [f"class {name!r} is new" for name in self.classes if name not in before.classes]
        if not texts and self.classes != before.classes:
            texts = ["the classes have another order"]
        if not texts:
            texts = [*_changes("training", before.train, self.train), *_changes("test", before.test, self.test)]
        more = f", and {len(texts) - SHOWN} more such" if len(texts) > SHOWN else ""
        return ", ".join(texts[:SHOWN]) + more


def _changes(part: str, before: Part, now: Part) -> Iterator[str]:
    for name, count in now.images.items():
        if count != before.images.get(name, 0):
            yield f"class {name!r} had {before.images.get(name, 0)} {part} images and has {count}"
        elif now.digests[name] != before.digests.get(name):
            yield f"class {name!r} has other {part} images, by name, size or pixels"


def of_images(images: ImageSet, others: ImageSet | None = None) -> Contents:
    """Return what a set in memory holds.

    Args:
        images: The set.
        others: A set that is mixed in: its classes come after those of the first one, with its name before theirs.
    """
    names = class_names(images.name, images.classes)
    train, test = _part(images.train, names), _part(images.test, names)
    if others is not None:
        more = tuple(f"{others.name} {name}" for name in class_names(others.name, others.classes))
        mixed = _part(others.train, more)
        train = Part(train.images | mixed.images, train.digests | mixed.digests)
        names += more
    return Contents(images.name, names, train, test)


def _part(split: Split, names: Sequence[str]) -> Part:
    of_class = [split.images[split.labels == label] for label in range(len(names))]
    return Part(
        dict(zip(names, map(len, of_class), strict=True)),
        {name: digest([images.numpy().tobytes()]) for name, images in zip(names, of_class, strict=True)},
    )
