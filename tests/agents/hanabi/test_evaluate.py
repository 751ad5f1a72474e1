"""fox-hanabi evaluate lets agents play on the same decks, and tells how sure its numbers are."""

import csv
import json

import numpy as np
import pytest
from saved_runs import save_run

from fox.agents.hanabi import pairings as module
from fox.agents.hanabi.cli import main
from fox.agents.hanabi.evaluate import (
    cross_play_rows,
    crossed,
    evaluate,
    seeds_rows,
    self_play_rows,
)
from fox.agents.hanabi.pairings import Agent, Pairings, read_learnt, trainings
from fox.agents.hanabi.partners import PARTNERS, partner
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.report import report_self_play
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.run import EVALUATION, read_agent
from fox.agents.hanabi.scores import Scores
from fox.agents.hanabi.table import play_games

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seeds, and one that knows two players only."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        save_run(folder / f"mini-{seed}", seed)
    save_run(folder / "two", 0, players=(2,))
    return folder


@pytest.fixture(scope="module")
def evaluated(runs, tmp_path_factory):
    """The folder of an evaluation of these runs."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(str(runs), partners=["iggi", "random"], games=4, output=str(folder))
    return folder


@pytest.fixture
def played(monkeypatch):
    """The arguments of every call of play_games."""
    calls = []

    def play(rules, seeds, players):
        calls.append((rules, seeds, [player.name for player in players]))
        return play_games(rules, seeds, players)

    monkeypatch.setattr(module, "play_games", play)
    return calls


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_self_play_tells_what_was_trained_and_always_shows_the_references(evaluated):
    rows = rows_of(evaluated / "self_play.csv")
    seen = {(row["agent"], int(row["players"])): row["seen"] for row in rows}
    assert [seen["mini-0", P] for P in (2, 3, 4)] == ["trained", "trained", "zero-shot"]
    assert [seen["two", P] for P in (2, 3, 4)] == ["trained", "zero-shot", "zero-shot"]
    assert {seen[name, P] for name in PARTNERS for P in (2, 3, 4)} == {"rules"}
    best = [row for row in rows if row["best_rules"] == "True"]
    assert [row["players"] for row in best] == ["2", "3", "4"]
    assert not {row["agent"] for row in best} & {"random", "cheater"}
    for P in "234":
        scores = {r["agent"]: float(r["strict"]) for r in rows if r["players"] == P}
        (winner,) = (row["agent"] for row in best if row["players"] == P)
        fair = set(PARTNERS) - {"random", "cheater"}
        assert scores[winner] == max(scores[name] for name in fair)


def test_self_play_is_that_of_the_network_on_the_decks_of_evaluations(evaluated, runs):
    _, net = read_agent(runs / "mini-0")
    seeds = [(EVALUATION, 0, deck) for deck in range(4)]
    games = play_games(Rules.of("2c2r", 3), seeds, [NetworkPlayer(net, "x")] * 3)
    rows = rows_of(evaluated / "self_play.csv")
    (row,) = (row for row in rows if (row["agent"], row["players"]) == ("mini-0", "3"))
    assert float(row["strict"]) == np.mean([game.strict_score for game in games])
    assert float(row["keep"]) == np.mean([game.keep_score for game in games])
    assert float(row["turns"]) == np.mean([game.turn for game in games])


def test_the_mean_of_runs_has_errors_over_the_runs(evaluated):
    rows = {r["agent"]: r for r in rows_of(evaluated / "self_play.csv") if r["players"] == "2"}
    mean = rows["mean of mini-0, mini-1"]
    keep = [float(rows[f"mini-{seed}"]["keep"]) for seed in (0, 1)]
    assert float(mean["keep"]) == pytest.approx(np.mean(keep))
    assert float(mean["keep_error"]) == pytest.approx(abs(keep[0] - keep[1]) / 2)
    assert (mean["runs"], rows["two"]["runs"]) == ("2", "1")


def test_matrices_hold_every_pair_and_are_symmetric_for_two(evaluated):
    names = ["mini-0", "mini-1", "two", "iggi", "random"]
    for P in (2, 3):
        rows = rows_of(evaluated / f"cross_play_{P}p.csv")
        assert [row["host"] for row in rows] == names
        assert list(rows[0]) == ["host", *names]
        matrix = np.array([[float(row[name]) for name in names] for row in rows])
        assert (matrix == matrix.T).all() == (P == 2)
        alone = {
            r["agent"]: r for r in rows_of(evaluated / "self_play.csv") if r["players"] == str(P)
        }
        diagonal = [float(alone[name]["strict"]) for name in names]
        assert np.diag(matrix).tolist() == pytest.approx(diagonal)
        assert (evaluated / f"cross_play_{P}p.png").read_bytes()[:4] == b"\x89PNG"
    assert len(rows_of(evaluated / "pairings.csv")) == 2 * 25
    assert (evaluated / "learning.png").is_file()


def test_runs_of_other_seeds_are_compared_with_every_number_of_players(evaluated):
    rows = rows_of(evaluated / "seeds.csv")
    assert [(row["players"], row["agents"]) for row in rows] == [
        (P, "mini-0, mini-1") for P in "234"
    ]


class Invented:
    """Pairings whose scores were made up."""

    game, decks = "2c2r", 2

    def scores(self, host, guest, P):
        decks = {
            ("mini-0", "mini-0"): [4.0, 2.0],
            ("mini-1", "mini-1"): [2.0, 2.0],
            ("mini-0", "mini-1"): [1.0, 0.0],
            ("mini-1", "mini-0"): [2.0, 1.0],
        }[host.name, guest.name]
        return Scores(*[np.array(decks)] * 5)


def test_the_gap_is_self_play_less_play_with_other_seeds_deck_by_deck(runs):
    (row,) = seeds_rows(Invented(), read_learnt([runs]), [2])
    assert (row["self_play"], row["cross_play"], row["gap"]) == (2.5, 1.0, 1.5)
    assert row["self_play_error"] == pytest.approx(0.5)  # decks of 3 and 2
    assert row["cross_play_error"] == pytest.approx(0.5)  # of 1.5 and 0.5
    assert row["gap_error"] == pytest.approx(0)  # of 1.5 and 1.5


def test_the_json_tells_what_the_numbers_need_beside_them(evaluated, runs):
    told = json.loads((evaluated / "evaluation.json").read_text())
    assert (told["game"], told["decks"], told["seed"]) == ("2c2r", 4, 0)
    assert told["rules"]["3p"] == Rules.of("2c2r", 3).as_dict()
    assert {"note", "python", "torch", "numpy", "open-spiel", "cores"} <= set(told)
    assert told["runs"]["two"]["players"] == [2]
    assert told["runs"]["mini-1"]["seed"] == 1
    fingerprints = {run["fingerprint"] for run in told["runs"].values()}
    assert len(fingerprints) == 2  # two was drawn like mini-0, and learnt nothing
    for name, rows in (("self_play", 3 * (3 + 1 + 8)), ("pairings", 50), ("seeds", 3)):
        assert len(told[name]) == rows


def test_tables_in_the_terminal_mark_what_was_never_trained(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(["evaluate", str(runs / "two"), "--games", "4", "--partners", "[]", "--players", "[2, 3]",
          "--output", str(tmp_path)])  # fmt: skip
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines()]
    assert ["2", "two"] in [line[:2] for line in lines]
    assert ["3", "two", "*"] in [line[:3] for line in lines]
    assert sum("cheater" in line for line in lines) == 2
    assert "*: never trained in such a game" in told
    assert "\x1b" not in told


def test_files_of_an_evaluation_of_others_do_not_stay_beside_the_new_ones(tmp_path, capsys):
    common = ["evaluate", "[]", "--game", "2c2r", "--games", "2", "--output", str(tmp_path)]
    main([*common, "--partners", "[iggi, piers]"])
    assert (tmp_path / "cross_play_3p.png").is_file()
    main([*common, "--partners", "iggi", "--players", "[2]"])
    assert not list(tmp_path.glob("*3p*"))
    assert rows_of(tmp_path / "cross_play_2p.csv")[0].keys() == {"host", "iggi"}


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capsys):
    save_run(tmp_path / "mini[red]", 0)
    (learnt,) = read_learnt([tmp_path / "mini[red]"])
    pairings = Pairings("2c2r", 2, 0, tmp_path)
    report_self_play(self_play_rows(pairings, [learnt], [2]), "[green]")
    told = capsys.readouterr().out
    assert "mini[red]" in told
    assert told.startswith("[green]")


def test_a_guest_takes_every_seat_on_the_same_decks(tmp_path, played):
    pairings = Pairings("2c2r", 2, 7, tmp_path)
    pairings.scores(Agent.rule("iggi"), Agent.rule("piers"), 3)
    assert [names for _, _, names in played] == [
        ["piers", "iggi", "iggi"],
        ["iggi", "piers", "iggi"],
        ["iggi", "iggi", "piers"],
    ]
    pairings.scores(Agent.rule("outer"), Agent.rule("outer"), 3)
    assert played[3][2] == ["outer"] * 3
    assert {tuple(seeds) for _, seeds, _ in played} == {((EVALUATION, 7, 0), (EVALUATION, 7, 1))}
    pairings.scores(Agent.rule("piers"), Agent.rule("iggi"), 2)
    pairings.scores(Agent.rule("iggi"), Agent.rule("piers"), 2)  # the same table
    assert [sorted(names) for _, _, names in played[4:]] == [["iggi", "piers"]] * 2


def test_a_guest_among_others_is_worth_the_mean_over_its_seats(tmp_path):
    iggi, flawed = Agent.rule("iggi"), Agent.rule("flawed")
    rules, seeds = Rules.of("2c2r", 3), [(EVALUATION, 7, deck) for deck in range(5)]
    strict = []
    for taken in range(3):
        players = [partner("flawed" if seat == taken else "iggi") for seat in range(3)]
        strict.append([game.strict_score for game in play_games(rules, seeds, players)])
    pairings = Pairings("2c2r", 5, 7, tmp_path)
    scores = pairings.scores(iggi, flawed, 3)
    assert scores.strict.tolist() == np.mean(strict, axis=0).tolist()
    rows = cross_play_rows(pairings, [iggi, flawed], 3)
    difference = scores.strict - pairings.scores(iggi, iggi, 3).strict  # deck by deck
    assert (rows[1]["host"], rows[1]["guest"]) == ("iggi", "flawed")
    assert rows[1]["over_host"] == pytest.approx(difference.mean())
    assert rows[1]["over_host_error"] == pytest.approx(difference.std(ddof=1) / 5**0.5)


def test_a_stopped_evaluation_goes_on_and_plays_nothing_twice(runs, tmp_path, played, monkeypatch):
    def command(folder):
        main(["evaluate", str(runs / "two"), "--games", "2", "--partners", "[iggi]",
              "--players", "[2]", "--output", str(tmp_path / folder)])  # fmt: skip

    for draw in ("draw_matrix", "draw_learning"):
        monkeypatch.setattr(f"fox.agents.hanabi.evaluate.{draw}", lambda *_, **__: None)
    command("whole")
    whole, play = len(played), module.play_games

    assert whole == 9 + 2  # self-play, and a pair in two seatings

    def stopping(rules, seeds, players):
        if len(played) == whole + 10:  # in the midst of the pair
            raise KeyboardInterrupt
        return play(rules, seeds, players)

    monkeypatch.setattr(module, "play_games", stopping)
    with pytest.raises(SystemExit) as stop:
        command("stopped")
    assert stop.value.code == 130
    monkeypatch.setattr(module, "play_games", play)
    command("stopped")
    assert len(played) == 2 * whole + 1  # the pair was not whole
    command("stopped")
    assert len(played) == 2 * whole + 1
    for name in ("self_play.csv", "pairings.csv", "evaluation.json"):
        files = [(tmp_path / folder / name).read_text() for folder in ("whole", "stopped")]
        assert files[0] == files[1]


def test_what_has_changed_is_played_anew(tmp_path, played):
    folder = tmp_path / "run"

    def scores(run_seed=0, decks=2, game="2c2r", seed=0, **network):
        save_run(folder, run_seed, **network)
        (agent,) = read_learnt([folder])
        before = len(played)
        Pairings(game, decks, seed, tmp_path / "games").scores(agent, agent, 2)
        return len(played) - before

    assert (scores(), scores()) == (1, 0)
    assert [scores(run_seed=1), scores(decks=3), scores(game="2c3r")] == [1, 1, 1]
    assert [scores(seed=1), scores(centre=True)] == [1, 1]
    assert scores() == 0


def test_over_best_is_taken_deck_by_deck(tmp_path):
    pairings = Pairings("2c2r", 6, 0, tmp_path)
    rows = {row["agent"]: row for row in self_play_rows(pairings, [], [2])}
    (best,) = (row for row in rows.values() if row["best_rules"])
    strict = {
        name: pairings.scores(Agent.rule(name), Agent.rule(name), 2).strict
        for name in (best["agent"], "cheater")
    }
    difference = strict["cheater"] - strict[best["agent"]]
    assert rows["cheater"]["over_best"] == pytest.approx(difference.mean())
    assert rows["cheater"]["over_best_error"] == pytest.approx(difference.std(ddof=1) / 6**0.5)
    assert (best["over_best"], best["over_best_error"]) == (0, 0)


def test_only_runs_that_differ_in_the_seed_alone_are_taken_together(runs, tmp_path):
    save_run(tmp_path / "wide", 2, hidden_size=16)
    learnt = read_learnt([runs, tmp_path / "wide"])
    assert [agent.name for agent in learnt] == ["mini-0", "mini-1", "two", "wide"]
    assert [[agent.name for agent in some] for some in trainings(learnt)] == [["mini-0", "mini-1"]]


def test_names_are_as_short_as_they_are_unlike_each_other_and_the_rule_agents(tmp_path):
    folders = [tmp_path / "a" / "mini", tmp_path / "b" / "mini"]
    for folder in folders:
        save_run(folder, 0)
    assert [agent.name for agent in read_learnt(folders)] == ["a/mini", "b/mini"]
    assert [agent.name for agent in read_learnt(folders[:1])] == ["mini"]
    save_run(tmp_path / "a" / "piers", 0)
    names = [agent.name for agent in read_learnt([tmp_path / "a" / "piers"])]
    assert names == ["a/piers"]


def test_cross_play_is_of_two_players_and_of_the_next_number():
    assert crossed((2, 3, 4, 5)) == [2, 3]
    assert crossed((4, 5)) == [4]
    assert crossed((2,)) == [2]


def test_runs_of_one_game_can_play_another_and_their_learning_is_not_drawn(runs, tmp_path):
    evaluate(
        [str(runs / "two")], partners=[], players=[2], games=2, game="2c3r", output=str(tmp_path)
    )
    rows = rows_of(tmp_path / "self_play.csv")
    assert (rows[0]["agent"], rows[0]["seen"]) == ("two", "zero-shot")
    assert not (tmp_path / "learning.png").exists()
    assert not (tmp_path / "seeds.csv").exists()


def test_rule_agents_can_be_evaluated_alone(tmp_path):
    evaluate([], partners=[], players=[2], games=2, game="2c2r", output=str(tmp_path))
    assert len(rows_of(tmp_path / "self_play.csv")) == len(PARTNERS)
    assert not list(tmp_path.glob("cross_play*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["[]"], "expected runs of one game, but there are none: choose one with --game"),
        (["RUNS", "--games", "1"], "at least 2 games and a seed of at least 0, but got 1 and 0"),
        (["RUNS", "--seed", "-1"], "at least 2 games and a seed of at least 0, but got 1000 and"),
        (["RUNS", "--players", "[]"], "expected one or more numbers of players, but got []"),
        (["RUNS", "--players", "[2, 5]"], "2c2r is for 2 to 4 players, not 5"),
        (["RUNS", "--game", "5c5r"], "expected a game among full, 3c3r, 2c3r, 2c2r"),
        (["RUNS", "--partners", "[walton]"], "expected a partner among internal, outer"),
        (["[RUNS, RUNS/two]"], "expected each run once, but got"),
        (["RUNS/none"], "none, but found no"),
    ],
)
def test_evaluate_refuses_what_cannot_be(arguments, words, runs, tmp_path, capsys):
    given = [argument.replace("RUNS", str(runs)) for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *given, "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_runs_of_several_games_need_to_be_told_which(runs, tmp_path, capsys):
    save_run(tmp_path / "small", 0, game="2c3r")
    with pytest.raises(SystemExit):
        main(["evaluate", f"[{runs}, {tmp_path / 'small'}]", "--output", str(tmp_path)])
    assert "of one game, but these are of 2c2r, 2c3r" in capsys.readouterr().err
