"""A run's folder: its settings, who may be at it, and what is told where it is another's."""

import pytest

from fox.agents.claim import claimed, read_config
from fox.files import read_json, write_json

SETTINGS = {"run": {"folder": "runs/a", "seed": 3}, "size": 8}
FREE = {"run.folder"}


def test_a_folder_is_made_and_keeps_the_settings_with_what_was_given_anew(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claimed(folder, SETTINGS, FREE):
        assert read_json(folder / "config.json") == SETTINGS
    moved = SETTINGS | {"run": {"folder": "runs/b", "seed": 3}}
    with claimed(folder, moved, FREE):
        assert read_json(folder / "config.json") == moved


def test_a_folder_of_another_run_is_refused_and_kept(tmp_path):
    with claimed(tmp_path, SETTINGS, FREE):
        pass
    with (
        pytest.raises(ValueError, match=r"holds a run with run.seed = 3, but got 4: choose"),
        claimed(tmp_path, {"run": {"seed": 4}}, FREE),
    ):
        pass
    assert read_json(tmp_path / "config.json") == SETTINGS
    with claimed(tmp_path, SETTINGS, FREE):  # the refused one has let go of it
        pass


def test_a_folder_where_another_process_is_at_work_is_left_alone(tmp_path):
    with claimed(tmp_path, SETTINGS, FREE):
        moved = SETTINGS | {"run": {"folder": "runs/b", "seed": 3}}
        with (
            pytest.raises(ValueError, match=r"another process is at the run in .*: stop it"),
            claimed(tmp_path, moved, FREE),
        ):
            pass
        assert read_json(tmp_path / "config.json") == SETTINGS


def test_a_config_is_made_of_the_settings_in_a_folder(tmp_path):
    write_json(tmp_path / "config.json", SETTINGS)
    assert read_config(tmp_path, "fox-x", lambda values: values["size"]) == 8


def test_a_folder_of_another_program_is_told(tmp_path):
    write_json(tmp_path / "config.json", SETTINGS)
    for of in (lambda values: values["width"], lambda values: Exception(**values)):
        with pytest.raises(ValueError, match=r"expected a run of fox-x train in .*another program"):
            read_config(tmp_path, "fox-x", of)
