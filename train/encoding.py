"""Encoding: which text becomes which tokens, and the folder where they are found again."""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from fox.corpus import (
    HELD_OUT_ONE_IN,
    Document,
    divide,
    find_files,
    read_documents,
    standard_library,
)
from fox.files import read_json, whole_file, write_json
from fox.train.shards import LAYOUT, Shards, check_vocabulary, damaged_shards, open_shards
from fox.train.tokenizer import END_OF_TEXT, num_entries, read_tokenizer, train_tokenizer
from fox.train.writer import ShardWriter

TOKENIZER_CHARACTERS = 50_000_000  # more text changes the merges little and costs minutes
SECONDS_BETWEEN_LINES = 10  # of progress, where there is no terminal


@dataclass(frozen=True)
class Corpus:
    """Which documents to read; the fields are the arguments of read_documents."""

    files: tuple[str, ...] | None = None
    dataset: str | None = None
    text_field: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    shuffle_buffer: int | None = None
    seed: int = 0

    def documents(self) -> Iterator[Document]:
        """The documents, read anew at each call."""
        return read_documents(**asdict(self))

    def num_bytes(self) -> int | None:
        """About how much text it is, where that is known beforehand."""
        if self.dataset:
            return None
        if self.files:
            paths = find_files(self.files)
            packed = any(path.suffix == ".parquet" for path in paths)
            return None if packed else sum(path.stat().st_size for path in paths)
        return sum(len(document.text) for document in standard_library())

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


@dataclass(frozen=True)
class Encoding:
    """How a corpus becomes tokens.

    Attributes:
        vocab_size: of the tokenizer that is trained on the training part, and the most that a
            given one may have; None for a given one of any size.
        tokenizer: a tokenizer.json to use instead.
        max_tokens: stop reading when the training part has this many; None reads all.
        held_out_one_in: one document in so many is held out, as `divide` does it.
    """

    vocab_size: int | None
    tokenizer: Path | None = None
    max_tokens: int | None = None
    held_out_one_in: int = HELD_OUT_ONE_IN

    def fingerprint(self, corpus: Corpus) -> str:
        """Changes with whatever changes the shards."""
        if self.tokenizer:
            tokenizer, end = read_tokenizer(self.tokenizer)
            if self.vocab_size is not None:
                check_vocabulary(tokenizer, self.vocab_size)
            which: object = (tokenizer.to_str(), end)
        else:
            which = self.vocab_size
        key = (LAYOUT, tokenizers.__version__, corpus.fingerprint(), which)
        return hashlib.sha256(
            repr((*key, self.max_tokens, self.held_out_one_in)).encode()
        ).hexdigest()


def build_shards(
    folder: Path,
    corpus: Corpus,
    encoding: Encoding,
    *,
    num_workers: int | None = None,
    prepared: bool = False,
) -> Shards:
    """Encodes a corpus into a folder, or finds it there from an earlier call with equal arguments.

    A call that was killed is gone on with: shards that are whole stay, by their sizes and
    checksums and those of the text that they were made of, and the others are made again.

    Args:
        folder: where the files go; meta.json is written last, so that it vouches for the others.
        corpus: the documents.
        encoding: the tokenizer and the shares.
        num_workers: processes; their number changes nothing in the files. If None, one for every
            core where the text is more than one shard, else none but this one.
        prepared: whether the folder is for many runs: checksums are compared even if all is
            done, and a call with other arguments will not replace what is there.

    Raises:
        ValueError, FileNotFoundError: the corpus or the tokenizer cannot be read, or is too small;
            the folder was prepared with other arguments.
    """
    fingerprint = encoding.fingerprint(corpus)
    index, begun = folder / "meta.json", folder / "begun.json"
    files = [path for path in (index, begun) if path.is_file()]
    there = read_json(files[0]) if files else {}
    same = there.get("fingerprint") == fingerprint
    if there.get("prepared") and not same:
        raise ValueError(
            f"{folder} was prepared from other text or with other settings: repeat these, or "
            "choose another folder, or remove it"
        )
    if same and index.is_file() and not any(damaged_shards(folder, there, contents=prepared)):
        return open_shards(folder)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    tokenizer, end = _tokenizer(folder, corpus, encoding, trained=same)
    write_json(begun, {"fingerprint": fingerprint, "prepared": prepared})
    started = time.perf_counter()
    meter = Meter(corpus, encoding)
    writer = ShardWriter(folder, tokenizer, end, encoding.max_tokens, meter.add)
    with meter.bar:
        counts = writer.write(divide(corpus.documents, encoding.held_out_one_in), num_workers)
    seconds = time.perf_counter() - started
    print(
        f"encoded: {counts['train']['tokens']:,} tokens to train on, "
        f"{counts['validation']['tokens']:,} held out ({seconds:.1f} s)",
        flush=True,
    )
    write_json(index, {"fingerprint": fingerprint, "prepared": prepared} | counts)
    begun.unlink()
    return open_shards(folder)


def _tokenizer(
    folder: Path, corpus: Corpus, encoding: Encoding, *, trained: bool
) -> tuple[Tokenizer, str]:
    """Puts tokenizer.json into the folder, where an interrupted call may have done so."""
    path = folder / "tokenizer.json"
    end = END_OF_TEXT
    if encoding.tokenizer:
        tokenizer, end = read_tokenizer(encoding.tokenizer)
    elif trained and path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        assert encoding.vocab_size is not None, "a tokenizer or the size of one is needed"
        started = time.perf_counter()
        documents = divide(corpus.documents, encoding.held_out_one_in)
        texts = (document.text for document, held_out in documents if not held_out)
        tokenizer = train_tokenizer(_limited(texts, TOKENIZER_CHARACTERS), encoding.vocab_size)
        seconds = time.perf_counter() - started
        print(f"tokenizer: {num_entries(tokenizer)} entries ({seconds:.1f} s)", flush=True)
    with whole_file(path) as scratch:
        tokenizer.save(str(scratch))
    return tokenizer, end


def _limited(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


class Meter:
    """Tells how far encoding is: a line that changes in a terminal, else a line now and then."""

    def __init__(self, corpus: Corpus, encoding: Encoding) -> None:
        self.num_bytes, self.max_tokens = corpus.num_bytes(), encoding.max_tokens
        self.live = sys.stdout.isatty()
        self.bar = Progress(
            TextColumn("encoding: {task.description}"),
            TimeRemainingColumn(),
            disable=not self.live,
            transient=True,
        )
        self.task = self.bar.add_task("", total=1.0 if self.num_bytes or self.max_tokens else None)
        self.started = self.told = time.perf_counter()
        self.tokens = self.new_tokens = self.bytes = 0

    def add(self, tokens: int, num_bytes: int, *, new: bool) -> None:
        """Counts tokens and bytes of text; not new is what an earlier call encoded."""
        self.tokens += tokens
        self.bytes += num_bytes
        self.new_tokens += tokens if new else 0
        now = time.perf_counter()
        rate = self.new_tokens / (now - self.started)
        shares = [self.tokens / self.max_tokens] if self.max_tokens else []
        shares += [self.bytes / self.num_bytes] if self.num_bytes else []
        line = f"{self.tokens:,} tokens, {rate:,.0f} tokens/s"
        self.bar.update(self.task, description=line, completed=max(shares, default=0))
        if not self.live and now - self.told >= SECONDS_BETWEEN_LINES:
            done = min(1.0, max(shares, default=0))
            left = ""
            if done >= 0.01:
                left = f", {done:.0%}, {(now - self.started) * (1 / done - 1):.0f} s left"
            print(f"encoding: {line}{left}", flush=True)
            self.told = now
