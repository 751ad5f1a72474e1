"""Documents to learn from: Python's own standard library, the user's files, or a dataset."""

import hashlib
import json
import os
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path, PurePath
from typing import Any, NamedTuple

# Tests, vendored packages and tables are not prose a model should spend its tokens on; two of the
# tables (_sysconfigdata, config-*) also differ from machine to machine.
EXCLUDED_FOLDERS = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"),
    *("encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"),
}
GENERATED = ("_sysconfigdata", "config-", "html/entities.py", "keyword.py", "token.py")
SUFFIXES = (".txt", ".jsonl", ".parquet")
HELD_OUT_ONE_IN = 20  # documents


class Document(NamedTuple):
    """One text with a name that stays the same wherever the corpus lies."""

    name: str
    text: str


def is_held_out(name: str, one_in: int = HELD_OUT_ONE_IN) -> bool:
    """Whether the document of this name is kept for validation: sha256(name) mod one_in == 0."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % one_in == 0


def divide(
    read: Callable[[], Iterable[Document]], one_in: int = HELD_OUT_ONE_IN
) -> Iterator[tuple[Document, bool]]:
    """Every document with whether it is held out from training, in the order of the corpus.

    Documents that `is_held_out` names are. Where that leaves one side empty, as with a single
    file, each document comes in two: the last part of its text, one_in-th of all and cut at a line
    where there is one, is held out.

    Args:
        read: reads the corpus anew at each call, as read_documents does.
        one_in: one document in so many is held out.
    """
    sides = set()
    for document in read():
        sides.add(is_held_out(document.name, one_in))
        if len(sides) == 2:
            break
    for document in read():
        if len(sides) == 2:
            yield document, is_held_out(document.name, one_in)
            continue
        cut = len(document.text) * (one_in - 1) // one_in
        cut = document.text.find("\n", cut, -1) + 1 or cut
        yield Document(document.name, document.text[:cut]), False
        yield Document(document.name, document.text[cut:]), True


def standard_library() -> list[Document]:
    """The modules of the running interpreter's standard library, sorted by name.

    Returns:
        Documents named by their POSIX path inside the library ("json/decoder.py"), without tests,
        IDLE, installed packages and generated tables: about 450 documents, 9 MB.

    Raises:
        FileNotFoundError: this interpreter keeps no source files of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = set(subfolders) - EXCLUDED_FOLDERS  # never walk through site-packages
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            name = path.relative_to(root).as_posix()
            if path.stat().st_size > 0 and not name.startswith(GENERATED):
                with tokenize.open(path) as file:
                    documents.append(Document(name, file.read()))
    if not documents:
        raise FileNotFoundError(
            f"expected the source files of Python's standard library in {root}, but found none: "
            "give text of your own with --data.files 'corpus/*.txt'"
        )
    return sorted(documents)


def read_documents(
    files: str | Sequence[str] | None = None,
    dataset: str | None = None,
    *,
    text_field: str = "text",
    subset: str | None = None,
    split: str = "train",
    streaming: bool = False,
    shuffle_buffer: int | None = None,
    seed: int = 0,
) -> Iterator[Document]:
    """Documents from files, or from a dataset by name, or, with neither, the standard library.

    Empty texts are passed over. A document's name is, for a .txt file, its path below the fixed
    part of the pattern ('corpus/*.txt' gives 'a.txt'); for a row of a .jsonl or .parquet file,
    that path and the row's number ('a.jsonl:0'); for a row of a dataset, 'train:0', counted as
    the rows come. In a dataset of text files, too, one file is one document (`datasets` itself
    would make one of every line).

    Args:
        files: glob patterns of .txt (one file is one document), .jsonl and .parquet files.
        dataset: a name on the Hugging Face hub, or a folder, as `datasets.load_dataset` takes it.
        text_field: the field that holds the text, in .jsonl, .parquet and datasets.
        subset: the dataset's configuration, where it has several.
        split: the dataset's split.
        streaming: read the dataset while it arrives instead of downloading it first.
        shuffle_buffer: of a streamed dataset: so many rows wait, and a random one of them is next;
            for when only a part of the dataset will be read. None keeps its order.
        seed: of shuffle_buffer.

    Raises:
        FileNotFoundError: a pattern matches no file, or there is no such dataset.
        ValueError: an unknown suffix, a missing field, a broken line, or no text at all.
    """
    if files and dataset:
        raise ValueError(f"expected files or a dataset, but got both: {files} and {dataset}")
    if shuffle_buffer and not (dataset and streaming):
        raise ValueError(
            f"expected a dataset with streaming for shuffle_buffer = {shuffle_buffer}: what is "
            "read as a whole is shuffled in training"
        )
    if files:
        documents = _from_files(find_files(files), text_field)
        source = files if isinstance(files, str) else " ".join(files)
    elif dataset:
        rows = _dataset_rows(dataset, subset, split, streaming)
        if shuffle_buffer:
            rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        documents = _from_rows(split, rows, text_field)
        source = f"{dataset}, split {split}"
    else:
        documents, source = iter(standard_library()), "the standard library"
    return _not_empty((document for document in documents if document.text), source)


def _not_empty(documents: Iterable[Document], source: str) -> Iterator[Document]:
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise ValueError(f"expected text in {source}, but the corpus is empty")


def find_files(patterns: str | Sequence[str]) -> dict[Path, str]:
    """The files that glob patterns match, each with its path below the pattern's fixed part.

    Raises:
        FileNotFoundError: a pattern matches no file.
    """
    files: dict[Path, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = [path for path in map(Path, glob(pattern, recursive=True)) if path.is_file()]
        if not paths:
            raise FileNotFoundError(f"expected files that match {pattern!r}, but there are none")
        fixed = _fixed_folder(pattern)
        files |= {path: path.relative_to(fixed).as_posix() for path in sorted(paths)}
    return files


def _from_files(files: dict[Path, str], text_field: str) -> Iterator[Document]:
    for path, name in files.items():
        if path.suffix == ".txt":
            yield Document(name, _decoded(path))
        elif path.suffix == ".jsonl":
            yield from _from_rows(name, _json_lines(path), text_field)
        elif path.suffix == ".parquet":
            yield from _from_rows(name, _parquet_rows(path, text_field), text_field)
        else:
            raise ValueError(f"expected a file that ends in {', '.join(SUFFIXES)}, but got {path}")


def _fixed_folder(pattern: str) -> PurePath:
    """The folder before the pattern's first wildcard."""
    folder = PurePath(pattern).parent
    while has_magic(str(folder)):
        folder = folder.parent
    return folder


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}: {error}") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(f"expected JSON in {path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object in {path}, line {number}, but got {row}")
            yield row


def _parquet_rows(path: Path, text_field: str) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"expected a parquet file in {path}: {error}") from None
    with file:
        _check_field(text_field, file.schema_arrow.names, str(path))
        for batch in file.iter_batches(columns=[text_field]):
            yield from batch.to_pylist()


def _dataset_rows(dataset: str, subset: str | None, split: str, streaming: bool) -> Any:
    from datasets import load_dataset, load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    options: dict[str, Any] = {"name": subset}
    try:
        if load_dataset_builder(dataset, **options).name == "text":
            options["sample_by"] = "document"
        return load_dataset(dataset, split=split, streaming=streaming, **options)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"expected a dataset {dataset!r} (subset {subset}, split {split}), but: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _from_rows(source: str, rows: Iterable[dict[str, Any]], text_field: str) -> Iterator[Document]:
    for number, row in enumerate(rows):
        _check_field(text_field, list(row), source)
        text = row[text_field]
        if not isinstance(text, str):
            raise ValueError(
                f"expected text in field {text_field!r} of {source}, row {number}, "
                f"but got {type(text).__name__}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a character
            raise ValueError(
                f"expected text in field {text_field!r} of {source}, row {number}, but {error}"
            ) from None
        yield Document(f"{source}:{number}", text)


def _check_field(text_field: str, fields: Sequence[str], source: str) -> None:
    if text_field not in fields:
        raise ValueError(
            f"expected a field {text_field!r} in {source}, but it has {', '.join(fields)}: "
            "name the field with --data.text_field"
        )
