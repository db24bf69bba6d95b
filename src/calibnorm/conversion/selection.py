"""Which BatchNorms of a network are meant: by name pattern, by predicate, by stage, without the shortcut branch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from calibnorm import _checks
from calibnorm.networks.finding import Found

Patterns = str | Sequence[str] | None
Predicate = Callable[[str, nn.Module], bool]

# Names that torchvision, timm and the usual CIFAR networks give to stages; the second kind counts from 0.
_FROM_ONE = re.compile(r"(?:^|\.)(?:layer|stage_?|denseblock|block|s)(\d+)(?=\.|$)")
_FROM_ZERO = re.compile(r"(?:^|\.)(?:stages|blocks|layers)\.(\d+)(?=\.|$)")
_SHORTCUTS = {"downsample", "shortcut", "skip"}


def select(
    model: nn.Module,
    found: Sequence[Found],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    where: Predicate | None = None,
    stages: int | Sequence[int] | None = None,
    skip: str | None = None,
) -> dict[str, str]:
    """Return the names that are left out, each with the reason; :func:`calibnorm.convert` describes the choices."""
    _checks.choice("skip", skip, (None, "shortcut"))  # type: ignore[arg-type]
    if where is not None and not callable(where):
        raise TypeError(f"where={where!r} must be a function of (name, module)")
    every = [name for entry in found for name in entry.names]
    included, excluded = _patterns("include", include, every), _patterns("exclude", exclude, every)
    wanted = _stages(stages, [entry.name for entry in found])
    left: dict[str, str] = {}
    for name, module, _, names in found:
        if included and not _matches(names, included):
            left[name] = "not in include"
        elif _matches(names, excluded):
            left[name] = "in exclude"
        elif wanted is not None and stage_of(name) not in wanted:
            left[name] = "in another stage" if stage_of(name) is not None else "in no stage"
        elif skip is not None and in_shortcut(model, name):
            left[name] = "in a shortcut"
        elif where is not None and not where(name, module):
            left[name] = "where(name, module) is False"
    if skip is not None and found and not any(in_shortcut(model, entry.name) for entry in found):
        warnings.warn(
            f"skip='shortcut' found no normalization in a branch named {', '.join(sorted(_SHORTCUTS))}; "
            "if the network has shortcuts of another name, leave them out with exclude=",
            stacklevel=4,
        )
    return left


def picked(choices: Mapping[str, object]) -> bool:
    """Whether the layers were named one by one."""
    return choices["include"] is not None or choices["where"] is not None


def stage_of(name: str) -> int | None:
    """Return the number of the stage, from 1, that a dotted name lies in.

    >>> stage_of("backbone.layer3.0.bn1"), stage_of("stages.0.blocks.1.norm"), stage_of("bn1")
    (3, 1, None)
    """
    matches = [
        (m.start(), int(m[1]) + offset) for p, offset in ((_FROM_ONE, 0), (_FROM_ZERO, 1)) if (m := p.search(name))
    ]
    return min(matches)[1] if matches else None


def in_shortcut(model: nn.Module, name: str) -> bool:
    """Whether a dotted name lies in the shortcut branch of a residual block."""
    path = name.split(".")
    if _SHORTCUTS & set(path):
        return True
    # torchvision's RegNet calls the shortcut "proj", a word that others use for other things
    return any(
        part == "proj" and type(model.get_submodule(".".join(path[:i]))).__name__ == "ResBottleneckBlock"
        for i, part in enumerate(path)
    )


def _patterns(argument: str, patterns: Patterns, names: Sequence[str]) -> tuple[str, ...]:
    if patterns is not None and not isinstance(patterns, Iterable):
        raise TypeError(f"{argument}={patterns!r} must be a name pattern such as 'layer1.*', or several")
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}={pattern!r} must be a name pattern such as 'layer1.*'")
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join([*names[:4], *(["..."] if len(names) > 4 else [])]) or "none"
            below = f"{pattern.rstrip('.')}.*"
            hint = f"for all below it write {below!r}" if _matches(names, [below]) else f"there are {some}"
            raise ValueError(f"{argument}={pattern!r} matches no normalization of the network; {hint}")
    return patterns


def _matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _stages(stages: int | Sequence[int] | None, names: Iterable[str]) -> set[int] | None:
    if stages is None:
        return None
    wanted = set(stages) if isinstance(stages, Iterable) else {stages}
    if not all(isinstance(stage, int) and not isinstance(stage, bool) for stage in wanted):
        raise TypeError(f"stages={stages!r} must be a number or numbers, such as stages=4 or stages=(1, 2)")
    known = {stage for name in names if (stage := stage_of(name)) is not None}
    if not wanted <= known:
        raise ValueError(
            f"stages={stages!r}: the network's stages are {sorted(known) or 'not recognized by name'}; "
            "name the layers with include= instead, such as include='layer1.*'"
        )
    return wanted
