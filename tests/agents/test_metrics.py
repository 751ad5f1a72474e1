"""Metrics on disk: what was written is read, and a run that goes on appends."""

import pytest

from fox.agents.metrics import read_table, table

COLUMNS = ("tick", "loss")


def test_rows_are_on_disk_at_once_and_read_as_numbers(tmp_path):
    path = tmp_path / "metrics.csv"
    with table(path, COLUMNS) as write:
        write({"tick": 1})
        write({"tick": 2, "loss": 0.1})
        assert read_table(path) == [{"tick": 1.0, "loss": None}, {"tick": 2.0, "loss": 0.1}]


def test_a_table_goes_on_without_the_row_that_a_kill_has_torn(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("tick,loss\n1,0.5\n2,0.")
    with table(path, COLUMNS) as write:
        write({"tick": 2, "loss": 0.25})
    assert path.read_text() == "tick,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("left", ["", "tick,lo"])
def test_a_kill_before_the_first_row_leaves_a_table_that_goes_on(tmp_path, left):
    path = tmp_path / "metrics.csv"
    path.write_text(left)
    with table(path, COLUMNS, keep=lambda row: int(row["tick"]) <= 5) as write:
        write({"tick": 1, "loss": 0.5})
    assert read_table(path) == [{"tick": 1.0, "loss": 0.5}]


def test_rows_after_the_last_checkpoint_give_way_to_those_that_are_played_again(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("tick,loss\n1,0.5\n2,0.25\n3,0.2\n4,0.")
    with table(path, COLUMNS, keep=lambda row: int(row["tick"]) <= 1) as write:
        assert read_table(path) == [{"tick": 1.0, "loss": 0.5}]
        write({"tick": 2, "loss": 0.3})
    assert read_table(path)[1:] == [{"tick": 2.0, "loss": 0.3}]


def test_a_row_of_other_columns_is_refused(tmp_path):
    with table(tmp_path / "metrics.csv", COLUMNS) as write, pytest.raises(ValueError, match="los"):
        write({"los": 0.5})
