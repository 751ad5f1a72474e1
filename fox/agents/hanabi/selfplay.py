"""Self-play: a wave of games between copies of one network, as episodes for the learner.

Legend: E games of a wave, A moves of the rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fox.agents.flat import load_flat
from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.network import NetworkConfig, blank_net
from fox.agents.hanabi.player import NetworkPlayer, NetworkSeat
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import Turn, play_games
from fox.agents.ranges import at_least, within_one


@dataclass(frozen=True)
class ExplorationConfig:
    """Random moves: game i of the E of a wave has the share base^(1 + alpha i / (E - 1)) of them.

    Args:
        base: the largest share of random moves.
        alpha: how fast the shares fall.

    Raises:
        ValueError: a value is out of its range.
    """

    base: float = 0.3
    alpha: float = 4.0

    def __post_init__(self) -> None:
        within_one("exploration", self, "base")
        at_least("exploration", self, alpha=0)

    def epsilons(self, games: int) -> np.ndarray:
        """(games,) the shares of random moves, falling."""
        return self.base ** (1 + self.alpha * np.arange(games) / max(games - 1, 1))


@dataclass(frozen=True)
class Plan:
    """All that decides the games of a run, but for the weights.

    Attributes:
        network: who plays.
        rules: of waves 0, 1, ..., and around again.
        seed: of decks and exploration.
        wave_games: E of a wave.
        exploration: random moves.
    """

    network: NetworkConfig
    rules: tuple[Rules, ...]
    seed: int
    wave_games: int
    exploration: ExplorationConfig


class SelfPlay:
    """Plays waves: the weights and the number of a wave decide its games, wherever it is played."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.net = blank_net(plan.network)  # the weights come with waves

    def play(self, flat: np.ndarray, version: int, wave: int) -> list[Episode]:
        """The games of a wave, played to their ends.

        Args:
            flat: weights, as fox.agents.flat has them.
            version: theirs.
            wave: its number, from 0 on.
        """
        plan = self.plan
        load_flat(self.net, flat)
        rules = plan.rules[wave % len(plan.rules)]
        numbers = range(wave * plan.wave_games, (wave + 1) * plan.wave_games)
        player = _Explorer(
            NetworkPlayer(self.net, "self"), plan.exploration.epsilons(plan.wave_games)
        )
        seeds = [(plan.seed, number) for number in numbers]
        games = play_games(rules, seeds, [player] * rules.players)
        return [
            _episode(game, number, version, [seat.log[place] for seat in player.seats])
            for place, (number, game) in enumerate(zip(numbers, games, strict=True))
        ]


class _Decision(NamedTuple):
    words: np.ndarray
    legal: tuple[int, ...]
    explored: bool


class _Explorer:
    """Plays like a network, but for some random moves; remembers what it saw."""

    sees_hand = False

    def __init__(self, player: NetworkPlayer, epsilons: np.ndarray) -> None:
        self.name, self.player, self.epsilons = player.name, player, epsilons
        self.seats: list[_ExploringSeat] = []

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "_ExploringSeat":
        seat = self.player.sit(rules, generators)
        self.seats.append(_ExploringSeat(seat, generators, self.epsilons))
        return self.seats[-1]


class _ExploringSeat:
    def __init__(
        self,
        seat: NetworkSeat,
        generators: Sequence[np.random.Generator],
        epsilons: np.ndarray,
    ) -> None:
        self.seat, self.generators, self.epsilons = seat, generators, epsilons
        self.log: list[list[_Decision]] = [[] for _ in generators]

    def act(self, turns: Sequence[Turn]) -> list[int]:
        actions = list(self.seat.act(turns))
        for place, (turn, words) in enumerate(zip(turns, self.seat.ids, strict=True)):
            generator, legal = self.generators[turn.game], turn.view.legal
            explored = bool(generator.random() < self.epsilons[turn.game])
            if explored:
                actions[place] = int(generator.choice(legal))
            self.log[turn.game].append(_Decision(words, legal, explored))
        return actions


def _episode(game: Game, number: int, version: int, logs: Sequence[Sequence[_Decision]]) -> Episode:
    P = game.rules.players
    decisions = [logs[turn % P][turn // P] for turn in range(game.turn)]
    legal = np.zeros((game.turn, len(game.rules.moves)), bool)
    for row, decision in zip(legal, decisions, strict=True):
        row[list(decision.legal)] = True
    ids = game.rules.action_ids
    return Episode(
        rules=game.rules,
        number=number,
        version=version,
        words=np.concatenate([decision.words for decision in decisions]),
        lengths=np.array([len(decision.words) for decision in decisions], np.int16),
        actions=np.array([ids[event.move] for event in game.events], np.int16),
        legal=legal,
        explored=np.array([decision.explored for decision in decisions]),
        rewards=np.array(game.rewards, np.float32),
        keep_score=game.keep_score,
        strict_score=game.strict_score,
    )
