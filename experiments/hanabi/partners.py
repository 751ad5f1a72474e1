"""Do the rule agents play as well as their descriptions promise, alone and with each other?

Every agent plays by itself with every number of players, in the full game and in the small ones;
every two play the full game and a small one together, with either in the first seat. All play the
same decks. EXPECTED, PAIRS and the rest are what a prototype scored that was written from the same
descriptions: in the full game on 100 decks, on 60 in pairs, in the small games on 300.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any

from rich.progress import track

from fox.agents.hanabi.partners import PARTNERS
from fox.agents.hanabi.plots import draw_matrix
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.scores import Scores
from fox.agents.hanabi.table import play_games
from fox.figures import INK, PALETTE, new_figure, plain_axes, save_figure
from fox.files import write_csv

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "realtime"))

from record import Line, record  # noqa: E402 - it is found there

SEED = 17
AGENTS = ("random", "flawed", "internal", "outer", "iggi", "vandenbergh", "piers", "cheater")
HONEST = AGENTS[:-1]
CROSSED = ("full", "2c3r")
# Mean strict scores by the number of players, from 2 on.
EXPECTED: Mapping[str, Mapping[str, Sequence[float]]] = {
    "full": {
        "random": (0.0, 0.0, 0.0, 0.0),
        "flawed": (0.0, 0.0, 0.0, 0.0),
        "internal": (14.6, 16.7, 16.0, 15.0),
        "outer": (14.9, 16.8, 16.2, 15.2),
        "iggi": (16.6, 17.1, 16.3, 15.2),
        "vandenbergh": (14.7, 17.8, 17.3, 16.2),
        "piers": (17.5, 17.6, 17.1, 16.1),
        "cheater": (24.8, 24.9, 24.9, 24.8),
    },
    "3c3r": {
        "random": (0.59, 1.28, 1.54, 1.20),
        "internal": (6.6, 6.5, 5.6, 4.7),
        "outer": (6.6, 6.5, 5.6, 4.7),
        "iggi": (7.24, 6.54, 5.70, 4.76),
        "vandenbergh": (7.28, 6.86, 6.01, 4.79),
        "piers": (7.55, 7.15, 6.44, 4.90),
        "cheater": (9.00, 8.95, 8.19, 6.84),
    },
    "2c3r": {
        "random": (0.34, 0.66, 0.74, 0.73),
        "internal": (4.3, 4.6, 4.2, 3.7),
        "outer": (4.3, 4.6, 4.2, 3.7),
        "iggi": (4.62, 4.68, 4.23, 3.72),
        "vandenbergh": (4.62, 4.75, 4.33, 3.54),
        "piers": (4.99, 4.97, 4.68, 3.71),
        "cheater": (5.97, 5.97, 5.59, 4.97),
    },
    "2c2r": {
        "random": (0.42, 0.61, 0.55),
        "internal": (3.3, 3.0, 1.9),
        "outer": (3.3, 3.0, 1.9),
        "iggi": (3.22, 3.00, 1.92),
        "vandenbergh": (3.14, 2.94, 1.87),
        "piers": (3.45, 3.09, 1.87),
        "cheater": (4.00, 3.74, 3.01),
    },
}
TOLERANCES = {"full": 0.6, "3c3r": 0.3, "2c3r": 0.3, "2c2r": 0.3}
# Mean strict scores of two who are unlike, in the full game.
PAIRS = {
    ("internal", "outer"): 14.7,
    ("internal", "iggi"): 16.5,
    ("internal", "piers"): 16.2,
    ("outer", "iggi"): 16.4,
    ("outer", "piers"): 15.9,
    ("iggi", "piers"): 17.6,
    ("iggi", "vandenbergh"): 17.1,
    ("vandenbergh", "piers"): 16.3,
}
PAIRS_TOLERANCE = 1.0  # two standard errors of the prototype's
# Mean length of games, by the number of players.
PIERS_TURNS = {"3c3r": (23, 19, 15, 11), "2c3r": (16, 14, 12, 9), "2c2r": (10, 7, 4)}
# Lowest and highest mean of fireworks as they stand, in the full game.
KEEP = {"random": (1.1, 1.3), "flawed": (1.1, 1.8)}

Row = dict[str, Any]


def scores(game: str, P: int, decks: int, seats: Sequence[str]) -> Scores:
    """Of these agents, by seat."""
    seeds = [(SEED, deck) for deck in range(decks)]
    return Scores.of(play_games(Rules.of(game, P), seeds, [PARTNERS[name] for name in seats]))


def self_play(decks: Mapping[str, int]) -> list[Row]:
    """A row for every agent, game and number of players."""
    cells = [
        (game, P, name) for game in EXPECTED for P in Rules.player_counts(game) for name in AGENTS
    ]
    rows = []
    for game, P, name in track(cells, "self-play"):
        started = time.process_time()
        found = scores(game, P, decks[game], [name] * P)
        microseconds = 1e6 * (time.process_time() - started) / found.turns.sum()
        row = {"game": game, "players": P, "agent": name, "partner": name, **found.summary()}
        rows.append(row | {"microseconds_per_turn": round(float(microseconds), 1)})
    return rows


def cross_play(decks: Mapping[str, int]) -> list[Row]:
    """A row for every two agents that do not cheat, over both orders of the seats."""
    cells = [(game, pair) for game in CROSSED for pair in combinations(HONEST, 2)]
    rows = []
    for game, pair in track(cells, "cross-play"):
        both = [scores(game, 2, decks[game], seats) for seats in (pair, pair[::-1])]
        row = {"game": game, "players": 2, "agent": pair[0], "partner": pair[1]}
        rows.append(row | Scores.mean(both).summary())
    return rows


def acceptance(rows: Sequence[Row], seconds: float) -> list[Line]:
    """Every number that was expected, and the time that all took."""

    def of(value: str, game: str, agent: str, partner: str) -> list[float]:
        """By the number of players."""
        key = game, agent, partner
        found = [row for row in rows if (row["game"], row["agent"], row["partner"]) == key]
        return [round(row[value], 2) for row in found]

    lines = []
    for game, agents in EXPECTED.items():
        for name, wanted in agents.items():
            told = "/".join(f"{value:g}" for value in wanted)
            line = f"{game}, {name}: strict score {told} +- {TOLERANCES[game]:g}"
            found = of("strict", game, name, name)
            lines.append(Line(line, found, _near(found, wanted, TOLERANCES[game])))
    for pair, score in PAIRS.items():
        found = of("strict", "full", *sorted(pair, key=AGENTS.index))
        line = f"full, {' with '.join(pair)}: strict score {score:g} +- {PAIRS_TOLERANCE:g}"
        lines.append(Line(line, found, _near(found, [score], PAIRS_TOLERANCE)))
    for game, turns in PIERS_TURNS.items():
        found = of("turns", game, "piers", "piers")
        line = f"{game}, piers: {'/'.join(map(str, turns))} moves, +- 1"
        lines.append(Line(line, found, _near(found, turns, 1)))
    for name, (low, high) in KEEP.items():
        found = of("keep", "full", name, name)
        passed = all(low - 0.3 <= value <= high + 0.3 for value in found)
        lines.append(Line(f"full, {name}: keep score {low:g} to {high:g}, +- 0.3", found, passed))
    minutes = seconds / 60
    return [*lines, Line("at most 15 minutes of one core", round(minutes, 1), minutes <= 15)]


def _near(found: Sequence[float], wanted: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Strict scores of self-play, a panel for each game; what was expected is a grey stroke."""
    figure = new_figure(11, 5.6)
    panels = figure.subplots(2, 2, sharey=True).flat
    for axes, game in zip(panels, EXPECTED, strict=True):
        plain_axes(axes, f"{game} ({Rules.of(game, 2).max_score} points)", "mean strict score", "")
        for row in rows:
            if row["game"] != game:
                continue
            P, height = row["players"], AGENTS.index(row["agent"]) + 0.15 * (3.5 - row["players"])
            colour = PALETTE[P - 2]
            ends = [row["strict_low"], row["strict_high"]]
            axes.plot(ends, [height] * 2, color=colour, linewidth=1)
            label = f"{P} players" if row["agent"] == AGENTS[0] else None
            axes.plot(row["strict"], height, "o", color=colour, markersize=4, label=label)
            if row["agent"] in EXPECTED[game]:
                wanted = EXPECTED[game][row["agent"]][P - 2]
                axes.plot(wanted, height, "|", color=INK, alpha=0.5, markersize=7)
        axes.set_yticks(range(len(AGENTS)), AGENTS)
        axes.set_xlim(left=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles += figure.axes[0].plot([], [], "|", color=INK, alpha=0.5, markersize=7)
    labels.append("expected")
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    save_figure(figure, path)


def draw_cross_play(path: Path, rows: Sequence[Row], decks: int) -> None:
    """A heat map of the full game with two players."""
    of_pair = {
        (row["agent"], row["partner"]): row["strict"]
        for row in rows
        if row["game"] == "full" and row["players"] == 2
    }
    for a, b in combinations_with_replacement(HONEST, 2):
        of_pair[b, a] = of_pair[a, b]
    draw_matrix(
        path,
        HONEST,
        [[of_pair[a, b] for b in HONEST] for a in HONEST],
        max_score=Rules.of("full", 2).max_score,
        title="Rule agents, full game, 2 players",
        xlabel="either seat",
        ylabel="the other seat",
        learnt=0,
        about=f"mean strict score of {decks:,} decks; framed: self-play",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--decks", type=int, default=400, help="of the full game")
    parser.add_argument("--small-decks", type=int, default=1000, help="of the others")
    options = parser.parse_args()
    started = time.process_time()
    decks = dict.fromkeys(EXPECTED, options.small_decks) | {"full": options.decks}
    alone = self_play(decks)
    pairs = cross_play(decks)
    results = {"seed": SEED, "decks": decks, "self_play": alone, "cross_play": pairs}
    seconds = time.process_time() - started
    record(
        __file__,
        options.results,
        acceptance([*alone, *pairs], seconds),
        results,
        seconds=seconds,
        packages=("numpy", "open-spiel"),
    )
    fields = list(pairs[0])
    table = [{field: row[field] for field in fields} for row in (*alone, *pairs)]
    write_csv(options.results / "partners.csv", table)
    draw(options.results / "partners.png", alone)
    draw_cross_play(options.results / "partners_cross_play.png", [*alone, *pairs], options.decks)


if __name__ == "__main__":
    main()
