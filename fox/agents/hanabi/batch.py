"""Batch: whole games as arrays that a network reads at once.

Rows are the turns of all games, game after game, those of the same rules side by side.

Legend: B games, R rows, S = sum over games of P seats, L own turns of the busiest seat; of one
group, whose games have the same rules: G games, T turns of the longest, N rows, A moves.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.rules import Move, Rules
from fox.agents.hanabi.text import Style, Texts, action_texts, collate, observation_places


class Group(NamedTuple):
    """The games of one rules in a batch.

    Attributes:
        rules: of all of them.
        rows: theirs in the batch.
        moves: (A,) int64, where in the batch's moves those of the rules are.
        there: (G, T) bool, the turns that were played; the True ones are the rows, in order.
        a_t: (N,) int64, the moves made.
        legal_t: (N, A) bool.
        r_t: (G, T) float32, 0 after the end.
    """

    rules: Rules
    rows: slice
    moves: Tensor
    there: Tensor
    a_t: Tensor
    legal_t: Tensor
    r_t: Tensor

    def by_game(self, x_t: Tensor) -> Tensor:
        """(N,) -> (G, T), 0 after the end."""
        return x_t.new_zeros(self.there.shape).masked_scatter(self.there, x_t)

    def to(self, device: torch.device) -> "Group":
        """The same with its tensors on a device."""
        tensors: dict[str, Any] = {
            name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)
        }
        return self._replace(**tensors)


class Batch(NamedTuple):
    """Games to learn from.

    Attributes:
        texts: (R) views.
        moves: (M) moves of all rules, each once: some are the same for any number of players.
        own: (S, L) int64, the row of each own turn of each seat; 0 at padding, to the right.
        place: (R,) int64, where in own.ravel() each row is.
        groups: of the same rules each, one after another.
    """

    texts: Texts
    moves: Texts
    own: Tensor
    place: Tensor
    groups: list[Group]

    def to(self, device: torch.device) -> "Batch":
        """The same with its tensors on a device; texts go there when they are read."""
        groups = [group.to(device) for group in self.groups]
        return self._replace(own=self.own.to(device), place=self.place.to(device), groups=groups)


def batch_of(episodes: Sequence[Episode], style: Style) -> Batch:
    """Makes a batch.

    Args:
        episodes: those of the same rules side by side.
        style: of their views.
    """
    games = {rules: list(its) for rules, its in groupby(episodes, lambda episode: episode.rules)}
    assert sum(map(len, games.values())) == len(episodes)
    moves = {move: row for row, move in enumerate(dict.fromkeys(chain(*(r.moves for r in games))))}
    groups, first = [], 0
    for rules, its in games.items():
        groups.append(_group(rules, its, first, moves))
        first = groups[-1].rows.stop
    own, place = _own_turns(
        np.array([episode.turns for episode in episodes]),
        np.array([episode.rules.players for episode in episodes]),
    )
    return Batch(
        _texts(games, style),
        action_texts(tuple(moves)),
        torch.from_numpy(own),
        torch.from_numpy(place),
        groups,
    )


def _group(rules: Rules, games: Sequence[Episode], first: int, moves: Mapping[Move, int]) -> Group:
    turns = np.array([game.turns for game in games])
    there = np.arange(turns.max()) < turns[:, None]
    r_t = np.zeros(there.shape, np.float32)
    r_t[there] = np.concatenate([game.rewards for game in games])
    return Group(
        rules,
        slice(first, first + int(turns.sum())),
        torch.tensor([moves[move] for move in rules.moves]),
        torch.from_numpy(there),
        torch.from_numpy(np.concatenate([game.actions for game in games]).astype(np.int64)),
        torch.from_numpy(np.concatenate([game.legal for game in games])),
        torch.from_numpy(r_t),
    )


def _texts(games: Mapping[Rules, Sequence[Episode]], style: Style) -> Texts:
    """As collate() of every view would make them; a view's places follow from rules and length."""
    of_rules = [np.concatenate([game.lengths for game in its]) for its in games.values()]
    length = np.concatenate(of_rules)
    T = int(length.max())
    kind = np.repeat(np.arange(len(games)), [len(its) for its in of_rules]) * (T + 1) + length
    kinds, which = np.unique(kind, return_inverse=True)
    rules = list(games)
    places = [observation_places(rules[k // (T + 1)], k % (T + 1), style) for k in kinds.tolist()]
    blank = collate([np.zeros(len(place.field), np.int16) for place in places], places)
    words = np.zeros((len(length), T), np.int16)
    words[np.arange(T) < length[:, None]] = np.concatenate(
        [game.words for its in games.values() for game in its]
    )
    return Texts(words, blank.field[which], blank.offset[which], blank.clause[which], length)


def _own_turns(turns: np.ndarray, players: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) and (B,) -> the rows of the seats' own turns (S, L), and their inverse (R,)."""
    first = np.cumsum(turns) - turns
    first_seat = np.cumsum(players) - players
    game = np.repeat(np.arange(len(players)), players)
    seat = np.arange(len(game)) - first_seat[game]
    L = int((-(-turns // players)).max())
    turn = seat[:, None] + np.arange(L) * players[game][:, None]
    own = np.where(turn < turns[game][:, None], first[game][:, None] + turn, 0)
    game = np.repeat(np.arange(len(turns)), turns)
    turn = np.arange(len(game)) - first[game]
    place = (first_seat[game] + turn % players[game]) * L + turn // players[game]
    return own, place
