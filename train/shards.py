"""Token shards: a corpus as flat files of token ids that are mapped into memory, never loaded.

A folder holds tokenizer.json, meta.json and, for the parts "train" and "validation",
PART.bin (token ids, uint16 or uint32) and PART.bounds.npy ((documents + 1,) int64).
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tokenizers
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from fox.corpus import Document, divide, find_files, read_documents, standard_library
from fox.files import whole_file, write_json
from fox.train.tokenizer import END_OF_TEXT, encode_documents, train_tokenizer

PARTS = ("train", "validation")
TOKENIZER_CHARACTERS = 50_000_000  # more text changes the merges little and costs minutes
LAYOUT = 1  # counts up when files of an older version can no longer be read


@dataclass(frozen=True)
class Corpus:
    """Which documents to read; the fields are the arguments of read_documents."""

    files: tuple[str, ...] | None = None
    dataset: str | None = None
    text_field: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False

    def documents(self) -> Iterator[Document]:
        """The documents, read anew at each call."""
        return read_documents(**asdict(self))

    def fingerprint(self) -> str:
        """Changes with the corpus: with its content, its files' sizes and times, or its name."""
        content: object
        if self.files:
            stats = [(name, path.stat()) for path, name in find_files(self.files).items()]
            content = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        elif self.dataset:
            content = None  # a named dataset is taken to stay as it is
        else:
            content = standard_library()
        return hashlib.sha256(repr((self, content)).encode()).hexdigest()


class Part(NamedTuple):
    """Encoded documents, one after the other.

    Attributes:
        tokens: (N,) uint16 or uint32, each document ending with END_OF_TEXT.
        bounds: (documents + 1,) int64; document i is tokens[bounds[i]:bounds[i + 1]].
    """

    tokens: np.ndarray
    bounds: np.ndarray


class Shards:
    """The two parts of a corpus, its tokenizer, and the counts in meta.json."""

    def __init__(self, folder: Path) -> None:
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.train, self.validation = (
            Part(
                np.memmap(folder / f"{part}.bin", self.meta["dtype"], mode="r"),
                np.load(folder / f"{part}.bounds.npy"),
            )
            for part in PARTS
        )


def build_shards(
    folder: Path,
    corpus: Corpus,
    vocab_size: int,
    *,
    tokenizer: Path | None = None,
    max_tokens: int | None = None,
) -> Shards:
    """Encodes a corpus into a folder, or finds it there from an earlier call with equal arguments.

    The validation part is what `divide` holds out.

    Args:
        folder: where the files go; meta.json is written last, so that it vouches for the others.
        corpus: the documents.
        vocab_size: of the tokenizer that is trained on the training part.
        tokenizer: a tokenizer.json to use instead; it has at most vocab_size entries.
        max_tokens: stop reading when the training part has this many; None reads all.

    Raises:
        ValueError, FileNotFoundError: the corpus or the tokenizer cannot be read, or is too small.
    """
    fingerprint = _fingerprint(corpus, vocab_size, tokenizer, max_tokens)
    meta = folder / "meta.json"
    if (
        meta.is_file()
        and json.loads(meta.read_text(encoding="utf-8"))["fingerprint"] == fingerprint
    ):
        return Shards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta.unlink(missing_ok=True)
    if tokenizer is None:
        started = time.perf_counter()
        documents = divide(corpus.documents)
        texts = (document.text for document, held_out in documents if not held_out)
        encoder = train_tokenizer(_limited(texts, TOKENIZER_CHARACTERS), vocab_size)
        seconds = time.perf_counter() - started
        print(f"tokenizer: {encoder.get_vocab_size()} entries ({seconds:.1f} s)", flush=True)
    else:
        encoder = read_tokenizer(tokenizer, vocab_size)
    with whole_file(folder / "tokenizer.json") as path:
        encoder.save(str(path))
    counts = _encode(folder, divide(corpus.documents), encoder, vocab_size, max_tokens)
    write_json(meta, {"fingerprint": fingerprint} | counts)
    return Shards(folder)


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Reads a tokenizer.json that fits a model of vocab_size entries and can end documents."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a tokenizer.json, but there is no file {path}")
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() > vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most vocab_size = {vocab_size} entries, but {path} has "
            f"{tokenizer.get_vocab_size()}: pass --data.vocab_size {tokenizer.get_vocab_size()}"
        )
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"expected a tokenizer with the token {END_OF_TEXT}, but {path} has none")
    return tokenizer


def _fingerprint(
    corpus: Corpus, vocab_size: int, tokenizer: Path | None, max_tokens: int | None
) -> str:
    given = tokenizer and read_tokenizer(tokenizer, vocab_size).to_str()
    key = (LAYOUT, tokenizers.__version__, corpus.fingerprint(), vocab_size, given, max_tokens)
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _limited(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


class _PartWriter:
    """Appends documents to an open file and keeps count of them."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.digest = hashlib.sha256()
        self.bounds = [0]
        self.num_bytes = 0

    def add(self, ids: np.ndarray, text: str) -> None:
        data = ids.astype(self.dtype).tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.bounds.append(self.bounds[-1] + len(ids))
        self.num_bytes += len(text.encode())

    def counts(self) -> dict[str, Any]:
        return {
            "documents": len(self.bounds) - 1,
            "tokens": self.bounds[-1],
            "bytes": self.num_bytes,
            "sha256": self.digest.hexdigest(),
        }


def _encode(
    folder: Path,
    documents: Iterator[tuple[Document, bool]],
    tokenizer: Tokenizer,
    vocab_size: int,
    max_tokens: int | None,
) -> dict[str, Any]:
    """Writes both parts; returns what meta.json tells about them."""
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    progress = Progress(
        TextColumn("encoding: {task.completed:,} tokens"),
        TimeElapsedColumn(),
        disable=not sys.stdout.isatty(),
        transient=True,
    )
    started = time.perf_counter()
    with ExitStack() as stack, progress:
        writers = {}
        for part in PARTS:  # both take their names when the stack is left without an error
            path = stack.enter_context(whole_file(folder / f"{part}.bin"))
            writers[part] = _PartWriter(stack.enter_context(path.open("wb")), dtype)
        train, validation = writers.values()
        task = progress.add_task("", total=None)
        for (_, text), held_out in documents:
            full = max_tokens is not None and train.bounds[-1] >= max_tokens
            if full and len(validation.bounds) > 1:
                break
            if text and (held_out or not full):
                (ids,) = encode_documents(tokenizer, [text])
                (validation if held_out else train).add(ids, text)
                progress.update(task, advance=len(ids))
        for part, writer in writers.items():
            with whole_file(folder / f"{part}.bounds.npy") as path:
                np.save(path, np.array(writer.bounds))
    counts = {part: writer.counts() for part, writer in writers.items()}
    seconds = time.perf_counter() - started
    print(
        f"encoded: {counts['train']['tokens']:,} tokens to train on, "
        f"{counts['validation']['tokens']:,} held out ({seconds:.1f} s)",
        flush=True,
    )
    return {"dtype": dtype.name} | counts
