"""At the table every seat moves in turn, on decks that depend on the seeds alone."""

from itertools import chain

import pytest
from samples import NAMED, name

from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import play_games

SEEDS = [(run, number) for run in (7, 8) for number in range(3)]


class Player:
    """Makes random moves, and keeps what it was shown and its first random numbers."""

    def __init__(self, sees_hand=False, choose=None):
        self.name, self.sees_hand, self.seats = "player", sees_hand, []
        self.choose = choose or (lambda legal, generator: generator.choice(legal))

    def sit(self, rules, generators):
        self.seats.append(Chair(self, rules, generators))
        return self.seats[-1]


class Chair:
    def __init__(self, player, rules, generators):
        self.player, self.rules, self.generators, self.calls = player, rules, generators, []
        self.numbers = [generator.integers(2**62) for generator in generators]

    def act(self, turns):
        self.calls.append(list(turns))
        choose = self.player.choose
        return [choose(turn.view.legal, self.generators[turn.game]) for turn in turns]


def first(legal, generator):
    return legal[0]


def last(legal, generator):
    return legal[-1]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", NAMED, ids=name)
def test_seat_t_mod_p_moves_at_turn_t_and_reads_its_own_view(rules):
    players = [Player() for _ in range(rules.players)]
    games = play_games(rules, SEEDS, players)
    seen = [[] for _ in games]
    for seat, player in enumerate(players):
        (chair,) = player.seats
        assert chair.rules == rules
        for round_, turns in enumerate(chair.calls):
            for turn in turns:
                assert turn.view.seat == seat
                assert turn.view.turn == round_ * rules.players + seat
                assert turn.view.mover == 0
                assert turn.view.legal
                seen[turn.game].append(turn.view.turn)
    for game, turns in zip(games, seen, strict=True):
        assert game.over
        assert sorted(turns) == list(range(game.turn)), "nobody is asked in a game that is over"
        assert [event.seat for event in game.events] == [
            turn % rules.players for turn in range(game.turn)
        ]


@pytest.mark.usefixtures("engine")
def test_honest_players_are_not_shown_their_hands_and_cheaters_are():
    rules = Rules.of("2c3r", 3)
    players = [Player(), Player(sees_hand=True), Player()]
    games = play_games(rules, SEEDS, players)
    for seat, player in enumerate(players):
        for turn in chain(*player.seats[0].calls):
            if seat != 1:
                assert turn.hand is None
                continue
            event = games[turn.game].events[turn.view.turn]
            assert len(turn.hand) == len(turn.view.hand)
            assert event.card is None or event.card == turn.hand[event.move.place]


@pytest.mark.usefixtures("engine")
def test_different_players_meet_the_same_decks():
    rules = Rules.of("3c3r", 3)
    dealt = []
    for choose, cheats in [(None, False), (first, False), (last, True), (first, True)]:
        watcher = Player(sees_hand=True)
        play_games(rules, SEEDS, [watcher, Player(cheats, choose), Player(cheats, choose)])
        dealt.append([(turn.hand, turn.view.partners) for turn in watcher.seats[0].calls[0]])
    assert dealt[0] == dealt[1] == dealt[2] == dealt[3]
    assert len(set(dealt[0])) == len(SEEDS)


@pytest.mark.usefixtures("engine")
def test_a_game_is_the_same_alone_and_among_others_and_in_any_order():
    rules = Rules.of("2c3r", 2)

    def moves(seeds):
        return [game.events for game in play_games(rules, seeds, [Player(), Player()])]

    together = moves(SEEDS)
    assert [moves([seed])[0] for seed in SEEDS] == together
    assert moves(SEEDS[::-1]) == together[::-1]
    assert moves([]) == []


@pytest.mark.usefixtures("engine")
def test_every_seat_of_every_game_has_random_numbers_of_its_own_that_repeat():
    rules = Rules.of("2c3r", 3)

    def drawn():
        player = Player()
        play_games(rules, SEEDS, [player] * 3)
        assert len(player.seats) == 3, "one player may sit down several times"
        return [number for chair in player.seats for number in chair.numbers]

    numbers = drawn()
    assert len(set(numbers)) == 3 * len(SEEDS)
    assert numbers == drawn()


def test_as_many_players_are_needed_as_there_are_seats():
    for number in (0, 1, 2, 4):
        with pytest.raises(ValueError, match=f"a player for each of 3 seats, but got {number}$"):
            play_games(Rules.of("2c2r", 3), SEEDS, [Player()] * number)
