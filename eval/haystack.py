"""Prompts with something hidden in them: a riddle in a text of an exact number of tokens."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from fox.corpus import Document

PROTOCOL = 2  # goes up when a key gets another prompt: stored answers are then void
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class Key(NamedTuple):
    """Which prompt: its task, tokens, place of the needle (None: any), number, needle or not."""

    task: str
    length: int
    depth: float | None
    seed: int
    planted: bool


@dataclass(frozen=True)
class Riddle:
    """What is hidden in a text and asked for at its end.

    Attributes:
        needles: a line each, in their order in the text.
        depths: where each stands, from 0 (first line) to 1 (last line), ascending.
        question: the end of the prompt.
        answer: how the right continuation begins.
        expected: strings that a right continuation holds.
        introduction: the beginning of the prompt.
        lines: what the needles are hidden in; the documents of the haystack if None.
        candidates: ids of the possible answers where the answer is one token, else empty.
    """

    needles: Sequence[str]
    depths: Sequence[float]
    question: str
    answer: str
    expected: Sequence[str]
    introduction: str = ""
    lines: Iterable[str] | None = None
    candidates: Sequence[int] = ()


@dataclass(frozen=True)
class Prompt:
    """A riddle as token ids.

    Attributes:
        key: what it was made for.
        position: tokens before the first needle; None without needle.
        ids: `length` of them.
        answer: the ids that should come next.
        expected, candidates: as of the riddle.
    """

    key: Key
    position: int | None
    ids: list[int]
    answer: list[int]
    expected: Sequence[str]
    candidates: Sequence[int]


class Haystack:
    """Documents as one long text per seed, and prompts cut from it.

    Args:
        tokenizer: of the model under test.
        documents: the text; each seed joins them in another order.
        bos: the token that begins every prompt, if the model has one.
    """

    def __init__(
        self, tokenizer: Tokenizer, documents: Sequence[Document], bos: int | None = None
    ) -> None:
        self.tokenizer, self.documents = tokenizer, documents
        self.start = [] if bos is None else [bos]
        vocabulary = sorted(tokenizer.get_vocab().values())
        self.decoded = {id: tokenizer.decode([id], skip_special_tokens=False) for id in vocabulary}
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

    def prompt(self, key: Key, riddle: Riddle) -> Prompt:
        """The prompt of exactly key.length tokens that hides the riddle's needles, if planted.

        The text depends on the seed alone. A prompt's control has the same text without the
        needles, and at its end as many more tokens of it as they had.

        Raises:
            ValueError: a length that leaves no room for text.
        """
        head, needles, tail, answer = self._parts(riddle, key.planted)
        fixed = len(head) + len(tail) + sum(map(len, needles))
        if key.length <= fixed:
            raise ValueError(
                f"expected prompts longer than needles and questions, {fixed} tokens in the task "
                f"{key.task}, but got length {key.length}: raise --lengths"
            )
        text = self._text(riddle.lines, key.seed, key.length - fixed)
        places = [self._line_end(text, depth) for depth in riddle.depths] if needles else []
        for place, needle in reversed(list(zip(places, needles, strict=True))):
            text = text[:place] + needle + text[place:]
        position = len(head) + places[0] if places else None
        return Prompt(key, position, head + text + tail, answer, riddle.expected, riddle.candidates)

    def fixed_tokens(self, riddle: Riddle) -> int:
        """Tokens of a prompt that are no text: introduction, needles and question."""
        head, needles, tail, _ = self._parts(riddle, planted=True)
        return len(head) + len(tail) + sum(map(len, needles))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _parts(
        self, riddle: Riddle, planted: bool
    ) -> tuple[list[int], list[list[int]], list[int], list[int]]:
        head = self.start + self.ids(riddle.introduction)
        needles = [self.ids(f"\n{needle}\n") for needle in riddle.needles] if planted else []
        question, whole = self.ids(riddle.question), self.ids(riddle.question + riddle.answer)
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(question, whole, strict=False))
        shared = len(list(pairs))  # a question's last tokens may merge with the answer's first
        return head, needles, whole[:shared], whole[shared:]

    def _document(self, number: int) -> list[int]:
        if number not in self.encoded:
            self.encoded[number] = self.ids(self.documents[number].text.rstrip("\n") + "\n")
        return self.encoded[number]

    def _text(self, lines: Iterable[str] | None, seed: int, tokens: int) -> list[int]:
        """The first tokens of the lines, or of the documents in the seed's order."""
        if lines is None:
            order = list(range(len(self.documents)))
            seeded("haystack", seed).shuffle(order)
            parts: Iterable[list[int]] = map(self._document, order)
        else:
            parts = (self.ids(f"\n{line}") for line in lines)
        text: list[int] = []
        for part in parts:
            text += part
            if len(text) >= tokens:
                return text[:tokens]
        raise AssertionError("check() comes first")

    def _line_end(self, text: list[int], depth: float) -> int:
        """The last end of a line or sentence at or before the depth."""
        if depth == 1:
            return len(text)
        position = int(len(text) * depth)
        while position > 0 and not self._parted(text[position - 1], text[position]):
            position -= 1
        return position

    def _parted(self, left: int, right: int) -> bool:
        """Whether a line or a sentence ends between the two tokens."""
        before, after = self.decoded[left], self.decoded[right]
        if before.endswith("\n") or after.startswith("\n"):
            return True
        starts_word = after.startswith(" ") or self._piece(right).startswith("▁")
        return before.endswith((".", "!", "?")) and starts_word

    def _piece(self, id: int) -> str:
        """The token as stored: some decoders drop the space that a word begins with."""
        return self.tokenizer.id_to_token(id) or ""


def draw_name(rng: random.Random) -> str:
    """A word that is in no dictionary: koluma."""
    return "".join(rng.choice(letters) for letters in (CONSONANTS, VOWELS) * 3)


def seeded(*parts: Any) -> random.Random:
    """Random numbers that depend on the parts alone."""
    return random.Random(" ".join(map(str, parts)))
