"""The experiment with rule agents: every number that is expected is checked, on the same decks."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "hanabi"


@pytest.fixture(scope="module")
def partners():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import partners

        yield partners


def rows_as_expected(partners):
    """Every score and length as the table has it."""
    rows = [
        {"game": game, "agent": name, "partner": name, "strict": score, "keep": 1.2}
        | {"turns": partners.PIERS_TURNS[game][number] if game != "full" else 70}
        for game, agents in partners.EXPECTED.items()
        for name, scores in agents.items()
        for number, score in enumerate(scores)
    ]
    return rows + [
        {"game": "full", "agent": a, "partner": b, "strict": score}
        for (a, b), score in partners.PAIRS.items()
    ]


def failed(partners, rows, seconds=1.0):
    return [line.wanted for line in partners.acceptance(rows, seconds) if not line.passed]


def test_what_is_expected_passes(partners):
    rows = rows_as_expected(partners)
    assert failed(partners, rows) == []
    assert failed(partners, rows, 901) == ["at most 15 minutes of one core"]


@pytest.mark.parametrize(
    ("game", "agent", "partner", "field", "change"),
    [
        ("full", "piers", "piers", "strict", 0.7),
        ("full", "iggi", "vandenbergh", "strict", -1.1),
        ("2c3r", "random", "random", "strict", 0.4),
        ("2c2r", "piers", "piers", "turns", 1.1),
        ("full", "flawed", "flawed", "keep", 1.0),
    ],
)
def test_one_number_too_far_off_fails_one_line(partners, game, agent, partner, field, change):
    rows = rows_as_expected(partners)
    key = game, agent, partner
    row = next(row for row in rows if (row["game"], row["agent"], row["partner"]) == key)
    row[field] += change
    (line,) = failed(partners, rows)
    assert line.startswith(f"{game}, {agent}")


def test_results_and_pictures_are_written(partners, monkeypatch, tmp_path, capsys):
    pytest.importorskip("pyspiel")
    pytest.importorskip("matplotlib")
    arguments = ["--results", str(tmp_path), "--decks", "2", "--small-decks", "2"]
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    partners.main()
    found = json.loads((tmp_path / "partners.json").read_text())
    assert found["command"] == "python experiments/hanabi/partners.py"
    cells = 8 * (4 + 4 + 4 + 3) + 2 * 21
    assert len(found["self_play"]) + len(found["cross_play"]) == cells
    assert len((tmp_path / "partners.csv").read_text().splitlines()) == 1 + cells
    pictures = [tmp_path / f"partners{end}.png" for end in ("", "_cross_play")]
    assert all(path.stat().st_size > 10_000 for path in pictures)
    assert "full, cheater" in capsys.readouterr().out


def test_a_pair_plays_every_deck_in_both_orders(partners, monkeypatch):
    pytest.importorskip("pyspiel")
    monkeypatch.setattr(partners, "CROSSED", ("2c3r",))
    monkeypatch.setattr(partners, "HONEST", ("internal", "piers"))
    both = [
        partners.scores("2c3r", 2, 3, seats)
        for seats in (("internal", "piers"), ("piers", "internal"))
    ]
    (row,) = partners.cross_play({"2c3r": 3})
    assert (row["game"], row["agent"], row["partner"]) == ("2c3r", "internal", "piers")
    assert row["decks"] == 3
    assert row["strict"] == pytest.approx(sum(found.strict.mean() for found in both) / 2)
