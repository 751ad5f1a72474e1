"""fox-hanabi transcripts: what seats saw and did, which fox-train learns and agents start from."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer

from fox.agents.hanabi import transcripts as module
from fox.agents.hanabi.cli import main
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.partners import partner
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import Player
from fox.agents.hanabi.text import (
    VOCABULARY,
    WORD_IDS,
    action_texts,
    action_words,
    observation_words,
    token_ids,
)
from fox.agents.hanabi.transcripts import SOUND, TRANSCRIPTS, play, rows
from fox.checkpoints import load_checkpoint
from fox.corpus import divide, read_documents
from fox.train.cli import main as fox_train
from fox.train.shards import open_shards
from fox.train.tokenizer import read_tokenizer

PLAYERS = [partner(name) for name in SOUND]


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]


def write(folder: Path, *options: str, game: str = "2c2r", games: int = 30) -> list[dict]:
    main(["transcripts", "--output", str(folder), "--game", game, "--games", str(games), *options])
    return written(folder)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("players", [2, 3, 5])
def test_a_document_is_what_its_seat_saw_and_did_turn_after_turn(players):
    rules = Rules.of("2c3r", players)
    documents = play(rules, PLAYERS, seed=3, number=7)
    left = [document["text"].split() for document in documents]
    by_words = {tuple(action_words(move)): number for number, move in enumerate(rules.moves)}
    game = Game.shuffled(rules, np.random.default_rng([TRANSCRIPTS, 3, 7, 0]))
    while not game.over:
        words = left[game.mover]
        view = observation_words(game.view(game.mover))
        assert words[: len(view)] == view
        end = len(view) + words[len(view) :].index("<end>") + 1
        game.play(by_words[tuple(words[len(view) : end])])
        del words[:end]
    assert not any(left)
    assert {document["score"] for document in documents} == {game.strict_score}
    assert [document["seat"] for document in documents] == list(range(players))


class TellerAndDiscarder:
    """Seat 0 tells something, seat 1 discards: nobody ever turns up or tells a card of seat 0."""

    name, sees_hand = "both", False

    def sit(self, rules, generators):
        self.rules = rules
        return self

    def act(self, turns):
        kinds = ("discard",) if turns[0].view.seat else ("colour", "rank")
        legal = turns[0].view.legal
        return [next(move for move in legal if self.rules.moves[move].kind in kinds)]


@pytest.mark.usefixtures("engine")
def test_cards_that_a_seat_never_sees_are_not_in_its_document(monkeypatch):
    rules = Rules.of("2c3r", 2)
    player: Player = TellerAndDiscarder()
    generator = np.random.default_rng(0)
    deck = [rules.deck[place] for place in generator.permutation(rules.deck_size)]
    assert deck[0] != deck[1]  # the hand of seat 0
    documents = []
    for order in (deck, [*deck[1::-1], *deck[2:]]):
        monkeypatch.setattr(Game, "shuffled", lambda rules, _, order=order: Game(rules, order))
        documents.append([row["text"] for row in play(rules, [player], seed=0, number=0)])
    assert documents[0][0] == documents[1][0]
    assert documents[0][1] != documents[1][1]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("style", ["full", "paper"])
def test_an_own_card_is_known_by_hints_alone(style, tmp_path):
    known = ("told:", "can:", "empty", "unknown")
    for document in write(tmp_path, "--style", style, "--players", "[3]", game="3c3r", games=5):
        words = document["text"].split()
        mine = [
            place + 1
            for place, (before, word) in enumerate(pairwise(words))
            if word == "me" and before != "tell"
        ]
        assert len(mine) == words.count("<obs>") > 3
        for place in mine:
            assert all(word.startswith(known) for word in words[place + 1 : place + 7])
    assert ("unknown" in words) == (style == "paper")


@pytest.mark.usefixtures("engine")
def test_partners_of_all_kinds_sit_at_tables_of_all_sizes(tmp_path):
    rows = write(tmp_path, "--players", "[2, 4]", "--partners", "[iggi, piers]", game="2c3r")
    assert {(row["game"] % 2, len(row["players"])) for row in rows} == {(0, 2), (1, 4)}
    tables = {tuple(row["players"]) for row in rows if len(row["players"]) == 2}
    assert tables == {(a, b) for a in ("iggi", "piers") for b in ("iggi", "piers")}


@pytest.mark.usefixtures("engine")
def test_the_same_seed_writes_the_same_files_and_another_one_other_games(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("transcripts.jsonl", "tokenizer.json", "tokenizer_config.json", "fox-train.yaml")
    first = write(Path("games"), games=8)
    files = [Path("games", name).read_bytes() for name in names]
    write(Path("games"), games=8)
    assert [Path("games", name).read_bytes() for name in names] == files
    assert write(Path("games"), "--seed", "1", games=8) != first
    assert sorted(path.name for path in Path("games").iterdir()) == sorted(names)


@pytest.mark.usefixtures("engine")
def test_fox_train_learns_from_a_game_or_holds_it_out(tmp_path):
    rows = write(tmp_path, games=120)
    file = str(tmp_path / "transcripts.jsonl")
    texts = [
        (document.text, held_out) for document, held_out in divide(lambda: read_documents(file))
    ]
    assert [text for text, _ in texts] == [row["text"] for row in rows]
    held_out = {row["game"] for row, (_, out) in zip(rows, texts, strict=True) if out}
    learnt = {row["game"] for row, (_, out) in zip(rows, texts, strict=True) if not out}
    assert len(held_out) > 3
    assert not held_out & learnt


def test_documents_of_whole_games_are_written_but_for_what_is_left_over_in_the_end():
    games = [[{"game": game, "seat": seat} for seat in range(3)] for game in range(100)]
    order = list(rows(iter(games)))
    counts = Counter(row["game"] for row in order)
    assert sum(count < 3 for count in counts.values()) <= 2
    assert len(order) >= 297
    assert list(rows([])) == []


def test_the_tokenizer_has_the_ids_of_the_agents_words(tmp_path):
    module.write_tokenizer(tmp_path)
    tokenizer, end = read_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.get_vocab() == WORD_IDS
    assert tokenizer.encode(" ".join(VOCABULARY)).ids == list(range(len(VOCABULARY)))
    text = "<obs> players2 told:red <end>"
    assert tokenizer.decode([WORD_IDS[word] for word in text.split()]) == text
    assert WORD_IDS[end] == 0


def test_the_tokenizer_refuses_what_is_no_word_of_the_game(tmp_path):
    module.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer.encode("<obs> players6")


@pytest.mark.usefixtures("engine")
def test_what_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*args):
        if args[3] == 5:
            raise KeyboardInterrupt
        return play(*args)

    monkeypatch.setattr(module, "play", stopped)
    with pytest.raises(SystemExit) as stop:
        write(tmp_path)
    assert stop.value.code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--games", "0"], "games must be at least 1, but got 0"),
        (["--seed", "-1"], "seed must be at least 0, but got -1"),
        (["--players", "[]"], "players must name at least one, but got []"),
        (["--partners", "[]"], "partners must name at least one, but got []"),
        (["--partners", "[iggi, cheater]"], "do not see their own cards, but got cheater"),
        (["--partners", "[iggy]"], "expected a partner among internal"),
        (["--players", "[2, 5]"], "2c2r is for 2 to 4 players, not 5"),
        (["--hidden_size", "0"], "hidden_size must be at least 1, but got 0"),
        (["--hidden_size", "15"], "must be a multiple of num_heads, but got 15 and 2"),
    ],
)
def test_transcripts_that_cannot_be_are_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        write(tmp_path / "games", *options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "games").exists()


# LightningCLI calls what jsonargparse has renamed.
@pytest.mark.filterwarnings(
    r"ignore:\s*By default only one Jsonarg",
    r"ignore:\s*``instantiate_classes``",
    r"ignore:\s*skip_none parameter",
)
@pytest.mark.usefixtures("engine")
def test_an_agent_starts_from_what_fox_train_has_learnt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2}
    documents = write(Path("games"), *(f"--{name}={n}" for name, n in sizes.items()), games=60)
    settings = yaml.safe_load(Path("games/fox-train.yaml").read_text())
    assert settings["trainer"]["max_steps"] == 3 * sum(
        len(row["text"].split()) for row in documents
    ) // (256 * 16)
    shorter = ("--data.seq_len", "64", "--data.batch_size", "8", "--trainer.accelerator", "cpu")
    steps = ("--trainer.max_steps", "40", "--trainer.val_check_interval", "20")
    fast = ("--model.learning_rate", "0.02", "--model.warmup_tokens", "2048")
    fox_train(["fit", "--config", "games/fox-train.yaml", *shorter, *steps, *fast])

    tokens = open_shards(Path("games/fox/data")).train
    first = tokens.tokens[: int(tokens.bounds[1])]
    np.testing.assert_array_equal(first, [*token_ids(documents[0]["text"].split()), 0])
    untrained, _, trained = [
        row["loss"] for row in json.loads(Path("games/fox/validation.json").read_text())
    ]
    assert trained < json.loads(Path("games/fox/ngram.json").read_text())["unigram"]["loss"]
    assert trained < untrained - 2

    model, _ = load_checkpoint("games/fox/model")
    net = HanabiNet(NetworkConfig(unit="token", pretrained="games/fox/model", **sizes))
    assert net.words is not None
    assert torch.equal(net.words.word.weight, model.model.embeddings.weight)
    blocks = dict(net.reader.trunk.named_parameters())
    learnt = dict(model.model.named_parameters())
    assert {f"model.{name}" for name in learnt if not name.startswith("embeddings")} == set(blocks)
    assert all(torch.equal(blocks[name], learnt[name[len("model.") :]]) for name in blocks)
    texts = action_texts(Rules.of("2c2r", 2).moves)
    with torch.no_grad():
        assert net.encode(texts).shape == (len(texts.length), 16)

    tokenizer = Path("games/fox/model/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace("players2", "players6"))
    with pytest.raises(ValueError, match="other words or numbers them otherwise than the network"):
        HanabiNet(net.config)
