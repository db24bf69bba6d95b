"""The batch noise on a page: of trained networks by layer and batch size, and of runs over their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab.experiments import noise
from calibnorm.lab.experiments.grid import Run
from calibnorm.lab.recipes import recipe
from calibnorm.report.document import Bullets, Paragraph, Picture, Section, Table
from calibnorm.report.pictures import Drawing

HEAD = "step,layer,depth,batch_size,own,own_low,own_high,accumulated,accumulated_low,accumulated_high\n"


def drawing(section: Section) -> Drawing:
    (picture,) = [block for block in section.blocks if isinstance(block, Picture)]
    return picture.draw()


def said(of: Drawing) -> list[str]:
    return [
        dot.says for _, panels in of.columns for panel in panels if panel for dots in panel.dots() for dot in dots.at
    ]


def table(section: Section) -> Table:
    (found,) = [block for block in section.blocks if isinstance(block, Table)]
    return found


def run(folder: Path, seed: int, *steps: tuple[int, float]) -> Run:
    """A run with readings of two layers, whose noise is a number and twice that, and of the loss, half of it."""
    folder.mkdir()
    lines = "".join(
        f"{step},a,1,8,{own},0,1,{own},0,1\n"
        f"{step},b,2,8,{2 * own},0,1,{4 * own},0,1\n"
        f"{step},(loss),0,8,,,,{own / 2},0,1\n"
        for step, own in steps
    )
    (folder / "noise.csv").write_text(HEAD + lines, encoding="utf-8")
    return Run(replace(recipe("digits-tiny"), seed=seed), folder)


def test_over_training_lines_are_means_over_layers_and_seeds(tmp_path: Path) -> None:
    first = run(tmp_path / "0", 0, (5, 0.01), (10, 0.02))
    second = run(tmp_path / "1", 1, (5, 0.03), (10, 0.04))
    picture, parts = noise.over_training([("clean", "bn", first), ("clean", "bn", second)])
    ((title, panels),) = drawing(picture).columns
    assert title == "clean"
    labels = [panel.y.label for panel in panels if panel]
    assert labels == [f"share of the variance: {of}" for of in (*noise.KINDS.values(), "of the loss")]
    # At step 5 the layers have 0.01 and 0.02, and 0.03 and 0.06 in the other seed.
    assert "bn, step 5: 0.03 (0.015 to 0.045)" in said(drawing(picture))
    assert "bn, step 10: 0.015 (0.01 to 0.02)" in said(drawing(picture))
    found = table(parts)
    assert found.columns[-4:] == ["own, first quarter", "own, last quarter"] + [
        f"accumulated, {part} quarter" for part in ("first", "last")
    ]
    assert found.rows[1] == ["clean", "bn", "0", "b", "8", "0.02", "0.04", "0.04", "0.08"]
    assert found.rows[-1] == ["clean", "bn", "1", "(loss)", "8", "", "", "0.015", "0.02"]


def test_a_quarter_is_of_all_readings(tmp_path: Path) -> None:
    of = run(tmp_path / "0", 0, *((step, step / 1000) for step in range(1, 10)))  # nine: a quarter is three
    _, parts = noise.over_training([("clean", "bn", of)])
    assert table(parts).rows[0][-4:-2] == ["0.002", "0.008"]


def test_without_readings_there_is_nothing_and_damage_is_named(tmp_path: Path) -> None:
    none = Run(recipe("digits-tiny"), tmp_path / "none")
    picture, parts = noise.over_training([("clean", "iebn", none)])
    assert picture.blocks == []
    assert table(parts).rows == []
    for wrong in (f"{HEAD}5,a,1,8,x,0,1,0,0,1\n", f"{HEAD}5,a,1\n", "step\n5\n"):
        run(folder := tmp_path / str(len(wrong)), 0)
        (folder / "noise.csv").write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match=r"noise\.csv: is damaged; remove it"):
            noise.over_training([("clean", "iebn", Run(recipe("digits-tiny"), folder))])


def rows(condition: str, norm: str) -> list[dict[str, Any]]:
    """What `read` returns: two layers and the loss, in batches of 4 and of 16."""
    found: list[dict[str, Any]] = []
    for size, own in ((4, 0.04), (16, 0.01)):
        for depth, layer in enumerate(("(loss)", "a", "b")):
            each = {
                f"{kind}{end}": own * factor if layer != "(loss)" or kind == "accumulated" else None
                for kind, factor in (("own", 1), ("accumulated", 2))
                for end in ("", "_low", "_high")
            }
            where = {"condition": condition, "norm": norm, "layer": layer, "depth": depth, "batch_size": size}
            found.append(where | each)
    return found


def test_a_network_s_noise_by_layer_and_by_batch_size() -> None:
    picture, loss, numbers = noise.sections(rows("clean", "iebn"), "One network.")
    of = drawing(picture)
    assert [title for title, _ in of.columns] == list(noise.KINDS.values())
    assert list(of.legend) == ["batches of 4", "batches of 16"]
    assert "batches of 16, norm layer 2: 0.02" in said(of)
    assert isinstance(loss.blocks[0], Bullets)
    (sentence,) = loss.blocks[0].items
    assert sentence.endswith("the other images make 8 % in batches of 4 (8 to 8); 2 % in batches of 16 (2 to 2).")
    assert len(table(numbers).rows) == 6


def test_networks_side_by_side_have_a_panel_for_every_batch_size() -> None:
    both = [*rows("clean", "bn"), *rows("noise 0.8,0.5", "bn"), *rows("clean", "rbn")]
    picture, loss, _ = noise.sections(both, "Two networks.")
    of = drawing(picture)
    assert [title for title, _ in of.columns] == ["clean", "noise 0.8,0.5"]
    assert [panel.y.label for panel in of.columns[0][1] if panel] == [
        f"share of the variance: batches of {size}" for size in (4, 16)
    ]
    assert list(of.legend) == ["bn", "rbn"]
    assert "rbn, norm layer 1: 0.08" in said(of)
    assert isinstance(picture.blocks[0], Paragraph)
    assert "all layers so far" in picture.blocks[0].text
    assert isinstance(loss.blocks[0], Bullets)
    assert len(loss.blocks[0].items) == 3


@pytest.mark.parametrize(
    ("norm", "batch"), [(nn.BatchNorm1d(3), {"pixels": torch.zeros(4, 3)}), (nn.Identity(), torch.zeros(4, 3))]
)
def test_networks_that_the_meter_cannot_look_at_have_no_noise(norm: nn.Module, batch: Any) -> None:
    of: Any = SimpleNamespace(network=nn.Sequential(norm).eval(), feeds=SimpleNamespace(test=[batch]))
    assert noise.read(of, "clean", "bn") == []
    assert not of.network.training
    for section in noise.sections([], "None."):
        assert not any(isinstance(block, Picture) for block in section.blocks)
