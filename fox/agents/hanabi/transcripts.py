"""The command `fox-hanabi transcripts`: games of partners as text, to pretrain an encoder on.

A document is what one seat of one game saw and did, turn after turn, in words of VOCABULARY; an
encoder of tokens starts from a FoX that fox-train has taught to go on with them.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers

from fox.agents.hanabi.config import SEEDS
from fox.agents.hanabi.memory import small_fox
from fox.agents.hanabi.network import NetworkConfig
from fox.agents.hanabi.partners import partner
from fox.agents.hanabi.rules import MAX_PLAYERS, Rules
from fox.agents.hanabi.table import Player, Seat, Turn, play_games
from fox.agents.hanabi.text import PADDING, WORD_IDS, Style, action_words, observation_words
from fox.config import FoxConfig
from fox.corpus import is_held_out
from fox.files import whole_file, write_json, write_text

TEXT, SETTINGS = "transcripts.jsonl", "fox-train.yaml"
TRANSCRIPTS = SEEDS + 2  # first number of the seeds of decks: neither a run nor a test has them
SEQ_LEN, BATCH_SIZE = 256, 16
PASSES = 3  # over the text
SOUND = ("internal", "outer", "iggi", "piers", "vandenbergh")


def transcripts(
    output: str = "runs/transcripts",
    *,
    game: str = "2c3r",
    players: list[int] = [2, 3],  # noqa: B006 (not changed)
    partners: list[str] = list(SOUND),  # noqa: B006 (not changed)
    games: int = 2_000,
    seed: int = 0,
    style: Style = "full",
    hidden_size: int = 64,
    num_hidden_layers: int = 1,
    num_heads: int = 2,
) -> None:
    """Write games of partners as text, and all that fox-train needs to learn it.

    The folder gets transcripts.jsonl, a document for each seat of each game; tokenizer.json with
    the agents' words; and fox-train.yaml. After `fox-train fit --config OUTPUT/fox-train.yaml` an
    agent starts from what was learnt with `network.unit: token` and
    `network.pretrained: OUTPUT/fox/model`.

    Args:
        output: folder for the files.
        game: full, or a small one: 3c3r, 2c3r, 2c2r (colours and ranks).
        players: numbers of players, in turn from game to game.
        partners: who plays; each seat of each game is given to one of them by chance.
        games: how many.
        seed: of decks, seats and moves; the same seed writes the same files.
        style: of the words that a seat sees.
        hidden_size, num_hidden_layers, num_heads: of the FoX that will be pretrained; those of the
            agent's network.

    Raises:
        ValueError: a value is out of its range, or a partner would look at its own cards.
    """
    for name, value, least in (("games", games, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}")
    for name, values in (("players", players), ("partners", partners)):
        if not values:
            raise ValueError(f"{name} must name at least one, but got {values}")
    network = NetworkConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_heads=num_heads,
        unit="token",
        style=style,
    )
    tables = [Rules.of(game, number) for number in players]
    who = [_blind(name) for name in partners]
    folder = Path(output)
    documents = words = 0
    numbers = track(range(games), "games", console=Console(stderr=True))
    with whole_file(folder / TEXT) as path, path.open("w", encoding="utf-8") as file:
        for row in rows(play(tables[k % len(tables)], who, seed, k, style) for k in numbers):
            file.write(json.dumps(row) + "\n")
            documents += 1
            words += len(row["text"].split())
    write_tokenizer(folder)
    write_text(folder / SETTINGS, settings(folder, language_model(network), words))
    print(
        f"{games:,} games, {documents:,} documents, {words:,} words in {folder}\n"
        f"next: fox-train fit --config {folder / SETTINGS}"
    )


def play(
    rules: Rules, partners: Sequence[Player], seed: int, number: int, style: Style = "full"
) -> list[dict[str, Any]]:
    """Plays one game; seed and number decide its deck, who sits where, and every move.

    Args:
        rules: of the game.
        partners: of whom every seat draws one.
        seed, number: of the transcripts, and of the game in them.
        style: of the words.

    Returns:
        for each seat: text (what it saw and did), game (the number), seat, players (their names, by
        seat), score (strict).
    """
    seeds = (TRANSCRIPTS, seed, number)
    # The table itself draws with 0 (the deck) to MAX_PLAYERS (the last seat) behind these.
    generator = np.random.default_rng([*seeds, 1 + MAX_PLAYERS])
    drawn = generator.integers(len(partners), size=rules.players)
    scribes = [_Scribe(partners[which], style) for which in drawn]
    [game] = play_games(rules, [seeds], scribes)
    names = [scribe.name for scribe in scribes]
    about = {"game": number, "players": names, "score": game.strict_score}
    return [
        {"text": " ".join(scribe.words), "seat": seat} | about
        for seat, scribe in enumerate(scribes)
    ]


def rows(games: Iterable[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The documents of games in an order in which fox-train holds out whole games.

    It holds out rows by a hash of their number: a game whose one seat is learnt from would tell too
    much about the other. What is left of the last games in the end is left out.
    """
    games = iter(games)
    learnt: deque[dict[str, Any]] = deque()
    held_out: deque[dict[str, Any]] = deque()
    for number in count():
        waiting = held_out if is_held_out(f"{TEXT}:{number}") else learnt
        if not waiting:
            waiting.extend(next(games, ()))
        if not waiting:
            return
        yield waiting.popleft()


def language_model(network: NetworkConfig) -> FoxConfig:
    """A FoX over VOCABULARY with the blocks of a network's encoder."""
    blocks = small_fox(network.hidden_size, network.num_hidden_layers, network.num_heads)
    return blocks.replace(
        vocab_size=len(WORD_IDS),
        eos_token_id=WORD_IDS[PADDING],
        max_position_embeddings=SEQ_LEN,
    )


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json: words to their ids in VOCABULARY; a document ends with the padding.

    Its tokenizer_config.json says so. An unknown word is an error.
    """
    tokenizer = Tokenizer(models.WordLevel(WORD_IDS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PADDING])
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", {"eos_token": PADDING})


def settings(folder: Path, config: FoxConfig, words: int) -> str:
    """The YAML file with which fox-train learns the transcripts in a folder.

    Args:
        folder: with the transcripts and the tokenizer.
        config: of the model.
        words: of the transcripts.
    """
    given = {f.name: getattr(config, f.name) for f in fields(FoxConfig) if f.name != "vocab_size"}
    defaults = {f.name: f.default for f in fields(FoxConfig)}
    steps = max(1, PASSES * words // (SEQ_LEN * BATCH_SIZE))
    values = {
        "model": {
            # vocab_size is linked to that of the data.
            "config": {name: x for name, x in given.items() if x != defaults[name]},
            "learning_rate": 4e-3,
            "min_learning_rate": 4e-4,
            "warmup_tokens": 20 * SEQ_LEN * BATCH_SIZE,
            "weight_decay": 0.01,
        },
        "data": {
            "vocab_size": config.vocab_size,
            "tokenizer": str(folder / "tokenizer.json"),
            "files": escape(str(folder / TEXT)),
            "seq_len": SEQ_LEN,
            "batch_size": BATCH_SIZE,
        },
        "trainer": {
            "default_root_dir": str(folder / "fox"),
            "max_steps": steps,
            "val_check_interval": max(1, steps // 10),
            "callbacks": [{"class_path": "fox.train.records.NgramBaseline"}],
        },
        "checkpoint": {"every_n_steps": max(1, steps // 10)},
    }
    return yaml.safe_dump(values, sort_keys=False)


class _Scribe:
    """Plays one game as another player would, and writes down what it sees and does."""

    def __init__(self, player: Player, style: Style) -> None:
        self.player, self.style = player, style
        self.name, self.sees_hand = player.name, player.sees_hand
        self.words: list[str] = []

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "_Scribe":
        self.seat: Seat = self.player.sit(rules, generators)
        return self

    def act(self, turns: Sequence[Turn]) -> list[int]:
        [turn] = turns
        [action] = self.seat.act(turns)
        self.words += observation_words(turn.view, self.style)
        self.words += action_words(turn.view.rules.moves[action])
        return [action]


def _blind(name: str) -> Player:
    """A partner that does not see its own cards: its moves would tell of them."""
    player = partner(name)
    if player.sees_hand:
        raise ValueError(f"expected partners that do not see their own cards, but got {name}")
    return player
