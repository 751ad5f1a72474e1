"""The tokenizer: exact, repeatable, and free of special meanings in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fox.train.tokenizer
from fox.train.tokenizer import END_OF_TEXT, encode_documents, train_tokenizer

TEXT = 'def f(x):\n    return "größer" + x\n\n\nclass A:  # 你好\n    pass\n' * 3
TOKENIZER = train_tokenizer([TEXT], 300)


@given(st.text())
def test_every_text_survives_encoding_and_decoding(text):
    (ids,) = encode_documents(TOKENIZER, [text])
    assert TOKENIZER.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer([TEXT], 300).to_str() == TOKENIZER.to_str()


def test_a_document_ends_with_end_of_text_and_nothing_else_does():
    (ids,) = encode_documents(TOKENIZER, [f"a{END_OF_TEXT}b"])
    assert TOKENIZER.token_to_id(END_OF_TEXT) == ids[-1]
    assert (ids == ids[-1]).sum() == 1


@given(st.text(alphabet="a(\n \t\r\xa0'é,", min_size=30))
def test_a_long_text_encoded_in_chunks_has_the_tokens_of_the_whole(text):
    whole = TOKENIZER.encode(text).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fox.train.tokenizer, "CHUNK", 4)
        patch.setattr(fox.train.tokenizer, "CHUNKS_AT_ONCE", 2)
        (ids,) = encode_documents(TOKENIZER, [text])
    assert ids[:-1].tolist() == whole


def test_a_vocabulary_that_cannot_hold_every_byte_is_refused():
    with pytest.raises(ValueError, match=r"at least 257 .* but got 256"):
        train_tokenizer([TEXT], 256)
