"""The encoder: texts to vectors, by FoX blocks over their words or over their clauses.

The texts of a batch say the same again and again. What a word or a clause means by itself, and what
the blocks make of it before it looks around, is computed once for all places where it stands.

Legend: R texts, T places of the longest (words or clauses), U distinct vectors, W words, d width,
H heads, D head size.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fox.agents.hanabi.rules import MAX_PLAYERS
from fox.agents.hanabi.text import FIELDS, VOCABULARY, WORD_IDS, WORDS, Texts
from fox.kernels import forgetting_attention
from fox.model import Block
from fox.policy import FoxPolicy


class Sequences(NamedTuple):
    """Sequences of vectors, padded on the left: they end together.

    Attributes:
        vectors: (U, d), the distinct ones.
        number: (R, T) int64, which of them stands where; any at padding.
        start: (R,) int64, padding of each sequence.
    """

    vectors: Tensor
    number: Tensor
    start: Tensor

    def sums(self) -> Tensor:
        """(R, d), of each sequence."""
        place = torch.arange(self.number.shape[1], device=self.number.device)
        real = (place >= self.start[:, None]).to(self.vectors.dtype)
        return F.embedding_bag(self.number, self.vectors, mode="sum", per_sample_weights=real)

    def then(self, last: Tensor) -> "Sequences":
        """The same, each with one vector more: last is (R, d)."""
        number = torch.arange(len(last), device=last.device) + len(self.vectors)
        return Sequences(
            torch.cat([self.vectors, last]),
            torch.cat([self.number, number.unsqueeze(1)], 1),
            self.start,
        )


class ClauseVectors(nn.Module):
    """mlp(sum over the words of a clause of J[word, field] + K[offset of the clause])."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.pair = nn.Embedding(int(pairs().max()) + 1, d)
        self.offset = nn.Embedding(MAX_PLAYERS, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
        for table in (self.pair, self.offset):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, texts: Texts) -> Sequences:
        """Texts -> a vector for each of their clauses."""
        device = self.pair.weight.device
        pair, first, offset, number, start = (
            torch.from_numpy(part).to(device) for part in _distinct_clauses(texts)
        )
        words = F.embedding_bag(pair, self.pair.weight, first, mode="sum")
        return Sequences(self.mlp(words + self.offset(offset)), number, start)


class WordVectors(nn.Module):
    """E[word] + F[field] + K[offset]."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.word = nn.Embedding(len(VOCABULARY), d)
        self.field = nn.Embedding(len(FIELDS), d)
        self.offset = nn.Embedding(MAX_PLAYERS, d)
        for table in (self.word, self.field, self.offset):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, texts: Texts) -> Sequences:
        """Texts -> a vector for each of their words."""
        device = self.word.weight.device
        word, field, offset, number, start = (
            torch.from_numpy(part).to(device) for part in _distinct_words(texts)
        )
        vectors = self.word(word) + self.field(field) + self.offset(offset)
        return Sequences(vectors, number, start)


class LastFeature(nn.Module):
    """What FoX blocks make of the end of each sequence, where they have seen all of it.

    The last block computes the end alone: nobody reads what it would make of the other places.

    Args:
        trunk: whose blocks have neither a token shift nor RoPE.
    """

    def __init__(self, trunk: FoxPolicy) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, sequences: Sequences) -> Tensor:
        """R sequences -> (R, d)."""
        vectors, number, start = sequences
        *before, last = self.trunk.model.layers
        assert isinstance(last, Block)
        if before:
            x = vectors[number]
            for block in before:
                x = block(x, seq_start=start)
            vectors = x.flatten(0, 1)
            number = torch.arange(len(vectors), device=number.device).view(number.shape)
        normed = last.attn_norm(vectors)
        q, k, v, log_f, _, _ = last.attn.heads(normed.unsqueeze(0))
        assert log_f is not None
        # One gather, (R T, 2 H D + H), whose gradient is the slowest part of all.
        parts = [part.squeeze(0).flatten(1) for part in (k, v, log_f)]
        gathered = torch.cat(parts, 1).index_select(0, number.flatten()).unflatten(0, number.shape)
        k, v, log_f = gathered.split([part.shape[1] for part in parts], -1)
        k, v = (part.unflatten(-1, q.shape[2:]) for part in (k, v))
        end = number[:, -1:]
        out = forgetting_attention(
            q[0, end], k, v, log_f, seq_start=start, backend=last.attn.backend
        )
        assert isinstance(out, Tensor)
        x = vectors[end] + last.attn.output(out, normed[end])
        return self.trunk.model.norm(x + last.mlp(last.mlp_norm(x))).squeeze(1)


@cache
def pairs() -> np.ndarray:
    """(words, fields) int64, a number for each word and each field where it may stand; else -1."""
    possible = np.zeros((len(VOCABULARY), len(FIELDS)), bool)
    for field, name in enumerate(FIELDS):
        possible[[WORD_IDS[word] for word in WORDS[name]], field] = True
    numbers = np.full(possible.shape, -1)
    numbers[possible] = np.arange(possible.sum())
    return numbers


@cache
def _marks() -> tuple[np.ndarray, np.ndarray]:
    """A random number of 64 bits for each pair, and for each offset."""
    generator = np.random.default_rng(0)
    pair, offset = (
        generator.integers(2**64, size=size, dtype=np.uint64)
        for size in (pairs().max() + 1, MAX_PLAYERS)
    )
    return pair, offset


class _Clauses(NamedTuple):
    pair: np.ndarray  # (W,) of all distinct clauses
    first: np.ndarray  # (U,) where each begins
    offset: np.ndarray  # (U,)
    number: np.ndarray  # (R, T)
    start: np.ndarray  # (R,)


def _distinct_clauses(texts: Texts) -> _Clauses:
    R, length = texts.words.shape
    real = np.arange(length) < texts.length[:, None]
    pair = pairs()[texts.words[real], texts.field[real]]
    assert pair.min() >= 0, "a word stands where it never does"
    last = texts.clause[:, -1].astype(np.int64)
    T = int(last.max()) + 1
    start = T - 1 - last
    place = ((np.arange(R) * T + start)[:, None] + texts.clause)[real]
    begins = np.flatnonzero(np.diff(place, prepend=-1))
    offset = texts.offset[real][begins].astype(np.int64)
    # Clauses with the same sum of marks are taken for one: of a million different ones any two are
    # mixed up with a chance of 3e-8.
    pair_mark, offset_mark = _marks()
    mark = np.add.reduceat(pair_mark[pair], begins) + offset_mark[offset]
    _, which, inverse = np.unique(mark, return_index=True, return_inverse=True)
    number = np.zeros(R * T, np.int64)
    number[place[begins]] = inverse
    lengths = np.diff(begins, append=len(pair))[which]
    first = lengths.cumsum() - lengths
    words = np.arange(lengths.sum()) + np.repeat(begins[which] - first, lengths)
    return _Clauses(pair[words], first, offset[which], number.reshape(R, T), start)


class _Words(NamedTuple):
    word: np.ndarray  # (U,)
    field: np.ndarray  # (U,)
    offset: np.ndarray  # (U,)
    number: np.ndarray  # (R, T)
    start: np.ndarray  # (R,)


def _distinct_words(texts: Texts) -> _Words:
    T = texts.words.shape[1]
    start = T - texts.length.astype(np.int64)
    pair = pairs()[texts.words, texts.field]
    assert pair.min() >= 0, "a word stands where it never does"
    key = pair * MAX_PLAYERS + texts.offset
    key = np.take_along_axis(key, (np.arange(T) - start[:, None]) % T, 1)  # padding to the left
    there = np.zeros((pairs().max() + 1) * MAX_PLAYERS, bool)
    there[key] = True
    pair, offset = np.divmod(np.flatnonzero(there), MAX_PLAYERS)
    word, field = (part[pair] for part in np.nonzero(pairs() >= 0))
    return _Words(word, field, offset, (there.cumsum() - 1)[key], start)
