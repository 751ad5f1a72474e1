"""Other-Play: games are learnt from as if every seat saw the colours under other names.

They are played under the true names; what the learner reads of them is renamed, each time anew.
A convention that hangs on the name of a colour ("red means: play it") then fails, since the partner
does not know what is red to me; what is left are conventions that strangers share. One renaming of
the whole game would not do: it is but another deck, in which all seats still agree on the names.

Legend: R rows, S seats of all games, C colours, V words, A moves.

Source: Hu et al., "Other-Play" for Zero-Shot Coordination, 2020.
"""

import re
from functools import cache
from itertools import permutations
from math import factorial

import numpy as np
import torch

from fox.agents.hanabi.batch import Batch, Group
from fox.agents.hanabi.rules import COLOURS, Rules
from fox.agents.hanabi.text import FIELDS, VOCABULARY, WORD_IDS

_SORTED = [FIELDS.index("firework"), FIELDS.index("discarded")]  # by colour


def renamed_at_random(batch: Batch, generator: np.random.Generator) -> Batch:
    """A batch in which each seat of each game sees colours of its own, drawn by the generator."""
    C = batch.groups[0].rules.colours
    return renamed(batch, generator.integers(factorial(C), size=len(batch.own)))


def renamed(batch: Batch, which: np.ndarray) -> Batch:
    """A batch in which seats see other colours, in their views, moves and legal moves.

    Args:
        batch: games of the same colours.
        which: (S,) int64, for each row of batch.own a number below C!, of the permutation in the
            order of itertools.permutations: its c-th element is what they see for colour c.
    """
    C, texts = batch.groups[0].rules.colours, batch.texts
    assert all(group.rules.colours == C for group in batch.groups)
    row_which = which[batch.place.numpy() // batch.own.shape[1]]  # (R,)
    words = _word_table(C)[row_which[:, None], texts.words]
    # Fireworks and discards stand by colour and rank, which is also the order of the vocabulary.
    listed = np.isin(texts.field, _SORTED)
    row, _ = listed.nonzero()
    block = 2 * row + (texts.field[listed] == _SORTED[1])
    words[listed] = np.sort(block * len(VOCABULARY) + words[listed]) % len(VOCABULARY)
    groups = [_group(group, row_which[group.rows]) for group in batch.groups]
    return batch._replace(texts=texts._replace(words=words), groups=groups)


def _group(group: Group, which: np.ndarray) -> Group:
    seen = torch.from_numpy(_move_table(group.rules)[which])  # (N, A)
    a_t = seen.gather(1, group.a_t[:, None]).squeeze(1)
    legal_t = torch.zeros_like(group.legal_t).scatter(1, seen, group.legal_t)
    return group._replace(a_t=a_t, legal_t=legal_t)


@cache
def _word_table(C: int) -> np.ndarray:
    """(C!, V) int16, what each word becomes."""
    rows = [[WORD_IDS[_word(word, seen)] for word in VOCABULARY] for seen in permutations(range(C))]
    return np.array(rows, np.int16)


def _word(word: str, seen: tuple[int, ...]) -> str:
    """A word with the colours renamed; colours that are not in play stay as they are."""
    names = dict(zip(COLOURS, (COLOURS[colour] for colour in seen), strict=False))
    word = re.sub("|".join(COLOURS), lambda match: names.get(match[0], match[0]), word)
    if not word.startswith("can:"):
        return word
    return "can:" + "|".join(sorted(word[4:].split("|"), key=(*COLOURS, *"12345").index))


@cache
def _move_table(rules: Rules) -> np.ndarray:
    """(C!, A) int64, what each move becomes."""
    tables = []
    for seen in permutations(range(rules.colours)):
        moves = (
            move._replace(value=seen[move.value]) if move.kind == "colour" else move
            for move in rules.moves
        )
        tables.append([rules.action_ids[move] for move in moves])
    return np.array(tables, np.int64)
