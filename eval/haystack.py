"""Prompts for the needle test: real text of an exact number of tokens, with a needle in it."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from fox.corpus import Document

CANDIDATES = 16
PROTOCOL = 1  # goes up when a key gets another prompt: stored answers are then void
CONSONANTS, VOWELS = "BDFGKLMNPRSTVZ", "AEIOU"
WORD = re.compile(r"[a-z]{4,}")

Key = tuple[int, float, int, bool]  # length in tokens, depth, seed, with the needle in it


class Prompt(NamedTuple):
    """A question with its answer; ids, answer and candidates are token ids."""

    key: Key
    position: int | None  # the needle's first token; None without needle
    ids: list[int]
    answer: int
    candidates: list[int]


class Haystack:
    """Documents as one long text per seed, and prompts cut from it.

    Args:
        tokenizer: of the model under test.
        documents: the text; each seed joins them in another order.
    """

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        self.tokenizer, self.documents = tokenizer, documents
        vocabulary = sorted(tokenizer.get_vocab().values())
        decoded = {id: tokenizer.decode([id], skip_special_tokens=False) for id in vocabulary}
        self.line_starts = {id for id, text in decoded.items() if text.startswith("\n")}
        words = [(id, text) for id, text in decoded.items() if WORD.fullmatch(text)]
        random.Random("words").shuffle(words)
        self.words = dict(words)
        self.encoded: dict[int, list[int]] = {}  # by number of the document

    def check(self, length: int) -> None:
        """Raises ValueError if the documents cannot fill `length` tokens."""
        total = 0
        for number in range(len(self.documents)):
            total += len(self._document(number))
            if total >= length:
                return
        raise ValueError(
            f"expected at least {length:,} tokens of text, but the {len(self.documents)} documents "
            f"hold {total:,}: lower --lengths or give more text with --files"
        )

    def prompt(self, key: Key) -> Prompt:
        """The prompt of exactly `length` tokens for (length, depth, seed, planted).

        The text depends on the seed alone; the name on length, depth and seed; the values to
        choose from are always the same, and the seeds of a cell ask for one after the other: a
        model that likes one of them is right in a sixteenth of the prompts, and not by luck in
        half of a cell. A prompt and its control differ in the needle alone.

        Raises:
            ValueError: too few words of one token, or a length that leaves no room for text.
        """
        length, depth, seed, planted = key
        first = random.Random(f"value {length} {depth:.6f}").randrange(CANDIDATES)
        rng = random.Random(f"name {length} {depth:.6f} {seed}")
        name = "".join(rng.choice(letters) for letters in (CONSONANTS, VOWELS) * 3)
        question = self._ids(f'\n{name} = "')
        values = self._values(question, name)
        answer = list(values)[(first + seed) % CANDIDATES]
        needle = values[answer] if planted else []
        room = length - len(needle) - len(question)
        if room < 1:
            raise ValueError(
                f"expected prompts longer than needle and question, {length - room} tokens here, "
                f"but got length {length}"
            )
        text = self._text(seed, room)
        position = None
        if planted:
            position = self._line_end(text, depth)
            text = text[:position] + needle + text[position:]
        return Prompt(key, position, text + question, answer, list(values))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _document(self, number: int) -> list[int]:
        if number not in self.encoded:
            self.encoded[number] = self._ids(self.documents[number].text.rstrip("\n") + "\n")
        return self.encoded[number]

    def _values(self, question: list[int], name: str) -> dict[int, list[int]]:
        """CANDIDATES words that are one token right after the question, each with its needle."""
        values: dict[int, list[int]] = {}
        for word in self.words:
            needle = self._ids(f'\n{name} = "{self.words[word]}"')
            if needle[: len(question) + 1] == [*question, word]:
                values[word] = needle
            if len(values) == CANDIDATES:
                return values
        raise ValueError(
            f"expected a tokenizer with {CANDIDATES} words of one token, but found {len(values)}: "
            "the needle test needs a larger vocabulary"
        )

    def _text(self, seed: int, tokens: int) -> list[int]:
        order = list(range(len(self.documents)))
        random.Random(f"haystack {seed}").shuffle(order)
        text: list[int] = []
        for number in order:
            text += self._document(number)
            if len(text) >= tokens:
                return text[:tokens]
        raise AssertionError("check() comes first")

    def _line_end(self, text: list[int], depth: float) -> int:
        """The last line end at or before the depth; the needle itself begins with a newline."""
        if depth == 1:
            return len(text)
        position = int(len(text) * depth)
        while position > 0 and text[position] not in self.line_starts:
            position -= 1
        return position
