"""ShardWriter: documents become token shards by several processes, and goes on when killed."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from fox.corpus import Document
from fox.files import read_json, whole_file, write_json
from fox.train.shards import LAYOUT, LENGTHS, PARTS, Record, damage, shard_files
from fox.train.tokenizer import cuts_at_lines, encode, num_entries, pieces_of

SHARD_CHARACTERS = 1 << 26  # of text; a shard ends with the document that reaches it
JOB_CHARACTERS = 1 << 20  # what one process encodes at a time

Divided = Iterator[tuple[Document, bool]]  # as fox.corpus.divide gives them


class Told(Protocol):
    """Hears what was written: tokens, bytes of text, and whether it is new."""

    def __call__(self, tokens: int, num_bytes: int, *, new: bool) -> None: ...


class _Piece(NamedTuple):
    """A part of a document; the last part carries the bytes of the whole."""

    text: str
    held_out: bool
    num_bytes: int | None


class _Job(NamedTuple):
    """What is encoded at a time, or the record of a shard that is whole already."""

    shard: int
    key: str
    pieces: list[_Piece]
    record: Record | None = None


Encoded = tuple[_Job, list[np.ndarray]]


class ShardWriter:
    """Writes the shards of a corpus into a folder, except those that are there.

    A shard is made of the same documents whatever else happens, since it ends where its text
    reaches SHARD_CHARACTERS; so shards know their text by its hash, and any of them can be made
    again alone. Where max_tokens ends the training part, its shard is whole, and the index says
    how many of its documents count.

    Args:
        folder: holds tokenizer.json and shards/.
        tokenizer: of the folder.
        end: the token that ends documents.
        max_tokens: of the training part; None for no limit.
        told: hears of everything that is written or found.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, end: str, max_tokens: int | None, told: Told
    ) -> None:
        self.folder, self.told, self.max_tokens = folder, told, max_tokens
        self.tokenizer, self.end = tokenizer, tokenizer.get_vocab()[end]
        self.cut = cuts_at_lines(tokenizer)
        self.dtype = np.dtype(np.uint16 if num_entries(tokenizer) <= 1 << 16 else np.uint32)
        self.basis = repr((LAYOUT, tokenizers.__version__, tokenizer.to_str(), self.end)).encode()

    def write(self, documents: Divided, num_workers: int | None) -> dict[str, Any]:
        """Writes what is missing; returns what meta.json tells about the shards."""
        characters = SHARD_CHARACTERS
        if self.max_tokens is not None:
            characters = min(characters, max(JOB_CHARACTERS, 4 * self.max_tokens))
        groups = _groups(documents, characters)
        head = list(islice(groups, 2))
        if num_workers is None:
            num_workers = (os.cpu_count() or 1) if len(head) == 2 else 1
        self._remove_scratch()
        records: list[Record] = []
        encoded = self._encoded(self._jobs(chain(head, groups)), num_workers)
        for shard, run in groupby(encoded, lambda pair: pair[0].shard):
            records.append(self._shard(shard, run))
            if self._enough(records):
                break
        encoded.close()  # ends the processes
        self._remove_shards_from(len(records))
        index = {part: self._counts(part, records) for part in PARTS}
        return {"dtype": self.dtype.name, "end_of_text": self.end} | index | {"shards": records}

    def _jobs(self, groups: Iterable[list[tuple[Document, bool]]]) -> Iterator[_Job]:
        for shard, group in enumerate(groups):
            key = self._key(group)
            record = self._whole(shard, key)
            if record is not None:
                yield _Job(shard, key, [], record)
                continue
            pieces: list[_Piece] = []
            size = 0
            for piece in chain.from_iterable(self._pieces(*divided) for divided in group):
                pieces.append(piece)
                size += len(piece.text)
                if size >= JOB_CHARACTERS:
                    yield _Job(shard, key, pieces)
                    pieces, size = [], 0
            yield _Job(shard, key, pieces)

    def _key(self, group: list[tuple[Document, bool]]) -> str:
        """What the shard is a function of."""
        digest = hashlib.sha256(self.basis)
        for document, held_out in group:
            data = document.text.encode()
            digest.update(f"{len(data)} {held_out} ".encode())
            digest.update(data)
        return digest.hexdigest()

    def _whole(self, shard: int, key: str) -> Record | None:
        """The record of a shard that needs not be made again."""
        path = self._record_path(shard)
        record = read_json(path) if path.is_file() else {}
        if record.get("key") != key:
            return None
        wrong = list(damage(self.folder, shard, record, self.dtype.itemsize, contents=True))
        for what in wrong:
            print(f"made again: {what}", flush=True)
        return None if wrong else record

    def _pieces(self, document: Document, held_out: bool) -> Iterator[_Piece]:
        texts = pieces_of(document.text, self.cut)
        yield from (_Piece(text, held_out, None) for text in texts[:-1])
        yield _Piece(texts[-1], held_out, len(document.text.encode()))

    def _encoded(self, jobs: Iterator[_Job], num_workers: int) -> Generator[Encoded, None, None]:
        """The jobs in their order, with the ids of their pieces."""
        if num_workers == 1:  # the library's threads use the cores, too
            for job in jobs:
                yield job, encode(self.tokenizer, [piece.text for piece in job.pieces])
            return
        pool = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"), initializer=_be_a_worker
        )
        tokenizer = self.folder / "tokenizer.json"
        none: Future[list[np.ndarray]] = Future()
        none.set_result([])
        waiting: deque[tuple[_Job, Future[list[np.ndarray]]]] = deque()
        try:
            for job in jobs:
                texts = [piece.text for piece in job.pieces]
                waiting.append((job, pool.submit(_encode, tokenizer, texts) if texts else none))
                if len(waiting) > 2 * num_workers:
                    done, ids = waiting.popleft()
                    yield done, ids.result()
            for done, ids in waiting:
                yield done, ids.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _shard(self, shard: int, run: Iterator[Encoded]) -> Record:
        """Writes one shard; its record comes last."""
        job, ids = next(run)
        if job.record is not None:
            for part in PARTS:
                self.told(job.record[part]["tokens"], job.record[part]["bytes"], new=False)
            return job.record
        path = self._record_path(shard)
        path.unlink(missing_ok=True)
        with ExitStack() as stack:
            files = [_PartFile(stack, self.folder, p, shard, self.dtype, self.end) for p in PARTS]
            for each, arrays in chain([(job, ids)], run):
                for piece, tokens in zip(each.pieces, arrays, strict=True):
                    files[piece.held_out].add(tokens, piece.num_bytes)
                    self.told(len(tokens), len(piece.text), new=True)
            record = {"key": job.key} | dict(
                zip(PARTS, (file.finish() for file in files), strict=True)
            )
        write_json(path, record)
        return record

    def _enough(self, records: list[Record]) -> bool:
        if self.max_tokens is None:
            return False
        tokens = sum(record["train"]["tokens"] for record in records)
        return tokens >= self.max_tokens and any(r["validation"]["documents"] for r in records)

    def _counts(self, part: str, records: list[Record]) -> Record:
        """What the index says of a part: all of it, or as many documents as max_tokens takes."""
        lengths = np.concatenate(
            [
                np.fromfile(shard_files(self.folder, part, shard)[1], LENGTHS).reshape(-1, 2)
                for shard in range(len(records))
            ]
        )
        if part == "train" and self.max_tokens is not None:
            enough = int(np.searchsorted(np.cumsum(lengths[:, 0]), self.max_tokens))
            lengths = lengths[: enough + 1]
        tokens, num_bytes = lengths.sum(axis=0).tolist()
        digest = hashlib.sha256(f"{len(lengths)} of".encode())
        for record in records:
            digest.update(record[part]["sha256"].encode())
        return {
            "documents": len(lengths),
            "tokens": tokens,
            "bytes": num_bytes,
            "sha256": digest.hexdigest(),
        }

    def _record_path(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.json"

    def _remove_scratch(self) -> None:
        """What a killed call was writing."""
        for path in (self.folder / "shards").glob(".*"):
            path.unlink(missing_ok=True)

    def _remove_shards_from(self, shard: int) -> None:
        """Shards of an earlier, longer corpus."""
        while (path := self._record_path(shard)).is_file():
            for part in PARTS:
                for file in shard_files(self.folder, part, shard):
                    file.unlink(missing_ok=True)
            path.unlink()
            shard += 1


class _PartFile:
    """The growing files of one part of a shard; they take their names when the stack is left."""

    def __init__(
        self, stack: ExitStack, folder: Path, part: str, shard: int, dtype: np.dtype, end: int
    ) -> None:
        tokens, lengths = (
            stack.enter_context(whole_file(path)) for path in shard_files(folder, part, shard)
        )
        self.tokens: BinaryIO = stack.enter_context(tokens.open("wb"))
        self.lengths_path = lengths
        self.dtype, self.end = dtype, np.array([end], dtype).tobytes()
        self.digest = hashlib.sha256()
        self.lengths: list[tuple[int, int]] = []
        self.count = 0

    def add(self, ids: np.ndarray, num_bytes: int | None) -> None:
        """Appends a piece; with the bytes of its document, the document ends."""
        data = ids.astype(self.dtype).tobytes()
        self.count += len(ids)
        if num_bytes is not None:
            data += self.end
            self.lengths.append((self.count + 1, num_bytes))
            self.count = 0
        self.tokens.write(data)
        self.digest.update(data)

    def finish(self) -> Record:
        """Writes the lengths; returns the counts."""
        lengths = np.array(self.lengths, LENGTHS).reshape(-1, 2)
        lengths.tofile(self.lengths_path)
        self.digest.update(lengths.tobytes())
        tokens, num_bytes = lengths.sum(axis=0).tolist()
        return {
            "documents": len(lengths),
            "tokens": tokens,
            "bytes": num_bytes,
            "sha256": self.digest.hexdigest(),
        }


def _groups(documents: Divided, characters: int) -> Iterator[list[tuple[Document, bool]]]:
    """The documents of each shard."""
    group: list[tuple[Document, bool]] = []
    size = 0
    for document, held_out in documents:
        if document.text:
            group.append((document, held_out))
            size += len(document.text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def _be_a_worker() -> None:
    """One thread, deaf to Ctrl-C: the process that reads the text decides when it is over."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a killed parent cannot say goodbye, and its workers would wait for ever
    os._exit(1)


_read_tokenizer = lru_cache(Tokenizer.from_file)


def _encode(tokenizer: Path, pieces: list[str]) -> list[np.ndarray]:
    return encode(_read_tokenizer(str(tokenizer)), pieces)
