"""Pictures show the numbers that they are given."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from fox.agents.hanabi import plots
from fox.figures import PALETTE


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def matrix(path, **changed):
    settings = {
        "max_score": 4,
        "title": "2c2r, 3 players",
        "xlabel": "guest",
        "ylabel": "host",
        "learnt": 1,
        "about": "of 9 decks",
    }
    plots.draw_matrix(path, ["a", "b"], [[3.5, 0.5], [1.25, 4.0]], **{**settings, **changed})


def test_a_matrix_has_a_number_in_every_cell_that_can_be_read_on_its_colour(drawn, tmp_path):
    matrix(tmp_path / "a.png")
    axes, _ = drawn[0].axes
    cells = {text.get_position(): text for text in axes.texts}
    told = {place: text.get_text() for place, text in cells.items()}
    assert told == {(0, 0): "3.50", (1, 0): "0.50", (0, 1): "1.25", (1, 1): "4.00"}
    assert [cells[place].get_color() == "white" for place in told] == [True, False, False, True]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert axes.images[0].get_clim() == (0, 4)


def test_self_play_is_framed_and_rule_agents_are_set_apart(drawn, tmp_path):
    for learnt, lines in ((1, 2), (0, 0), (2, 0)):
        matrix(tmp_path / "a.png", learnt=learnt)
        axes = drawn[-1].axes[0]
        centres = [frame.get_center() for frame in axes.patches]
        assert [tuple(map(round, centre)) for centre in centres] == [(0, 0), (1, 1)]
        assert len(axes.lines) == lines


def test_scores_of_a_large_game_have_one_decimal(drawn, tmp_path):
    matrix(tmp_path / "a.png", max_score=25)
    assert {text.get_text() for text in drawn[0].axes[0].texts} == {"3.5", "0.5", "1.2", "4.0"}


def test_learning_has_a_panel_per_player_count_with_its_own_references(drawn, tmp_path):
    rows = [
        {"cpu_seconds": 10.0, "play_2p": 1.0, "play_3p": 0.5, "test_2p": 1.5, "test_3p": None},
        {"cpu_seconds": 20.0, "play_2p": 2.0, "play_3p": 0.7, "test_2p": 2.5, "test_3p": 1.0},
    ]
    only_two = [{"cpu_seconds": 5.0, "play_2p": 0.1, "test_2p": 0.2}]
    references = {2: {"piers": 3.4, "random": 0.4}, 4: {"piers": 1.9}}
    plots.draw_learning(tmp_path / "a.png", {"m": rows, "s": only_two}, references)
    two, three = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (two, three)] == ["2 players", "3 players"]
    lines = [[list(map(float, axis)) for axis in line.get_data()] for line in two.lines]
    assert lines[:4] == [
        [[10, 20], [1, 2]],  # the games learnt from
        [[10, 20], [1.5, 2.5]],  # greedy
        [[5], [0.1]],
        [[5], [0.2]],
    ]
    assert [line[1] for line in lines[4:6]] == [[3.4, 3.4], [0.4, 0.4]]
    assert [text.get_text() for text in two.texts] == ["piers", "random"]
    greedy = three.lines[1]
    assert [list(axis) for axis in greedy.get_data()] == [[20], [1]]
    assert not three.texts
    legend = [text.get_text() for text in drawn[0].legends[0].texts]
    assert legend == ["m", "s", "greedy", "games learnt from"]


def test_more_runs_than_colours_can_be_told_apart(drawn, tmp_path):
    rows = [{"cpu_seconds": 1.0, "play_2p": 1.0, "test_2p": 1.0}]
    plots.draw_learning(tmp_path / "a.png", {str(n): rows for n in range(len(PALETTE) + 1)})
    lines = [line for line in drawn[0].axes[0].lines if line.get_label().isdigit()]
    styles = {(to_hex(line.get_color()), line.get_linestyle()) for line in lines}
    assert len(styles) == len(lines) == len(PALETTE) + 1


def test_a_picture_is_written(tmp_path):
    matrix(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
