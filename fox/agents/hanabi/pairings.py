"""Pairings: agents at one table on the same decks as all others, and the games already played.

A host takes every seat but one, and a guest takes that one, in each seat in turn; who is a guest at
its own table plays with itself.

Legend: P players.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fox.agents.hanabi.network import HanabiNet
from fox.agents.hanabi.partners import PARTNERS, partner
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.run import EVALUATION, FREE, RunConfig, read_agent
from fox.agents.hanabi.scores import Scores
from fox.agents.hanabi.table import Player, play_games
from fox.files import whole_file


@dataclass(frozen=True)
class Agent:
    """Who is evaluated.

    Attributes:
        name: in tables, unlike all others.
        player: who plays.
        fingerprint: changes with whatever decides how it plays.
    """

    name: str
    player: Player
    fingerprint: str

    @classmethod
    def rule(cls, name: str) -> "Agent":
        """A rule agent by its name."""
        return cls(name, partner(name), name)

    def seen(self, game: str, P: int) -> Literal["trained", "zero-shot", "rules"]:
        """Whether the agent has learnt this game with P players, or has learnt nothing."""
        return "rules"


@dataclass(frozen=True)
class Learnt(Agent):
    """An agent that has learnt.

    Attributes:
        folder: of its run.
        config: of its run.
    """

    folder: Path
    config: RunConfig

    def seen(self, game: str, P: int) -> Literal["trained", "zero-shot", "rules"]:
        """As of Agent."""
        env = self.config.env
        return "trained" if game == env.game and P in env.players else "zero-shot"

    @property
    def training(self) -> str:
        """The same for runs that differ in nothing but the seed."""
        settings = self.config.as_dict()
        for part, name in (free.split(".") for free in (*FREE, "run.seed")):
            del settings[part][name]
        return json.dumps(settings, sort_keys=True)


def read_learnt(folders: Sequence[Path]) -> list[Learnt]:
    """The agents of runs, in the order of their folders.

    Args:
        folders: of runs, or of several runs each.

    Raises:
        ValueError: there is no run, it has saved nothing, or it is named twice.
    """
    paths = [path.resolve() for folder in folders for path in _runs_in(folder)]
    if twice := [path for number, path in enumerate(paths) if path in paths[:number]]:
        raise ValueError(f"expected each run once, but got {twice[0]} again")
    agents = []
    for path, name in zip(paths, _names(paths), strict=True):
        config, net = read_agent(path)
        player = NetworkPlayer(net.eval(), name)
        agents.append(Learnt(name, player, fingerprint(net), path, config))
    return agents


def trainings(agents: Sequence[Learnt]) -> list[list[Learnt]]:
    """Agents of two runs or more that differ in nothing but the seed, together."""
    found: dict[str, list[Learnt]] = {}
    for agent in agents:
        found.setdefault(agent.training, []).append(agent)
    return [some for some in found.values() if len(some) > 1]


def fingerprint(net: HanabiNet) -> str:
    """Sixteen hexadecimal digits that change with the network's config or weights."""
    digest = hashlib.sha256(repr(net.config).encode())
    for name, weight in net.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


class Pairings:
    """Plays pairings, each once: scores stay in a folder, from where a stopped evaluation goes on.

    Args:
        game: its name.
        decks: that every pairing plays in each of its seatings.
        seed: of the decks, which are none that a run has learnt from.
        folder: of the scores: a file for each pairing, whose name changes with all that decides it
            but the program's code.
    """

    def __init__(self, game: str, decks: int, seed: int, folder: Path) -> None:
        self.game, self.decks, self.seed, self.folder = game, decks, seed, folder
        self._scores: dict[tuple[str, str, int], Scores] = {}

    def scores(self, host: Agent, guest: Agent, P: int) -> Scores:
        """Of the guest at the host's table of P, deck by deck, over all seatings."""
        if P == 2:  # one table, whoever is called the host
            host, guest = sorted((host, guest), key=lambda agent: agent.fingerprint)
        key = host.fingerprint, guest.fingerprint, P
        if key not in self._scores:
            self._scores[key] = self._kept(host, guest, P)
        return self._scores[key]

    def _kept(self, host: Agent, guest: Agent, P: int) -> Scores:
        rules = Rules.of(self.game, P)
        parts = (host.fingerprint, guest.fingerprint, rules, EVALUATION, self.seed, self.decks)
        number = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        path = self.folder / f"{P}p-{number}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return Scores(**kept)
        seeds = [(EVALUATION, self.seed, deck) for deck in range(self.decks)]
        scores = Scores.mean(
            [Scores.of(play_games(rules, seeds, players)) for players in _seatings(host, guest, P)]
        )
        with whole_file(path) as temporary:
            np.savez_compressed(temporary, **scores._asdict())
        return scores


def _seatings(host: Agent, guest: Agent, P: int) -> list[list[Player]]:
    """The players by seat, for each seat that the guest takes; once if it is its own host."""
    if host.fingerprint == guest.fingerprint:
        return [[host.player] * P]
    return [
        [guest.player if seat == taken else host.player for seat in range(P)] for taken in range(P)
    ]


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it; read_agent complains where there is none."""
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    return [folder] if (folder / "config.json").is_file() or not inside else inside


def _names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as short as they are unlike each other and the rule agents' names."""
    parts = [path.parts[1:] for path in paths]
    for length in range(1, 1 + max(map(len, parts), default=1)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names) and not set(names) & set(PARTNERS):
            break
    return names
