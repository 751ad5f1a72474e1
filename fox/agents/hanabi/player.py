"""NetworkPlayer: a HanabiNet at the table, greedy over the legal moves.

Legend: n games that still go on, A moves, d width.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fox.agents.hanabi.network import HanabiNet
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import Turn
from fox.agents.hanabi.text import (
    action_texts,
    collate,
    observation_places,
    observation_words,
    token_ids,
)


class NetworkPlayer:
    """A network that may take any seats, each with a memory of its own.

    Args:
        net: its weights must not change while games go on.
        name: in tables.

    Attributes:
        net, name: as given.
        sees_hand: False.
    """

    sees_hand = False

    def __init__(self, net: HanabiNet, name: str) -> None:
        self.net, self.name = net, name

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "NetworkSeat":
        """Takes a seat at the beginning of games; nothing is drawn."""
        return NetworkSeat(self.net, rules, len(generators))


class NetworkSeat:
    """One seat of several games, as NetworkPlayer takes it.

    Args:
        net: the network.
        rules: of the games.
        games: how many, numbered from 0 on.

    Attributes:
        ids: (words of each,) int16, the token ids of the last views.
    """

    @torch.no_grad()
    def __init__(self, net: HanabiNet, rules: Rules, games: int) -> None:
        self.net, self.rules = net, rules
        self.ids: list[np.ndarray] = []
        self._moves = net.encode(action_texts(rules.moves))  # (A, d)
        self._memory = net.memory.start(games, -(-rules.max_turns // rules.players))
        self._games = list(range(games))  # of each row of the memory

    def act(self, turns: Sequence[Turn]) -> list[int]:
        """The legal move of the highest value for each game."""
        return np.where(self._legal(turns), self.values(turns), -np.inf).argmax(1).tolist()

    @torch.no_grad()
    def values(self, turns: Sequence[Turn]) -> np.ndarray:
        """(n, A) float32, Q of every move, legal or not.

        Args:
            turns: of every game that still goes on, each once: the memory goes on with them.
        """
        style = self.net.config.style
        self.ids = [token_ids(observation_words(turn.view, style)) for turn in turns]
        places = [observation_places(self.rules, len(ids), style) for ids in self.ids]
        x = self.net.encode(collate(self.ids, places))
        o = x + self._remember([turn.game for turn in turns], x)
        legal = torch.from_numpy(self._legal(turns)).to(o.device)
        return self.net.head(o, self._moves, legal).cpu().numpy()

    def _remember(self, games: Sequence[int], x: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, d): one turn of each game; the others are over."""
        row = {game: row for row, game in enumerate(self._games)}
        rows = [row[game] for game in games]
        # To keep a row that nobody reads costs less than to copy the others, until they are few.
        if 2 * len(rows) < len(self._games):
            self._memory = self.net.memory.select(self._memory, rows)
            self._games, rows = list(games), list(range(len(games)))
        everyone = x.new_zeros(len(self._games), x.shape[1])
        everyone[rows] = x
        h, self._memory = self.net.memory.step(self._memory, everyone)
        return h[rows]

    def _legal(self, turns: Sequence[Turn]) -> np.ndarray:
        legal = np.zeros((len(turns), len(self.rules.moves)), bool)
        for row, turn in zip(legal, turns, strict=True):
            row[list(turn.view.legal)] = True
        return legal
