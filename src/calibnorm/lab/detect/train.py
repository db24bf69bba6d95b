"""`calibnorm detect train`: `calibnorm train` of a recipe of detection."""

from __future__ import annotations

from collections.abc import Sequence

from calibnorm.errors import UsageError
from calibnorm.lab.arguments import typed
from calibnorm.lab.data.coco.folder import MINI
from calibnorm.lab.recipes import Boxes, recipe
from calibnorm.lab.training.command import begin

TASKS = ("box", "mask", "panoptic")


def run(words: Sequence[str], text: str) -> int:
    """Train what words stand for, the first of which may be a recipe; return the exit status.

    Args:
        words: What follows the command's name.
        text: What its help says.

    Raises:
        UsageError: The input cannot be used.
        RunFailed: The run cannot go on.
        Stopped: SIGINT or SIGTERM came.
    """
    first = words[:1] if words and not words[0].startswith("-") else []
    task, rest = taken("--task", words[len(first) :])
    if first and task:
        raise UsageError(f"--task {task}: is said by the recipe, {first[0]}; leave one of them out")
    if task is not None and task not in TASKS:
        raise UsageError(f"--task {task}: must be {' or '.join(TASKS)}")
    data = typed("--data", rest)[1:] or [MINI]
    name = first[0] if first else f"{task or TASKS[0]}-{'mini' if data == [MINI] else 'x1'}"
    if not isinstance(recipe(name), Boxes):
        kinds = "box-mini, mask-mini or panoptic-mini"
        raise UsageError(f"detect train {name}: is no recipe of detection; try {kinds}, or calibnorm train {name}")
    return begin(name, rest, f"calibnorm detect train{f' {name}' if first else ''}", text)


def taken(option: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return an option's value, None where it is not there, and the other words.

    Raises:
        UsageError: It has no value.

    >>> taken("--task", ["--seed", "1", "--task", "mask"]), taken("--task", ["--task=box"]), taken("--task", [])
    (('mask', ['--seed', '1']), ('box', []), (None, []))
    """
    value, rest, left = None, list[str](), iter(words)
    for word in left:
        name, equals, after = word.partition("=")
        if name != option:
            rest.append(word)
        elif (value := after if equals else next(left, "")) == "" or value.startswith("-"):
            raise UsageError(f"{option}: a value is missing; must be {' or '.join(TASKS)}")
    return value, rest
