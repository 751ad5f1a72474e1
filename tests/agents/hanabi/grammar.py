"""The grammar of observations, written a second time: patterns of words, and a parser."""

import re
from collections import Counter

COLOURS = ["red", "yellow", "green", "white", "blue"]
COLOUR, RANK, SLOT = "(red|yellow|green|white|blue)", "[1-5]", "[0-4]"
COLOUR_KNOWN = rf"told:{COLOUR}|can:{COLOUR}(\|{COLOUR})*|unknown|empty"
RANK_KNOWN = rf"told:{RANK}|can:{RANK}(\|{RANK})*|unknown|empty"
MOVE = {
    "verb": "play|discard|tell|none",
    "object": rf"slot{SLOT}|me|\+[1-4]|none",
    "value": f"{COLOUR}{RANK}|{COLOUR}|{RANK}|none",
    "result": rf"ok|miss|done|touch:{SLOT}(\|{SLOT})*|none",
}
# Field -> what may stand there, without the number of a slot.
PATTERNS = {
    "observation": "<obs>",
    "players": "players[2-5]",
    "clues": "clues[0-8]",
    "lives": "lives[0-3]",
    "deck": "deck[1-9][0-9]?|last[0-5]",
    "firework": f"{COLOUR}=[0-5]",
    "me": "me",
    "own.colour": COLOUR_KNOWN,
    "own.rank": RANK_KNOWN,
    **{f"own.{part}": words for part, words in MOVE.items()},
    "partner": r"\+[1-4]",
    "card.card": f"{COLOUR}{RANK}|empty",
    "card.colour": COLOUR_KNOWN,
    "card.rank": RANK_KNOWN,
    **{f"partner.{part}": words for part, words in MOVE.items()},
    "discards": "discards",
    "discarded": f"{COLOUR}{RANK}x[1-3]",
    "end": "<end>",
    "action": "<act>",
    "action.verb": "play|discard|tell",
    "action.object": rf"slot{SLOT}|\+[1-4]",
    "action.value": f"{COLOUR}|{RANK}",
}


class Reader:
    """Reads words one by one, by the grammar of an observation in the full style."""

    def __init__(self, words, seat):
        self.words, self.seat = list(words), seat

    def next(self, pattern=".*"):
        word = self.words.pop(0)
        assert re.fullmatch(pattern, word), f"{word} is not {pattern}"
        return word

    def number(self, prefix):
        return int(self.next(prefix + r"\d+").removeprefix(prefix))

    def observation(self):
        self.next("<obs>")
        self.players = self.number("players")
        content = {"players": self.players, "clues": self.number("clues")}
        content["lives"] = self.number("lives")
        last = self.words[0].startswith("last")
        content["last" if last else "deck"] = self.number("last" if last else "deck")
        content["fireworks"] = {}
        while self.words[0] != "me":
            colour, _, height = self.next(f"{COLOUR}=[0-5]").partition("=")
            content["fireworks"][colour] = int(height)
        content["me"] = self.block("me", mine=True)
        for k in range(1, self.players):
            content[f"+{k}"] = self.block(rf"\+{k}", mine=False)
        self.next("discards")
        content["discards"], kinds = Counter(), []
        while self.words[0] != "<end>":
            card, _, number = self.next(f"{COLOUR}{RANK}x[1-3]").partition("x")
            content["discards"][card] = int(number)
            kinds.append((COLOURS.index(card[:-1]), int(card[-1])))
        assert kinds == sorted(set(kinds)), "colour-major, rank ascending, each once"
        self.next("<end>")
        assert not self.words
        return content

    def block(self, head, mine):
        self.next(head)
        hand = []
        while self.words[0] not in ("play", "discard", "tell", "none"):
            hand.append(tuple(self.next() for _ in range(2 if mine else 3)))
        cards = [card for card in hand if card[0] != "empty"]
        assert hand[len(cards) :] == [("empty",) * (2 if mine else 3)] * (len(hand) - len(cards))
        return len(hand), [(*card[:-2], *map(self.known, card[-2:])) for card in cards], self.move()

    def known(self, word):
        """Whether it was told, and what is possible."""
        how, _, values = word.partition(":")
        assert how in ("told", "can")
        return how == "told", tuple(values.split("|"))

    def move(self):
        verb, thing, value, result = (self.next() for _ in range(4))
        if verb == "none":
            assert {thing, value, result} == {"none"}
            return None
        if verb == "tell":
            k = 0 if thing == "me" else int(thing.removeprefix("+"))
            assert k or thing == "me"
            how, _, slots = result.partition(":")
            assert how == "touch"
            return verb, (self.seat + k) % self.players, value, tuple(map(int, slots.split("|")))
        assert result in {"play": ("ok", "miss"), "discard": ("done",)}[verb]
        return verb, int(thing.removeprefix("slot")), value, result != "miss"


def content(view):
    """What the words must say."""
    rules = view.rules

    def known(knowledge):
        colours = tuple(COLOURS[colour] for colour in knowledge.colours)
        ranks = tuple(map(str, knowledge.ranks))
        return (knowledge.colour is not None, colours), (knowledge.rank is not None, ranks)

    def card(card):
        return f"{COLOURS[card.colour]}{card.rank}"

    def move(event):
        if event is None:
            return None
        kind, place, value = event.move
        if kind in ("play", "discard"):
            return kind, place, card(event.card), event.success
        word = COLOURS[value] if kind == "colour" else str(value)
        return "tell", (event.seat + place) % rules.players, word, event.touched

    last = view.turns_left is not None
    return {
        "players": rules.players,
        "clues": view.clues,
        "lives": view.lives,
        "last" if last else "deck": view.turns_left if last else view.deck,
        "fireworks": dict(zip(COLOURS, view.fireworks, strict=False)),
        "me": (rules.hand_size, [known(own) for own in view.hand], move(view.events[0])),
        **{
            f"+{k}": (
                rules.hand_size,
                [(card(seen.card), *known(seen.knowledge)) for seen in hand],
                move(view.events[k]),
            )
            for k, hand in enumerate(view.partners, start=1)
        },
        "discards": Counter(card(discarded) for discarded in view.discards),
    }
