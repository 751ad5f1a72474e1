"""Games that nobody played, for those who only keep them and learn from them: no engine needed."""

import numpy as np

from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.text import FIELDS, WORD_IDS, WORDS, observation_places

POSSIBLE = [[WORD_IDS[word] for word in WORDS[field]] for field in FIELDS]


def view(rules, length, style, rng):
    """Words that may stand where they stand."""
    possible = [POSSIBLE[field] for field in observation_places(rules, int(length), style).field]
    draws = rng.random(len(possible))
    return [words[int(draw * len(words))] for words, draw in zip(possible, draws, strict=True)]


def made_up(players=2, number=0, turns=None, game="2c2r", version=0, style="full"):
    """A game with random words, legal moves and rewards, which its arguments decide."""
    rules = Rules.of(game, players)
    rng = np.random.default_rng([number, players])
    turns = int(rng.integers(1, 12)) if turns is None else turns
    H, A = rules.hand_size, len(rules.moves)
    lengths = 12 + rules.colours + 2 * H + (players - 1) * (5 + 3 * H) + rng.integers(0, 4, turns)
    if style == "paper":  # without the deck, last moves and discards
        lengths = np.full(turns, 6 + rules.colours + 2 * H + (players - 1) * (1 + 3 * H))
    legal = rng.random((turns, A)) < 0.5
    actions = rng.integers(A, size=turns)
    legal[np.arange(turns), actions] = True
    rewards = rng.integers(0, 2, turns).astype(np.float32)
    bomb = bool(rng.random() < 0.3)
    score = int(rewards[:-1].sum())
    rewards[-1] = -score if bomb else rewards[-1]
    keep_score = score if bomb else int(rewards.sum())
    return Episode(
        rules=rules,
        number=number,
        version=version,
        words=np.concatenate([view(rules, T, style, rng) for T in lengths]).astype(np.int16),
        lengths=lengths.astype(np.int16),
        actions=actions.astype(np.int16),
        legal=legal,
        explored=rng.random(turns) < 0.1,
        rewards=rewards,
        keep_score=keep_score,
        strict_score=0 if bomb else keep_score,
    )


def same(one, other):
    """Whether two episodes are equal, array by array."""
    mine, theirs = vars(one), vars(other)
    return all(
        np.array_equal(mine[name], theirs[name])
        and getattr(mine[name], "dtype", None) == getattr(theirs[name], "dtype", None)
        for name in mine
    )
