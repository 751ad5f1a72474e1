"""Token shards: built once, rebuilt when something changes, and never half."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fox.corpus import is_held_out
from fox.train import writer
from fox.train.encoding import Corpus, Encoding, build_shards
from fox.train.tokenizer import END_OF_TEXT

CORPUS = Corpus(files=("corpus/*.txt",))
FOLDER = Path("data")


def build(corpus=CORPUS, vocab_size=280, **kwargs):
    return build_shards(FOLDER, corpus, Encoding(vocab_size, **kwargs))


def decoded(part, tokenizer):
    ids = [part.tokens[a:b] for a, b in zip(part.bounds[:-1], part.bounds[1:], strict=True)]
    assert all(document[-1] == tokenizer.token_to_id(END_OF_TEXT) for document in ids)
    return [tokenizer.decode(document[:-1].tolist()) for document in ids]


def test_documents_come_back_from_the_shards_each_in_its_part(experiment):
    built = build()
    texts = {document.name: document.text for document in CORPUS.documents()}
    held_out = [text for name, text in texts.items() if is_held_out(name)]
    assert decoded(built.validation, built.tokenizer) == held_out
    assert sorted(decoded(built.train, built.tokenizer)) == sorted(
        text for name, text in texts.items() if not is_held_out(name)
    )
    assert built.meta["validation"]["bytes"] == sum(len(text.encode()) for text in held_out)
    assert built.train.tokens[:3].dtype == np.uint16


def test_a_second_call_encodes_nothing(experiment, monkeypatch):
    build()
    monkeypatch.setattr(writer, "encode", None)
    build()


@pytest.mark.parametrize("change", ["text", "file", "vocabulary", "versions", "limit"])
def test_a_changed_corpus_or_setting_is_encoded_anew(experiment, monkeypatch, change):
    before = build().meta
    limit, vocab_size = None, 280
    if change == "text":
        (experiment / "corpus" / "0.txt").write_text("something else\n")
    elif change == "file":
        (experiment / "corpus" / "100.txt").write_text("one more\n")
    elif change == "vocabulary":
        vocab_size = 290
    elif change == "versions":
        monkeypatch.setattr("tokenizers.__version__", "0.0")
    else:
        limit = 100
    assert (
        build(vocab_size=vocab_size, max_tokens=limit).meta["fingerprint"]
        != (before["fingerprint"])
    )


@pytest.mark.parametrize("broken", ["whole_file", "encode"])
def test_an_encoding_that_was_cut_short_leaves_nothing_that_counts(experiment, monkeypatch, broken):
    whole = build().meta
    (experiment / "corpus" / "0.txt").write_text("something else\n")
    with monkeypatch.context() as patch:
        patch.setattr(writer, broken, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build()
    names = {path.name for path in FOLDER.rglob("*")}
    assert "meta.json" not in names
    assert not any(name.startswith(".") for name in names)  # no scratch file stays
    assert build().meta["train"]["sha256"] != whole["train"]["sha256"]


def test_one_file_holds_its_tail_out_at_the_end_of_a_line(experiment):
    text = "".join(f"line {i}\n" for i in range(100))
    (experiment / "one.txt").write_text(text)
    built = build(Corpus(files=("one.txt",)))
    (begin,), (end,) = (decoded(part, built.tokenizer) for part in (built.train, built.validation))
    assert begin + end == text
    assert begin.endswith("\n")
    assert 0.03 < len(end) / len(text) < 0.06


def test_max_tokens_stops_reading_when_both_parts_are_there(experiment):
    built = build(max_tokens=200)
    assert 200 <= built.meta["train"]["tokens"] < 400
    assert built.meta["validation"]["tokens"] > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_is_encoded_streaming_or_not(experiment, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", experiment / "cache")
    (experiment / "set").mkdir()
    rows = [{"body": f"row number {i}"} for i in range(50)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (experiment / "set" / "train.jsonl").write_text(lines)
    corpus = Corpus(dataset="set", text_field="body", streaming=streaming)
    built = build(corpus)
    texts = decoded(built.train, built.tokenizer) + decoded(built.validation, built.tokenizer)
    assert sorted(texts) == sorted(row["body"] for row in rows)


def test_a_given_tokenizer_is_used_and_must_fit(experiment):
    build()
    given = experiment / "tokenizer.json"
    os.replace(FOLDER / "tokenizer.json", given)
    assert json.loads(build(tokenizer=given).tokenizer.to_str()) == json.loads(given.read_text())
    with pytest.raises(ValueError, match=r"at most vocab_size = 270 .* pass --data.vocab_size 280"):
        build(vocab_size=270, tokenizer=given)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere.json"):
        build(tokenizer=Path("nowhere.json"))
    given.write_text(given.read_text().replace(END_OF_TEXT, "<end>"))
    with pytest.raises(ValueError, match=r"with the token <\|endoftext\|>"):
        build(tokenizer=given)
