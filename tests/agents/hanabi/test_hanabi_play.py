"""fox-hanabi play shows a game as it is, and a person no more than their seat sees."""

import builtins
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from samples import played
from saved_runs import save_run

from fox.agents.hanabi.board import board, event_words, move_words
from fox.agents.hanabi.cli import main
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.partners import PARTNERS
from fox.agents.hanabi.play import Person, Watched, play
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.rules import COLOURS, LETTERS, Card, Move, Rules
from fox.agents.hanabi.run import EVALUATION, read_agent
from fox.agents.hanabi.table import Turn, play_games
from fox.agents.hanabi.view import Event

pytestmark = pytest.mark.usefixtures("engine")
RULES = Rules.of("2c3r", 3)
NAMES = ("ann", "bob", "cleo")
CARD = re.compile(rf"(?:{'|'.join(COLOURS)})\d")
SCORED = re.compile(
    r"([+-]\d+\.\d{3}) (discard slot\d|play slot\d|tell \+\d (?:rank \d|red|yellow))"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "mini", 0)


def network(run):
    _, net = read_agent(Path(run))
    return NetworkPlayer(net, "mini")


class Keyboard:
    """Types lines, raises those that are exceptions, and is closed after the last."""

    def __init__(self, lines):
        self.lines, self.prompts = list(lines), []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def type_lines(monkeypatch):
    def type_lines(*lines):
        keyboard = Keyboard(lines)
        monkeypatch.setattr(builtins, "input", keyboard)
        return keyboard

    return type_lines


def text_of(console, show):
    with console.capture() as capture:
        show(console)
    return capture.get()


def shown(*arguments):
    """A board as plain text, line by line."""
    console = Console(width=100, color_system=None)
    return text_of(console, lambda to: to.print(board(*arguments))).splitlines()


def row_of(lines, seat):
    """The two lines of a seat's hand."""
    (at,) = (number for number, line in enumerate(lines) if f" {seat} {NAMES[seat]} " in line)
    return lines[at], lines[at + 1]


@pytest.mark.parametrize("seat", range(3))
def test_a_spectator_sees_every_hand_and_what_its_owner_knows(seat):
    for game in played(RULES, seed=seat):
        view = game.view(seat)
        lines = shown(view, NAMES, game.hand(seat))
        for other in range(3):
            cards, known = row_of(lines, other)
            k = (other - seat) % 3
            assert cards.split()[0] == (f"+{k}" if k else "me")
            assert CARD.findall(cards) == [str(card) for card in game.hand(other)]
            told = [seen.knowledge for seen in view.partners[k - 1]] if k else view.hand
            words = known.split()
            assert len(words) == 2 * len(told)
            for knowledge, colours, ranks in zip(told, words[::2], words[1::2], strict=True):
                assert (colours[0] == "[") == (knowledge.colour is not None)
                assert (ranks[0] == "[") == (knowledge.rank is not None)
                assert colours.strip("[]") == "".join(LETTERS[c] for c in knowledge.colours)
                assert ranks.strip("[]") == "".join(map(str, knowledge.ranks))
    assert game.over


def test_a_board_tells_tokens_fireworks_discards_and_the_last_moves_in_order():
    for game in played(RULES, seed=1):
        lines = shown(game.view(0), NAMES, game.hand(0))
        clues = game.view(0).clues
        assert lines[0].startswith(
            f"turn {game.turn}   clues {clues} of 4   lives {game.lives} of 2 "
        )
        left = game.turns_left
        deck = f"deck {game.view(0).deck}" if left is None else f"turns left {left}"
        assert lines[0].endswith(deck)
        red, yellow = game.fireworks
        points = f"points {game.keep_score} of 6"
        assert lines[1] == f"fireworks  red {red}  yellow {yellow}   {points}"
        discards = [(card, int(n or 1)) for card, n in re.findall(r"(\w+\d)(?:x(\d))?", lines[2])]
        cards = [str(card) for card in game.view(0).discards]
        assert discards == [(card, cards.count(card)) for card in sorted(set(cards), key=by_card)]
        last = [f"{e.seat} {NAMES[e.seat]}: {event_words(e, 3)}" for e in game.events[-3:]]
        assert lines[-len(last) :] == last or not last


def by_card(word):
    return COLOURS.index(word[:-1]), word[-1]


def test_moves_are_told_in_words():
    assert move_words(Move("play", 2)) == "play slot2"
    assert move_words(Move("discard", 0)) == "discard slot0"
    assert move_words(Move("colour", 1, 2)) == "tell +1 green"
    assert move_words(Move("rank", 3, 4)) == "tell +3 rank 4"
    tell = Event(5, 2, Move("rank", 2, 1), None, True, (0, 3))
    assert event_words(tell, 3) == "tell seat 1 rank 1: slot 0, 3"
    play = Event(5, 2, Move("play", 1), Card(0, 1), True, ())
    assert event_words(play, 3) == "play slot1: red1 fits"
    assert event_words(play._replace(success=False), 3) == "play slot1: red1 misses"
    assert event_words(play._replace(move=Move("discard", 0)), 3) == "discard slot0: red1"


def test_colours_are_those_of_the_cards_on_a_terminal():
    game = next(played(Rules.of("full", 2), seed=0))
    console = Console(width=100, force_terminal=True, color_system="standard")
    text = text_of(console, lambda to: to.print(board(game.view(0), NAMES[:2])))
    for code, name in zip((31, 33, 32, 97, 94), COLOURS, strict=True):
        assert f"\x1b[{code}m  {name} 0" in text


def test_a_person_sees_nothing_of_what_changes_with_their_own_cards():
    deck = list(RULES.deck)
    H = RULES.hand_size
    others = [*deck[-H:], *deck[H:-H], *deck[:H]]  # another hand for seat 0, taken from the deck
    texts = []
    for cards in (deck, others):
        game = Game(RULES, cards)
        assert game.hand(0) == tuple(cards[:H])
        console = Console(width=100, color_system=None)
        person = Person(NAMES, console, Keyboard(["1"]))
        turn = Turn(0, game.view(0), None)
        texts.append(text_of(console, lambda _: person.act([turn])))  # noqa: B023 (called here)
    assert texts[0] == texts[1]
    own, known = row_of(texts[0].splitlines(), 0)
    assert (own.count("?"), CARD.findall(own), known.split()) == (H, [], ["RY", "123"] * H)
    assert not person.sees_hand


@pytest.mark.parametrize("wrong", ["", "x", "0", "12", "-1", "1.0", "²", "play slot0"])
def test_a_wrong_answer_is_told_and_asked_again(wrong):
    game = Game(RULES, RULES.deck)
    console = Console(width=100, color_system=None)
    keyboard = Keyboard([wrong, " 3 "])
    actions = []
    view = game.view(0)
    person = Person(NAMES, console, keyboard)
    told = text_of(console, lambda _: actions.extend(person.act([Turn(0, view, None)])))
    assert actions == [view.legal[2]]
    n = len(view.legal)
    assert keyboard.prompts == [f"your move, 1 to {n}: "] * 2
    assert f"expected a number from 1 to {n}, but got {wrong!r}" in told
    for number, action in enumerate(view.legal, start=1):
        assert f"{number}: {move_words(RULES.moves[action])}" in told


class Spy:
    """A player that remembers what hands it was shown."""

    def __init__(self, sees_hand):
        self.name, self.sees_hand, self.hands = "spy", sees_hand, []

    def sit(self, rules, generators):
        return self

    def act(self, turns):
        self.hands += [turn.hand for turn in turns]
        return [turn.view.legal[0] for turn in turns]


@pytest.mark.parametrize("sees_hand", [False, True])
def test_who_is_watched_is_shown_its_hand_only_if_it_would_be_without(sees_hand):
    spy, console = Spy(sees_hand), Console(width=100, color_system=None)
    text = text_of(
        console,
        lambda _: play_games(RULES, [(1,)], [Watched(spy, NAMES, console)] * 3),
    )
    assert {hand is not None for hand in spy.hands} == {sees_hand}
    own, _ = row_of(text.splitlines()[:12], 0)
    assert len(CARD.findall(own)) == 2  # spectators see it


@pytest.mark.parametrize("name", [*PARTNERS, "network"])
def test_a_watched_game_is_the_game_that_nobody_watches(name, run):
    player = network(run) if name == "network" else PARTNERS[name]
    console = Console(quiet=True)
    (alone,) = play_games(RULES, [(3,)], [player] * 3)
    (watched,) = play_games(RULES, [(3,)], [Watched(player, NAMES, console)] * 3)
    assert watched.events == alone.events


def test_a_network_shows_its_score_of_every_legal_move_and_makes_the_best(run):
    player, game = network(run), Game(RULES, RULES.deck)
    generators = [np.random.default_rng(0)]
    turn = Turn(0, game.view(0), game.hand(0))
    console = Console(width=30, color_system=None)  # one column
    seat = Watched(player, NAMES, console).sit(RULES, generators)
    actions = []
    text = text_of(console, lambda _: actions.extend(seat.act([turn])))
    values = player.sit(RULES, generators).values([turn])[0]
    found = SCORED.findall(text)
    best = sorted(turn.view.legal, key=lambda action: -values[action])
    assert found == [(f"{values[a]:+.3f}", move_words(RULES.moves[a])) for a in best]
    assert actions == best[:1]
    assert f"0 mini: {found[0][1]}" in text


def test_a_rule_agent_tells_which_convention_decided(capsys):
    play("vandenbergh", game="2c3r", players=3, partners=["random", "cheater"], seed=1)
    moves = re.findall(r"^\d (\w+): (.*)$", capsys.readouterr().out, re.M)
    made = [(name, words) for name, words in moves if ":" not in words]  # not a last move
    why = {name: {w.partition(", by ")[2] for n, w in made if n == name} for name, _ in made}
    assert why["random"] == {"chance"}
    assert why["cheater"] == {""}
    conventions = {"play_safe", "tell_playable", "tell_useless", "tell_most"}
    settings = {
        "play_likely(at_least=0.6, spare_life=True)",
        "discard_useless(at_least=0.99)",
        "discard_useless(at_least=0)",
    }
    assert why["vandenbergh"] <= conventions | settings
    assert why["vandenbergh"] & conventions
    assert why["vandenbergh"] & settings


def test_a_game_is_plain_text_repeats_by_its_seed_and_ends_with_both_scores(run, capsys):
    texts = []
    for seed in ("4", "4", "5"):
        main(["play", run, "--players", "3", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert "\x1b" not in texts[0]
    rules = Rules.of("2c2r", 3)
    (over,) = play_games(rules, [(EVALUATION, 4, 0)], [network(run)] * 3)
    assert texts[0].splitlines()[-1] == (
        f"over after {over.turn} turns: strict score {over.strict_score}, "
        f"points kept {over.keep_score}, of 4"
    )
    assert texts[0].count("0 mini") >= over.turn + 1  # a board for each turn, and the last


def test_a_person_plays_to_the_end_and_then_sees_their_cards(run, capsys, type_lines):
    keyboard = type_lines(*["3"] * 40)
    main(["play", run, "--seat", "0", "--players", "2", "--game", "2c3r"])
    out = capsys.readouterr().out
    *before, after = out.split("\nturn ")
    assert len(keyboard.prompts) > 1
    own = [line for part in before for line in part.splitlines() if " 0 you " in line]
    assert len(own) == len(keyboard.prompts)
    assert not CARD.search("".join(own))
    (last,) = (line for line in after.splitlines() if " 0 you " in line)
    assert CARD.search(last)
    assert not SCORED.search(out)  # a network's scores would tell their cards
    assert "strict score" in after
    assert "points kept" in after


def test_others_sit_around_a_person_in_their_order(run, capsys, type_lines):
    type_lines()
    with pytest.raises(SystemExit):
        main(["play", "iggi", "--game", "2c2r", "--players", "4", "--seat", "1",
              "--partners", f"[{run}, piers]"])  # fmt: skip
    out = capsys.readouterr().out
    assert re.findall(r"^\S+ +(\d \w+) ", out, re.M) == ["0 iggi", "1 you", "2 mini", "3 piers"]


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_a_person_may_leave_at_any_time(end, capsys, type_lines):
    type_lines("1", end)
    with pytest.raises(SystemExit) as stop:
        main(["play", "piers", "--game", "2c3r", "--seat", "0"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""


def test_game_and_players_are_those_of_the_run_or_the_full_game_for_two(run, capsys):
    main(["play", run])
    assert "clues 3 of 3   lives 1 of 1   deck 4" in capsys.readouterr().out
    main(["play", "random"])
    assert "clues 8 of 8   lives 3 of 3   deck 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "expected the folder of a run, or a rule agent among internal, outer"),
        (["piers", "--seed", "-1"], "seed must be at least 0, but got -1"),
        (["piers", "--players", "6"], "full is for 2 to 5 players, not 6"),
        (["piers", "--players", "0"], "full is for 2 to 5 players, not 0"),
        (["piers", "--game", "9c9r"], "expected a game among full"),
        (["piers", "--seat", "2"], "seat must lie in 0..1, but got 2"),
        (["piers", "--partners", "[]"], "partners for the 1 seats that are left, but got 0"),
        (["piers", "--seat", "0", "--partners", "[iggi]"], "for the 0 seats that are left"),
        (["piers", "--partners", "nobody"], "but got 'nobody'"),
    ],
)
def test_play_refuses_what_cannot_be(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["play", *arguments])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
