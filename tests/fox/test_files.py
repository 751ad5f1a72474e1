"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from fox.files import read_json, whole_file, write_csv, write_json


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1})
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError), whole_file(folder) as temporary:
        temporary.write_text("this cannot take the place of a folder")
    assert read_json(path) == {"loss": 1}
    assert set(tmp_path.iterdir()) == {path, folder}


def test_json_refuses_what_other_readers_reject(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON in .*a\.json"):
        read_json(tmp_path / "a.json")


def test_csv_has_one_line_per_row_under_the_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "a.csv", [{"length": 1, "loss": 0.5}, {"length": 2, "loss": None}])
    assert (tmp_path / "new" / "a.csv").read_text().split() == ["length,loss", "1,0.5", "2,"]
