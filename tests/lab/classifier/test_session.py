"""The Python of docs/own-pictures.md: its folders can be trained on, and its files deployed as it shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from calibnorm.lab import recipes
from calibnorm.lab.training import train
from lab.calling import main

PAGE = Path(__file__).parents[3] / "docs" / "own-pictures.md"


@pytest.mark.untraced
def test_the_session_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders, check, onnx, program = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    made: dict[str, object] = {}
    exec(folders, made)
    assert len([*Path("pictures").glob("*/*/*.png")]) == 15 * (24 + 12)
    cat = Path("pictures/val/cat/0.png")
    shutil.copy(cat, "pictures/train/brick/again.png")
    Path("pictures/val/brick/notes.txt").touch()
    exec(check, made)
    said, same = capsys.readouterr().out.splitlines()
    assert said.startswith("pictures/val/brick/notes.txt: no picture that can be read")
    assert same == f"{cat}: the same picture as pictures/train/brick/again.png"
    recipe = replace(recipes.recipe("folders-small"), model="resnet11", epochs=1, train_images=32, warmup_epochs=0)
    train(recipe, Path("run"), data_root=Path("pictures"), accelerator="cpu", workers=0)
    capsys.readouterr()
    assert main(["predict", "run", "pictures/val/cat/0.png", "--top", "1"]) == 0
    name, share = re.fullmatch(r"pictures/val/cat/0.png: (\S+) ([\d.]+) %\n", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    for ending in ("onnx", "pt2"):
        assert main(["export", "run", "--out", f"classifier.{ending}"]) == 0
    capsys.readouterr()
    names: dict[str, object] = {}
    exec(onnx, names)
    exec(program, names)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == second == name
    assert float(first.split()[1]) == pytest.approx(float(share) / 100, abs=0.002)
    for path in unusual(cat):
        exec(onnx.replace(str(cat), str(path)), names)
        first = capsys.readouterr().out.split()[1]
        assert main(["predict", "run", str(path), "--top", "1"]) == 0
        assert float(first) == pytest.approx(float(capsys.readouterr().out.split()[-2]) / 100, abs=0.002), path


def unusual(path: Path) -> Iterator[Path]:
    """Yield pictures of modes that a service meets."""
    picture = Image.open(path)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, made, more in (
        ("gray.png", picture.convert("L"), {}),
        ("print.jpg", picture.convert("CMYK"), {}),
        ("clear.png", clear, {}),
        ("phone.png", picture, {"exif": turned}),
    ):
        made.save(name, **more)
        yield Path(name)
