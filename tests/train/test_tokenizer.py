"""The tokenizer: exact, repeatable, and free of special meanings in text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import fox.train.tokenizer
from fox.train.tokenizer import (
    END_OF_TEXT,
    cuts_at_lines,
    encode,
    pieces_of,
    read_tokenizer,
    train_tokenizer,
)

TEXT = 'def f(x):\n    return "größer" + x\n\n\nclass A:  # 你好\n    pass\n' * 3
TOKENIZER = train_tokenizer([TEXT], 300)


@given(st.text())
def test_every_text_survives_encoding_and_decoding(text):
    (ids,) = encode(TOKENIZER, [text])
    assert TOKENIZER.decode(ids.tolist(), skip_special_tokens=False) == text


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer([TEXT], 300).to_str() == TOKENIZER.to_str()


def test_a_text_that_spells_the_end_of_text_out_does_not_end_there():
    (ids,) = encode(TOKENIZER, [f"a{END_OF_TEXT}b"])
    assert TOKENIZER.token_to_id(END_OF_TEXT) not in ids


@given(st.text(alphabet="a(\n \t\r\xa0'é,", min_size=30))
def test_a_long_text_encoded_in_pieces_has_the_tokens_of_the_whole(text):
    whole = TOKENIZER.encode(text).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fox.train.tokenizer, "PIECE", 4)
        pieces = pieces_of(text, cut=True)
    assert np.concatenate(encode(TOKENIZER, pieces)).tolist() == whole


def test_a_vocabulary_that_cannot_hold_every_byte_is_refused():
    with pytest.raises(ValueError, match=r"at least 257 .* but got 256"):
        train_tokenizer([TEXT], 256)


def other_tokenizer(**parts):
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"normalizer": normalizers.NFC()},
    ],
)
def test_only_what_gpt2s_pre_tokenizer_splits_is_cut(parts):
    assert cuts_at_lines(TOKENIZER)
    assert not cuts_at_lines(other_tokenizer(**parts))
    assert pieces_of("a\n" * 40_000, cut=False) == ["a\n" * 40_000]


def test_documents_end_with_the_eos_token_beside_the_tokenizer_or_with_end_of_text(tmp_path):
    path, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    TOKENIZER.save(str(path))
    assert read_tokenizer(path)[1] == END_OF_TEXT
    for eos in ("def", {"content": "def"}):
        config.write_text(json.dumps({"eos_token": eos}))
        assert read_tokenizer(path)[1] == "def"
    config.write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(ValueError, match=r"with the token </s>, but .* has none: name the token"):
        read_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json of the library tokenizers, but got"):
        read_tokenizer(path)
