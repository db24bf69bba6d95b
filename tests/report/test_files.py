"""Files that are whole or as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibnorm.report.files import read_json, write_csv, write_json, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_comes_back_and_damage_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    assert read_json(path) is None
    write_json(path, {"name": "größer", "rows": [1, None]})
    assert read_json(path) == {"name": "größer", "rows": [1, None]}
    assert path.read_text(encoding="utf-8").startswith('{\n  "name": "größer",')
    for damaged in (b'{"name": ', b"[]", b"\xff"):
        path.write_bytes(damaged)
        assert read_json(path) is None


def test_csv_is_a_mapping_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.csv"
    write_csv(path, [{"norm": "bn", "accuracy": 90.5}, {"norm": "iebn:init=0,0", "accuracy": None}])
    assert path.read_bytes() == b'norm,accuracy\nbn,90.5\n"iebn:init=0,0",\n'
    write_csv(path, [], ["norm", "accuracy"])
    assert path.read_bytes() == b"norm,accuracy\n"
