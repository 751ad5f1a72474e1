"""Tokenizers: byte-level BPE trained on the corpus itself, or any file, and exact encoding."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fox.files import read_json

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and END_OF_TEXT
PIECE = 1 << 16  # characters
# Here a long text may be cut without changing its tokens: GPT-2's pre-tokenizer, and so that of
# train_tokenizer, always ends a word before a line break that a visible character follows.
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


def read_tokenizer(path: Path) -> tuple[Tokenizer, str]:
    """A tokenizer.json, and the token that ends its documents.

    That is the eos_token of the tokenizer_config.json beside it, or else END_OF_TEXT.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tokenizer, or it has no such token.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a tokenizer.json, but there is no file {path}")
    if "model" not in read_json(path):
        raise ValueError(f"expected the tokenizer.json of the library tokenizers, but got {path}")
    tokenizer = Tokenizer.from_file(str(path))
    config = path.with_name("tokenizer_config.json")
    end = read_json(config).get("eos_token") if config.is_file() else None
    end = (end.get("content") if isinstance(end, dict) else end) or END_OF_TEXT
    if tokenizer.token_to_id(end) is None:
        raise ValueError(
            f"expected a tokenizer with the token {end}, but {path} has none: name the token that "
            f'ends its documents in {config}, {{"eos_token": ...}}'
        )
    return tokenizer, end


def num_entries(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the largest id and one; ids may leave gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def cuts_at_lines(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text are those of its parts between SAFE_CUTs.

    So it is where GPT-2's pre-tokenizer alone looks at the text before the merges do.
    """
    settings = json.loads(tokenizer.to_str())
    words = settings["pre_tokenizer"] or {}
    return (
        settings["normalizer"] is None
        and words.get("type") == "ByteLevel"
        and words.get("use_regex", True)
        and not words["add_prefix_space"]
        and not any("\n" in token["content"] for token in settings["added_tokens"])
    )


def pieces_of(text: str, cut: bool) -> list[str]:
    """The text in parts of about PIECE characters if it may be cut, else in one."""
    cuts = [0]
    while (
        cut and len(text) - cuts[-1] > PIECE and (place := SAFE_CUT.search(text, cuts[-1] + PIECE))
    ):
        cuts.append(place.start())
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]


def encode(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[np.ndarray]:
    """The token ids of each piece, (T,) uint32. A special token that is spelt out is text."""
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
    return [np.array(encoding.ids, np.uint32) for encoding in encodings]
