"""Agenda: every wave comes once, and nobody runs ahead."""

import pytest

from fox.agents.hanabi.waves import LOSSES, Agenda


def test_waves_are_numbered_from_the_first_and_no_worker_has_more_than_ahead_in_hand():
    agenda = Agenda(first_wave=5, ahead=2)
    assert agenda.hand_out(0) == [5, 6]
    assert agenda.hand_out(1) == [7, 8]
    assert agenda.hand_out(0) == []
    agenda.come(0, 5, [])
    assert agenda.hand_out(0) == []  # it has come, but nobody has taken it
    assert agenda.take() == (0, [])
    assert agenda.hand_out(0) == [9]
    assert agenda.take() is None


def test_what_a_lost_worker_had_is_handed_out_first_and_in_order():
    agenda = Agenda(first_wave=0, ahead=3)
    assert agenda.hand_out(0) == [0, 1, 2]
    assert agenda.hand_out(1) == [3, 4, 5]
    agenda.come(0, 0, [])
    agenda.lose(0, "killed")
    assert agenda.hand_out(0) == [1, 2]  # wave 0 still waits to be taken
    agenda.lose(0, "killed")
    agenda.lose(1, "killed")
    assert agenda.hand_out(1) == [1, 2, 3]
    assert agenda.hand_out(0) == [4, 5]
    agenda.come(1, 2, [])
    assert [agenda.take(), agenda.take(), agenda.take()] == [(0, []), (1, []), None]


def test_a_wave_that_ends_one_worker_after_the_other_is_an_error():
    agenda = Agenda(first_wave=7, ahead=2)
    for _ in range(LOSSES - 1):
        agenda.hand_out(0)
        agenda.lose(0, "exit code -9")
    agenda.hand_out(0)
    with pytest.raises(RuntimeError, match="wave 7 has ended 3 workers, at last: exit code -9"):
        agenda.lose(0, "exit code -9")


def test_the_waves_behind_that_which_was_played_are_not_blamed():
    agenda = Agenda(first_wave=0, ahead=2)
    for _ in range(LOSSES - 1):
        agenda.hand_out(0)
        agenda.lose(0, "killed")
    assert agenda.hand_out(0) == [0, 1]
    agenda.come(0, 0, [])
    agenda.lose(0, "killed")  # at wave 1, for the first time
