"""Byte-level BPE: trained on the corpus itself, exact on every text."""

import re
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and END_OF_TEXT
CHUNK = 1 << 16  # characters
CHUNKS_AT_ONCE = 64  # encoded in parallel; bounds the memory that a long document takes
# Here a long text may be cut without changing its tokens: the pre-tokenizer always ends a word
# before a line break that a visible character follows.
SAFE_CUT = re.compile(r"\n(?=[!-~])")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most vocab_size entries; the same texts give the same tokenizer.

    Args:
        texts: what to learn the merges from.
        vocab_size: at least 257: all bytes and END_OF_TEXT, which has id 0.

    Raises:
        ValueError: vocab_size is too small.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (every byte, and {END_OF_TEXT}), "
            f"but got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The token ids of each text, (T,) int64, with END_OF_TEXT as the last one.

    A text that spells END_OF_TEXT out is text: it never ends a document.
    """
    tokenizer.encode_special_tokens = True
    end = np.array([tokenizer.token_to_id(END_OF_TEXT)])
    for text in texts:
        chunks = _chunks(text)
        ids = []
        for i in range(0, len(chunks), CHUNKS_AT_ONCE):
            encodings = tokenizer.encode_batch_fast(
                chunks[i : i + CHUNKS_AT_ONCE], add_special_tokens=False
            )
            ids += [np.array(encoding.ids, np.int64) for encoding in encodings]
        yield np.concatenate([*ids, end])


def _chunks(text: str) -> list[str]:
    cuts = [0]
    while len(text) - cuts[-1] > CHUNK and (cut := SAFE_CUT.search(text, cuts[-1] + CHUNK)):
        cuts.append(cut.start())
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
