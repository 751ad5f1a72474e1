"""The riddles of the needle test: the paper's statement, and an assignment for tiny models."""

import re
from dataclasses import dataclass

from fox.eval.haystack import Haystack, Key, Riddle, draw_name, seeded

# The needle of the FoX paper (Lin et al., ICLR 2025), after Kamradt's test of 2023 and LongAlign.
NEEDLE = (
    "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park "
    "on a sunny day."
)
QUESTION = "What is the best thing to do in San Francisco?"
CUE = "The best thing to do in San Francisco is"
INSTRUCTION = "A piece of information is hidden in the text above. Here is a question about it."

CANDIDATES = 16
WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True)
class Statement:
    """A sentence in the text, and a question whose answer it completes.

    Args:
        needle: the sentence; what follows the cue in it is the answer.
        question: what it answers.
        cue: how the needle begins, and how the answer does.
        easy: the needle comes with question and cue, as at the end of the prompt.

    Raises:
        ValueError: the needle does not begin with the cue, or ends with it.
    """

    needle: str
    question: str
    cue: str
    easy: bool

    def __post_init__(self) -> None:
        if not self.needle.startswith(self.cue) or not self.phrase.strip():
            raise ValueError(
                "expected a needle that begins with the cue and goes on with the answer, but got "
                f"needle {self.needle!r} and cue {self.cue!r}: set both --needle and --cue"
            )

    @property
    def phrase(self) -> str:
        """The answer, with the space before it."""
        return self.needle[len(self.cue) :].rstrip().rstrip(".!?")

    def __call__(self, key: Key) -> Riddle:
        return Riddle(
            needles=[f"{self.question} Answer: {self.needle}" if self.easy else self.needle],
            depths=[key.depth or 0.0],
            question=f"\n{INSTRUCTION}\n{self.question} Answer: {self.cue}",
            answer=self.phrase,
            expected=[self.phrase.strip()],
        )


class Assignment:
    """A made-up name and one of sixteen values: KOLUMA = "river".

    The name depends on length, depth and seed. The values to choose from are always the same, and
    the seeds of a cell ask for one after the other: a model that likes one of them is right in a
    sixteenth of the prompts, and not by luck in half of a cell.

    Args:
        haystack: its tokenizer says which words are one token.
    """

    def __init__(self, haystack: Haystack) -> None:
        self.haystack = haystack
        words = [(id, text) for id, text in haystack.decoded.items() if WORD.fullmatch(text)]
        seeded("words").shuffle(words)
        self.words = dict(words)

    def __call__(self, key: Key) -> Riddle:
        place = f"{key.length} {key.depth:.6f}"
        name = draw_name(seeded("name", place, key.seed)).upper()
        question = f'\n{name} = "'
        values = self._values(question)
        first = seeded("value", place).randrange(CANDIDATES)
        value = self.words[values[(first + key.seed) % CANDIDATES]]
        return Riddle(
            needles=[f'{name} = "{value}"'],
            depths=[key.depth or 0.0],
            question=question,
            answer=value,
            expected=[value],
            candidates=values,
        )

    def _values(self, question: str) -> list[int]:
        """CANDIDATES words that are one token right after the question."""
        start, values = self.haystack.ids(question), []
        for id, word in self.words.items():
            if self.haystack.ids(f'{question}{word}"')[: len(start) + 1] == [*start, id]:
                values.append(id)
            if len(values) == CANDIDATES:
                return values
        raise ValueError(
            f"expected a tokenizer with {CANDIDATES} words of one token, but found {len(values)}: "
            "the assignment mode needs a larger vocabulary"
        )
