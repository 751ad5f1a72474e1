"""Token shards: a corpus as flat files of token ids that are mapped into memory, never loaded.

A folder holds tokenizer.json, meta.json (the index) and the folder shards/. Shard 7 is the tokens
of a run of documents, those to train on and those held out:

    train-00007.bin      uint16, or uint32 where the vocabulary needs it: the token ids
    train-00007.len      (documents, 2) int64: tokens and bytes of text of each document
    validation-00007...  the same of the documents that are held out
    00007.json           the counts and the sha256 of each part, written when the rest is whole

meta.json repeats the shards' records in order, and says how many of the documents count.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from fox.files import read_json
from fox.train.tokenizer import num_entries

PARTS = ("train", "validation")
LAYOUT = 2  # counts up when files of an older version can no longer be read
OPEN_FILES = 256  # mapped at once by one process and part: systems allow about 1,000
HASHED_BYTES = 1 << 24  # at once
LENGTHS = np.dtype(np.int64)
Record = dict[str, Any]


class Tokens(Protocol):
    """Token ids, (N,) uint16 or uint32, that are read in slices: an array, or files like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> np.ndarray: ...


class Part(NamedTuple):
    """Encoded documents, one after the other.

    Attributes:
        tokens: (N,), each document ending with the tokenizer's end of text.
        bounds: (documents + 1,) int64; document i is tokens[bounds[i]:bounds[i + 1]].
    """

    tokens: Tokens
    bounds: np.ndarray


class JoinedTokens:
    """Arrays of token ids behind one another, as one.

    Args:
        counts: the length of each, at least 1.
        array: the array of a number, asked for whenever it is read.
    """

    def __init__(self, counts: Sequence[int], array: Callable[[int], Tokens]) -> None:
        self.array = array
        self.ends = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: slice, /) -> np.ndarray:
        begin, end, _ = places.indices(len(self))
        number = int(np.searchsorted(self.ends, begin, side="right")) - 1
        pieces = []
        while begin < end:
            first, last = self.ends[number : number + 2].tolist()
            pieces.append(self.array(number)[begin - first : min(end, last) - first])
            begin = last
            number += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.zeros(0, np.uint16)])


@dataclass(frozen=True)
class Shards:
    """The two parts of an encoded corpus, its tokenizer and the counts of its index.

    Attributes:
        folder: where it lies.
        meta: of meta.json: end_of_text (the token's id), and for "train" and "validation"
            documents, tokens, bytes and sha256.
        tokenizer: of the tokens.
        train, validation: the documents.
    """

    folder: Path
    meta: Record
    tokenizer: Tokenizer
    train: Part
    validation: Part


def open_shards(folder: Path) -> Shards:
    """Maps an encoded corpus into memory.

    Raises:
        ValueError: a file is missing or has another size than the index says.
    """
    meta = read_json(folder / "meta.json")
    wrong = next(damaged_shards(folder, meta, contents=False), None)
    if wrong is not None:
        raise ValueError(
            f"expected whole shards in {folder}, but {wrong}: the command that encoded the corpus "
            "(fox-data prepare) mends them, and only them"
        )
    train, validation = (_part(folder, meta, part) for part in PARTS)
    return Shards(
        folder, meta, Tokenizer.from_file(str(folder / "tokenizer.json")), train, validation
    )


def _part(folder: Path, meta: Record, part: str) -> Part:
    chosen = [i for i, record in enumerate(meta["shards"]) if record[part]["documents"]]
    files = [shard_files(folder, part, number) for number in chosen]
    lengths = [np.fromfile(documents, LENGTHS)[::2] for _, documents in files]
    ends = np.cumsum(np.concatenate([[0], *lengths]))[: meta[part]["documents"] + 1]
    counts = [meta["shards"][number][part]["tokens"] for number in chosen]
    # With max_tokens the last shard holds more than counts.
    counts = np.diff(np.minimum(np.cumsum([0, *counts]), ends[-1])).tolist()

    @lru_cache(OPEN_FILES)
    def mapped(number: int) -> np.ndarray:
        return np.memmap(files[number][0], meta["dtype"], mode="r", shape=(counts[number],))

    return Part(JoinedTokens(counts, mapped), ends)


def shard_files(folder: Path, part: str, number: int) -> tuple[Path, Path]:
    """Token ids and lengths of one part of a shard."""
    stem = folder / "shards" / f"{part}-{number:05d}"
    return stem.with_suffix(".bin"), stem.with_suffix(".len")


def damaged_shards(folder: Path, meta: Record, *, contents: bool) -> Iterator[str]:
    """What is wrong with each file that differs from the index in size or, if asked, contents."""
    itemsize = np.dtype(meta["dtype"]).itemsize
    for number, record in enumerate(meta["shards"]):
        yield from damage(folder, number, record, itemsize, contents=contents)


def damage(
    folder: Path, number: int, record: Record, itemsize: int, *, contents: bool
) -> Iterator[str]:
    """What is wrong with the files of one shard."""
    for part in PARTS:
        counts = record[part]
        files = shard_files(folder, part, number)
        sizes = (counts["tokens"] * itemsize, counts["documents"] * 2 * LENGTHS.itemsize)
        whole = True
        for path, size in zip(files, sizes, strict=True):
            actual = path.stat().st_size if path.is_file() else None
            if actual != size:
                whole = False
                yield (
                    f"{path} has {actual} bytes instead of {size}"
                    if actual
                    else (f"{path} is missing or empty")
                )
        if whole and contents and sha256_of(*files) != counts["sha256"]:
            yield f"{files[0]} or its .len file does not have the contents that were written"


def sha256_of(*paths: Path) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(HASHED_BYTES):
                digest.update(data)
    return digest.hexdigest()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """A model of vocab_size entries must know every token.

    Raises:
        ValueError: it does not.
    """
    if num_entries(tokenizer) > vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most vocab_size = {vocab_size} entries, but it has "
            f"{num_entries(tokenizer)}: pass --data.vocab_size {num_entries(tokenizer)}"
        )
