"""The command `fox-hanabi evaluate`: agents with themselves, with other seeds, and with strangers.

Legend: P players.
"""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import permutations, product
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from fox.agents.command import as_list
from fox.agents.hanabi.pairings import Agent, Learnt, Pairings, read_learnt, trainings
from fox.agents.hanabi.partners import PARTNERS
from fox.agents.hanabi.plots import draw_learning, draw_matrix
from fox.agents.hanabi.report import report_cross_play, report_seeds, report_self_play
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.scores import Scores, estimate, estimate_columns
from fox.agents.metrics import read_table
from fox.files import remove_leftovers, write_csv, write_json

NOTE = (
    "Greedy play on decks that no run has learnt from, the same for every pairing. strict: 0 after "
    "the last life; keep: the fireworks as they stand. A deck is one observation, over all the "
    "seatings of a pairing. Errors are standard errors, and low to high are 95 % intervals, over "
    "decks: of these agents, not of other trainings; in rows of several runs they are over these "
    "runs. Differences (over_best, over_host, gap) are taken deck by deck. The cheater sees its "
    "own hand, and is no bound."
)
RANDOM = "random"
OUTPUTS: tuple[str, ...] = ("self_play.csv", "pairings.csv", "seeds.csv", "cross_play_*p.csv")
OUTPUTS += ("cross_play_*p.png", "learning.png", "evaluation.json")

Rows = list[dict[str, Any]]
Thing = TypeVar("Thing")


def evaluate(
    runs: list[str] | str,
    *,
    partners: list[str] | str | None = None,
    players: list[int] | None = None,
    games: int = 1000,
    game: str | None = None,
    seed: int = 0,
    output: str = "runs/evaluation",
) -> None:
    """Let agents play with themselves, with each other and with rule agents, on the same decks.

    Self-play with every number of players, trained on or not. Cross-play of every pair of agents
    with 2 players, and with the next number of them, where one guest sits among others; that of
    runs which differ in their seeds alone, with every number. Writes self_play.csv, pairings.csv,
    cross_play_Pp.csv and .png, seeds.csv, learning.png and evaluation.json. The same command goes
    on where it was stopped.

    Args:
        runs: the folder of a run, or of several runs, or a list '[A, B]' of such; '[]' for rule
            agents alone.
        partners: a rule agent, or a list '[piers, iggi]' of such, in cross-play; all that do not
            see their own hand if not given.
        players: numbers of players; all that the game is for if not given.
        games: decks that each pairing plays, in every seating.
        game: full, 3c3r, 2c3r or 2c2r; that of the runs if not given.
        seed: of the decks.
        output: folder for the files.

    Raises:
        ValueError: there is no run, or what is asked for does not fit together.
    """
    torch.set_num_threads(1)  # networks of this size are too small to share
    if games < 2 or seed < 0:
        raise ValueError(
            f"expected at least 2 games and a seed of at least 0, but got {games} and {seed}"
        )
    learnt = read_learnt([Path(run) for run in as_list(runs)])
    if game is None:
        game = _game_of(learnt)
    counts = Rules.player_counts(game) if players is None else tuple(sorted(set(players)))
    if not counts:
        raise ValueError(f"expected one or more numbers of players, but got {players}")
    rules = {f"{P}p": Rules.of(game, P).as_dict() for P in counts}
    if partners is None:
        partners = [name for name, player in PARTNERS.items() if not player.sees_hand]
    agents = [*learnt, *(Agent.rule(name) for name in dict.fromkeys(as_list(partners)))]
    folder = Path(output)
    remove_leftovers(folder)
    for pattern in OUTPUTS:  # of an evaluation of others
        for path in folder.glob(pattern):
            path.unlink()
    pairings = Pairings(game, games, seed, folder / "games")
    self_play = self_play_rows(pairings, learnt, counts)
    result = {**_about(learnt), "game": game, "rules": rules, "decks": games, "seed": seed}

    def write(name: str, rows: Rows) -> None:
        result[name] = rows
        write_csv(folder / f"{name}.csv", rows)
        write_json(folder / "evaluation.json", result)

    write("self_play", self_play)
    report_self_play(self_play, f"{game}, self-play on {games:,} decks")
    pairs: Rows = []
    matrices: dict[int, Rows] = {}
    for P in crossed(counts) if agents else ():
        found = cross_play_rows(pairings, agents, P)
        pairs += found
        write("pairings", pairs)
        matrices[P] = matrix_of(found)
        write_csv(folder / f"cross_play_{P}p.csv", matrices[P])
        report_cross_play(matrices[P], f"{game}, cross-play of {P} players, strict score")
    if seeds := seeds_rows(pairings, learnt, counts):
        write("seeds", seeds)
        report_seeds(seeds)
    _draw_learning(folder / "learning.png", learnt, game, self_play)
    for P, matrix in matrices.items():
        _draw_matrix(folder / f"cross_play_{P}p.png", matrix, len(learnt), pairings, P)
    print(f"all in {folder}")


def crossed(counts: Sequence[int]) -> list[int]:
    """The numbers of players of cross-play: 2, and the least beyond."""
    return [P for P in counts if P == 2] + [P for P in counts if P > 2][:1]


def self_play_rows(pairings: Pairings, learnt: Sequence[Learnt], counts: Sequence[int]) -> Rows:
    """What each agent, and each rule agent, is worth among its like.

    over_best is what it has over the best rule agent that neither cheats nor plays at random. Runs
    that differ in the seed alone have one more row, for their mean; it has errors over the runs.
    """
    agents = [*learnt, *map(Agent.rule, PARTNERS)]
    rows: Rows = []
    for P in counts:
        scores = {
            agent.name: pairings.scores(agent, agent, P) for agent in _track("self-play", P, agents)
        }
        best = _best({name: scores[name] for name in PARTNERS})
        of_agent = {
            agent.name: {
                "players": P,
                "agent": agent.name,
                "seen": agent.seen(pairings.game, P),
                "best_rules": agent.name == best,
                "runs": 1,
                **scores[agent.name].summary(),
                **_difference("over_best", scores[agent.name], scores[best]),
            }
            for agent in agents
        }
        means = {some[-1].name: [agent.name for agent in some] for some in trainings(learnt)}
        for name, row in of_agent.items():
            rows.append(row)
            if name in means:  # the last of them
                rows.append(_mean([of_agent[one] for one in means[name]]))
    return rows


def cross_play_rows(pairings: Pairings, agents: Sequence[Agent], P: int) -> Rows:
    """What each guest is worth at each host's table, and what that is over the host's self-play."""
    rows: Rows = []
    for host, guest in _track("cross-play", P, list(product(agents, agents))):
        scores = pairings.scores(host, guest, P)
        rows.append(
            {
                "players": P,
                "host": host.name,
                "guest": guest.name,
                **scores.summary(),
                **_difference("over_host", scores, pairings.scores(host, host, P)),
            }
        )
    return rows


def seeds_rows(pairings: Pairings, learnt: Sequence[Learnt], counts: Sequence[int]) -> Rows:
    """Of runs that differ in the seed alone: self-play, play with each other, and the gap."""
    rows: Rows = []
    for P in counts:
        for some in _track("other seeds", P, trainings(learnt)):
            alone = Scores.mean([pairings.scores(agent, agent, P) for agent in some])
            mixed = Scores.mean([pairings.scores(*pair, P) for pair in permutations(some, 2)])
            rows.append(
                {
                    "players": P,
                    "agents": ", ".join(agent.name for agent in some),
                    "seen": some[0].seen(pairings.game, P),
                    "decks": pairings.decks,
                    **estimate_columns("self_play", estimate(alone.strict)),
                    **estimate_columns("cross_play", estimate(mixed.strict)),
                    **_difference("gap", alone, mixed),
                }
            )
    return rows


def matrix_of(rows: Rows) -> Rows:
    """The strict scores of cross-play, a row for each host and a column for each guest."""
    matrix: dict[str, dict[str, Any]] = {}
    for row in rows:
        matrix.setdefault(row["host"], {"host": row["host"]})[row["guest"]] = row["strict"]
    return list(matrix.values())


def _game_of(learnt: Sequence[Learnt]) -> str:
    """The one game of all runs."""
    games = sorted({agent.config.env.game for agent in learnt})
    if len(games) != 1:
        told = f"these are of {', '.join(games)}" if games else "there are none"
        raise ValueError(f"expected runs of one game, but {told}: choose one with --game")
    return games[0]


def _best(scores: Mapping[str, Scores]) -> str:
    """The rule agent of the highest strict score that neither cheats nor plays at random."""
    names = [name for name in scores if name != RANDOM and not PARTNERS[name].sees_hand]
    return max(names, key=lambda name: scores[name].strict.mean())


def _difference(name: str, scores: Scores, others: Scores) -> dict[str, float]:
    """How much higher the strict scores are on the same decks, as columns."""
    return estimate_columns(name, estimate(scores.strict - others.strict))


def _mean(rows: Rows) -> dict[str, Any]:
    """A row for several runs: the means of their means, with errors over the runs."""
    mean = {**rows[0], "agent": f"mean of {', '.join(row['agent'] for row in rows)}"}
    mean["runs"] = len(rows)
    for name in (*Scores._fields, "over_best"):
        mean |= estimate_columns(name, estimate([row[name] for row in rows]))
    return mean


def _track(kind: str, P: int, things: Sequence[Thing]) -> Iterable[Thing]:
    """A bar while they are gone through, if somebody looks."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(things, f"{kind}, {P} players", console=console, transient=True, disable=hidden)


def _about(learnt: Sequence[Learnt]) -> dict[str, Any]:
    """What a number needs beside it."""
    packages = ("fox-transformer", "torch", "numpy", "open-spiel")
    return {
        "note": NOTE,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "runs": {
            agent.name: {
                "game": agent.config.env.game,
                "players": agent.config.env.players,
                "seed": agent.config.run.seed,
                "network": asdict(agent.config.network),
                "fingerprint": agent.fingerprint,
            }
            for agent in learnt
        },
    }


def _draw_learning(path: Path, learnt: Sequence[Learnt], game: str, self_play: Rows) -> None:
    """How the runs of this game learnt it, beside the best rule agent and random moves."""
    runs = {
        agent.name: rows
        for agent in learnt
        if agent.config.env.game == game and (rows := read_table(agent.folder / "metrics.csv"))
    }
    references: dict[int, dict[str, float]] = {}
    for row in self_play:
        if row["best_rules"] or row["agent"] == RANDOM:
            references.setdefault(row["players"], {})[row["agent"]] = row["strict"]
    if runs:
        draw_learning(path, runs, references)


def _draw_matrix(path: Path, matrix: Rows, learnt: int, pairings: Pairings, P: int) -> None:
    names = [row["host"] for row in matrix]
    alone = "the other seat" if P == 2 else "the other seats"
    draw_matrix(
        path,
        names,
        [[row[name] for name in names] for row in matrix],
        max_score=Rules.of(pairings.game, P).max_score,
        title=f"{pairings.game}, {P} players",
        xlabel="guest, in each seat in turn",
        ylabel=f"host, in {alone}",
        learnt=learnt,
        about=f"mean strict score of {pairings.decks:,} decks; framed: self-play",
    )
