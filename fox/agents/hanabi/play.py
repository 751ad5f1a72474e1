"""The command `fox-hanabi play`: a game turn by turn in the terminal, and a seat for a person."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Console

from fox.agents.command import as_list
from fox.agents.hanabi.board import HELP, board, move_words
from fox.agents.hanabi.conventions import Convention, Reading
from fox.agents.hanabi.partners import PARTNERS, RulePlayer
from fox.agents.hanabi.player import NetworkPlayer, NetworkSeat
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.run import EVALUATION, read_agent
from fox.agents.hanabi.table import Player, Seat, Turn, play_games

PERSON = "you"


def play(
    agent: str,
    *,
    game: str | None = None,
    players: int | None = None,
    partners: list[str] | str | None = None,
    seat: int | None = None,
    seed: int = 0,
) -> None:
    """Show a game turn by turn, with the agent's score of every move; or play in it.

    A spectator sees all cards, how a network values each legal move, and by which convention a rule
    agent moves. A person sees what their seat sees: no scores, which would tell their cards.

    Args:
        agent: folder of a run, or name of a rule agent.
        game: full, 3c3r, 2c3r or 2c2r; if not given that of the run, full for a rule agent.
        players: how many; if not given the first number that the run learnt, 2 for a rule agent.
        partners: who takes the seats that are left, each like `agent`: one, or a list
            '[piers, iggi]'; the agent if not given.
        seat: of a person, from 0 on; nobody if not given. The others sit around in their order.
        seed: of the deck and of all that players draw.

    Raises:
        ValueError: there is no such agent, or what is asked for does not fit together.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, but got {seed}")
    first, learnt_game, learnt_players = _player(agent)
    rules = Rules.of(game or learnt_game, learnt_players if players is None else players)
    P = rules.players
    if seat is not None and not 0 <= seat < P:
        raise ValueError(f"seat must lie in 0..{P - 1}, but got {seat}")
    left = P - 1 if seat is None else P - 2
    chosen = [agent] * left if partners is None else as_list(partners)
    if len(chosen) != left:
        raise ValueError(
            f"expected partners for the {left} seats that are left, but got {len(chosen)}"
        )
    others = [first if name == agent else _player(name)[0] for name in chosen]
    seated, console = [first, *others], Console(highlight=False, markup=False)
    names = [player.name for player in seated]
    if seat is None:
        seated = [Watched(player, names, console) for player in seated]
    else:
        names.insert(seat, PERSON)
        seated.insert(seat, Person(names, console, input))
    console.print(HELP)
    try:
        [over] = play_games(rules, [(EVALUATION, seed, 0)], seated)
    except EOFError:  # as Ctrl-C: nobody answers any more
        console.print()
        raise KeyboardInterrupt from None
    console.print()
    looks = seat or 0
    console.print(board(over.view(looks), names, over.hand(looks)))
    console.print(
        f"over after {over.turn} turns: strict score {over.strict_score}, "
        f"points kept {over.keep_score}, of {rules.max_score}"
    )


class Person:
    """A player at the keyboard, who is shown the view of their seat, and asked; and that seat.

    Args:
        names: of the players by seat.
        console: to show on.
        ask: is given a prompt, returns a line.
    """

    name = PERSON
    sees_hand = False

    def __init__(self, names: Sequence[str], console: Console, ask: Callable[[str], str]) -> None:
        self.names, self.console, self.ask = names, console, ask

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "Person":
        """Takes the seat of one game."""
        return self

    def act(self, turns: Sequence[Turn]) -> list[int]:
        """Asks until the answer is the number of a legal move."""
        [turn] = turns
        legal, moves = turn.view.legal, turn.view.rules.moves
        self.console.print()
        self.console.print(board(turn.view, self.names))
        choices = [f"{n}: {move_words(moves[action])}" for n, action in enumerate(legal, start=1)]
        self.console.print(Columns(choices, padding=(0, 3), equal=True, column_first=True))
        while True:
            answer = self.ask(f"your move, 1 to {len(legal)}: ").strip()
            if answer.isdecimal() and 1 <= int(answer) <= len(legal):
                return [legal[int(answer) - 1]]
            self.console.print(f"expected a number from 1 to {len(legal)}, but got {answer!r}")


class Watched:
    """Lets a player play, and shows spectators the table, how it decides, and what.

    The player is shown no more than without it.

    Args:
        player: who plays.
        names: of the players by seat.
        console: to show on.
    """

    sees_hand = True

    def __init__(self, player: Player, names: Sequence[str], console: Console) -> None:
        self.name, self.player, self.names, self.console = player.name, player, names, console

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "WatchedSeat":
        """Takes a seat of one game."""
        fired: list[str] = []
        player = self.player
        if isinstance(player, RulePlayer):
            conventions = [_noting(convention, fired) for convention in player.conventions]
            player = RulePlayer(player.name, conventions)
        return WatchedSeat(self, player.sit(rules, generators), fired)


class WatchedSeat:
    """A seat of a Watched player."""

    def __init__(self, watched: Watched, seat: Seat, fired: list[str]) -> None:
        self.watched, self.seat, self.fired = watched, seat, fired

    def act(self, turns: Sequence[Turn]) -> list[int]:
        """What the player does."""
        [turn] = turns
        moves, console = turn.view.rules.moves, self.watched.console
        console.print()
        console.print(board(turn.view, self.watched.names, turn.hand))
        if not self.watched.player.sees_hand:
            turn = turn._replace(hand=None)
        why = ""
        if isinstance(self.seat, NetworkSeat):
            values = self.seat.values([turn])[0]
            best = sorted(turn.view.legal, key=lambda action: -values[action])
            action = best[0]
            scores = [f"{values[action]:+.3f} {move_words(moves[action])}" for action in best]
            console.print(Columns(scores, padding=(0, 3), equal=True, column_first=True))
        else:
            [action] = self.seat.act([turn])
            if isinstance(self.watched.player, RulePlayer):
                why = f", by {self.fired.pop() if self.fired else 'chance'}"
        seat = turn.view.seat
        console.print(f"{seat} {self.watched.name}: {move_words(moves[action])}{why}", style="bold")
        return [action]


def _noting(convention: Convention, fired: list[str]) -> Convention:
    """The same convention, which notes its name when it decides."""

    def noting(reading: Reading, generator: np.random.Generator) -> int | None:
        action = convention(reading, generator)
        if action is not None:
            fired.append(_title(convention))
        return action

    return noting


def _title(convention: Convention) -> str:
    if not isinstance(convention, partial):
        return convention.__name__
    settings = ", ".join(f"{name}={value}" for name, value in convention.keywords.items())
    return f"{convention.func.__name__}({settings})"


def _player(name: str) -> tuple[Player, str, int]:
    """A player, and a game and a number of players that suit it."""
    if name in PARTNERS:
        return PARTNERS[name], "full", 2
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(
            f"expected the folder of a run, or a rule agent among {', '.join(PARTNERS)}, "
            f"but got {name!r}"
        )
    config, net = read_agent(folder)
    return NetworkPlayer(net.eval(), folder.resolve().name), config.env.game, config.env.players[0]
