"""What a run was trained on, data.json in its folder: with other data it neither goes on nor is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.data import Contents
from calibnorm.lab.training.contents import refused
from calibnorm.lab.training.folder import CHECKPOINTS, RESULT
from calibnorm.report.files import write_json

DATA = "data.json"


def noted(folder: Path) -> Contents | None:
    """Return what a run was trained on; None where its folder does not say, as those of before do not.

    Raises:
        UsageError: Something else is in the file.
    """
    try:
        return Contents.from_dict(json.loads((folder / DATA).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        remedy = "remove it, if you know that the data are those of before"
        raise UsageError(f"{folder / DATA}: is damaged ({error}); {remedy}") from error


def check(folder: Path, now: Contents | None, *remedy: str | Setting, checkpoint: dict[str, Any] | None = None) -> None:
    """Compare the data that are there with those that a run was trained on.

    A run that has neither result nor checkpoint would begin anew, so it is not refused.

    Args:
        folder: The run's.
        now: What is there now; None where the feed does not say, which is never refused.
        *remedy: What to do where they differ, for the end of the sentence.
        checkpoint: The content of the run's newest checkpoint, which counts where the folder does not say.

    Raises:
        UsageError: They differ; the text says in what.
    """
    begun = (folder / RESULT).exists() or any((folder / CHECKPOINTS).glob("step-*.pt"))
    if now is None or not begun:
        return
    before, difference = noted(folder), ""
    with refused(folder, "says in a damaged way what it was trained on", "train it again under another name"):
        if before is None and checkpoint is not None and "data" in checkpoint:
            before = Contents.from_dict(checkpoint["data"])
        if before is not None:
            difference = now.difference(before)
    if difference:
        reason = f"is not what the run in {folder} was trained on: {difference}"
        raise UsageError(Setting("data", now.data), reason, *remedy)


def note(folder: Path, now: Contents | None, anew: bool) -> None:
    """Write what a run is trained on, where it begins anew, or where its folder does not say it yet."""
    if now is not None and (anew or not (folder / DATA).exists()):
        write_json(folder / DATA, now.to_dict())
