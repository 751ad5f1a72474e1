"""RULER's retrieval and tracing tasks, generated here in words of our own.

The forms are those of Hsieh et al., RULER, 2024 (arXiv 2404.06654), appendix B: what is hidden, how
many, in what, and how much of it is asked for. Sentences, names and values are ours, so scores do
not compare with published ones. Prompts end in the beginning of the answer, for base models; the
paper's solved example before the variables is left out.
"""

import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

from fox.eval.haystack import Key, Riddle, draw_name, seeded

NOISE = "The lamp is lit. The door is open. Snow falls on the hill. Somebody hums a song."

Kind = Literal["number", "code"]


@dataclass(frozen=True)
class Secrets:
    """Made-up names and their secret values, some of which are asked for.

    Args:
        value: what a value is: a "number" of seven digits, or a "code", a random UUID.
        name: what a name is: a "word", or a "code".
        background: the needles are hidden in "noise" (the same line all over), in "text", or
            among "secrets" of other names.
        num_names: names that have values.
        num_values: values of each name.
        num_asked: names that are asked for.
    """

    value: Kind
    name: Literal["word", "code"] = "word"
    background: Literal["noise", "text", "secrets"] = "text"
    num_names: int = 1
    num_values: int = 1
    num_asked: int = 1

    @property
    def has_depth(self) -> bool:
        """Whether one needle alone is asked for, so that it can stand where the key says."""
        return self.num_asked * self.num_values == 1

    def __call__(self, key: Key) -> Riddle:
        rng = seeded("secrets", key.task, key.length, key.seed)
        names = [self._draw_name(rng) for _ in range(self.num_names)]
        secrets = [(name, draw_value(rng, self.value)) for name in names * self.num_values]
        depths = [rng.random() for _ in secrets]
        if key.depth is not None:
            depths[0] = key.depth  # the first name is asked for
        hidden = sorted(zip(depths, secrets, strict=True))
        asked = names[: self.num_asked]
        values = [value for name in asked for _, (owner, value) in hidden if owner == name]
        many = "" if self.has_depth else "s"
        subject = f"secret {self.value}{many} of {' and '.join(asked)}"
        verb = "are" if many else "is"
        return Riddle(
            needles=[self._sentence(*secret) for _, secret in hidden],
            depths=[depth for depth, _ in hidden],
            question=f"\nWhat {verb} the {subject}? Answer: The {subject} {verb}",
            answer=" " + ", ".join(values),
            expected=values,
            introduction=f"Remember each secret {self.value} below for a question at the end.\n",
            lines=self._lines(key, {*names}),
        )

    def _draw_name(self, rng: random.Random) -> str:
        return draw_name(rng) if self.name == "word" else draw_value(rng, "code")

    def _sentence(self, name: str, value: str) -> str:
        return f"{'A' if self.num_values > 1 else 'The'} secret {self.value} of {name} is {value}."

    def _lines(self, key: Key, taken: set[str]) -> Iterable[str] | None:
        if self.background == "text":
            return None
        return repeat(NOISE) if self.background == "noise" else self._others(key, taken)

    def _others(self, key: Key, taken: set[str]) -> Iterator[str]:
        """Secrets of other names, without end."""
        rng = seeded("others", key.task, key.length, key.seed)
        while True:
            name, value = self._draw_name(rng), draw_value(rng, self.value)
            if name not in taken:
                yield self._sentence(name, value)


@dataclass(frozen=True)
class Variables:
    """A chain of assignments, B = A after A = 12345; which variables have the value?"""

    num_variables: int = 5
    has_depth: bool = False

    def __call__(self, key: Key) -> Riddle:
        rng = seeded("variables", key.length, key.seed)
        names = [draw_name(rng).upper() for _ in range(self.num_variables)]
        value = str(rng.randrange(10_000, 100_000))
        question = f"\nWhich {self.num_variables} variables have the value {value}? Answer:"
        return Riddle(
            needles=[f"{a} = {b}" for a, b in zip(names, [value, *names], strict=False)],
            depths=sorted(rng.random() for _ in names),
            question=f"{question} The value {value} is that of",
            answer=" " + ", ".join(names),
            expected=names,
            introduction="Follow the assignments of variables below for a question at the end.\n",
            lines=repeat(NOISE),
        )


def draw_value(rng: random.Random, kind: Kind) -> str:
    if kind == "number":
        return str(rng.randrange(1_000_000, 10_000_000))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


TASKS: dict[str, Secrets | Variables] = {
    "single-1": Secrets("number", background="noise"),
    "single-2": Secrets("number"),
    "single-3": Secrets("code"),
    "multikey-1": Secrets("number", num_names=4),
    "multikey-2": Secrets("number", background="secrets"),
    "multikey-3": Secrets("code", name="code", background="secrets"),
    "multivalue": Secrets("number", num_values=4),
    "multiquery": Secrets("number", num_names=4, num_asked=4),
    "variables": Variables(),
}
