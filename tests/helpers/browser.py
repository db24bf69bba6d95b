"""What a person would see of a page: headless Chromium opens it, and a script says what is where."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WITHOUT = "no Chromium here; on Debian: apt-get install chromium"

LOOK = Path(__file__).with_suffix(".js")
"""Runs beside a page in a frame, and leaves what it saw as JSON."""
REFUSED = "<script>refused=[];addEventListener('securitypolicyviolation',e=>refused.push(e.blockedURI))</script>"


@dataclass
class Seen:
    """A page as it was seen; the fields are those of browser.js."""

    found: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.found[name]

    def table(self, *heads: str) -> list[dict[str, str]]:
        """Return the rows of the first table that has these columns; those that name a group are left out."""
        for head, *rows in self.tables:
            if set(heads) <= set(head):
                return [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
        raise AssertionError(f"no table has the columns {heads}")

    def least(self, kind: str) -> float:
        return min((ratio for of, _, ratio in self.contrasts if of == kind), default=21.0)


def seen(page: Path, folder: Path, width: int = 1200, dark: bool = False) -> Seen:
    """Return what Chromium shows of a page that is one file, in a window of a width."""
    source = page.read_text(encoding="utf-8").replace("<head>", f"<head>{REFUSED}", 1)
    (found,) = looked_at([f'srcdoc="{html.escape(source)}"'], folder / f"{page.stem}-{width}-{dark}.html", width, dark)
    return found


def looked_at(frames: list[str], around: Path, width: int, dark: bool, further: str = "") -> list[Seen]:
    """Return what Chromium shows of pages, each in a frame of a page that is written around them.

    Args:
        frames: What says where a frame's page is: ``src="..."`` of a file, or ``srcdoc="..."``.
        around: The page with the frames, which is written.
        width: Of each frame, in pixels.
        dark: Whether the system asks for dark pages.
        further: A script that may define ``further``, what else is to be looked for on a page.
    """
    assert CHROMIUM is not None
    shown = "".join(f'<iframe {frame} style="border:0;width:{width}px;height:900px"></iframe>' for frame in frames)
    scheme = '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    scripts = f"<script>{further}</script><script>{LOOK.read_text(encoding='utf-8')}</script>"
    around.write_text(f"<!DOCTYPE html>{scheme}<body>{shown}{scripts}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--virtual-time-budget=5000"]
    options += [
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={around.parent / 'profile'}",
    ]
    options += ["--allow-file-access-from-files"]  # a page in a frame may be a file of its own
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=300
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return [Seen(found) for found in json.loads(html.unescape(match[1]))]
