"""LongCrawl64: long documents of GPT-2 tokens in a zarr array, read where they lie.

The published data are two arrays, train.zarr and heldout.zarr, of (documents, 65,536) token ids:
6,609,334 and 52,131 documents of JSON-escaped web text, cut to equal length, without an end of
text. Any arrays of that shape are read the same way. A folder of ours holds tokenizer.json and a
meta.json that says where the arrays are; nothing is copied.

Source: Buckman and Gelada, LongCrawl64, 2024; its use in Lin et al., Forgetting Transformer, 2025.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from fox.files import read_json, whole_file, write_json
from fox.train.shards import Part, Record, Shards
from fox.train.tokenizer import num_entries, read_tokenizer

if TYPE_CHECKING:
    from zarr import Array

ARRAYS = {"train": "train.zarr", "validation": "heldout.zarr"}
SAMPLED = 64  # documents, evenly spread, that stand for all in the hash and in bytes per token


class ZarrTokens:
    """The documents of an array behind one another, (documents * length,).

    Args:
        array: (documents, length) of an integer type.
    """

    def __init__(self, array: "Array") -> None:
        self.array = array
        self.documents, self.length = array.shape

    def __len__(self) -> int:
        return self.documents * self.length

    def __getitem__(self, places: slice, /) -> np.ndarray:
        begin, end, _ = places.indices(len(self))
        pieces = []
        while begin < end:
            document, first = divmod(begin, self.length)
            piece = np.asarray(self.array[document, first : first + end - begin])
            pieces.append(piece)
            begin += len(piece)
        return np.concatenate(pieces or [np.zeros(0, self.array.dtype)])


def link_longcrawl64(folder: Path, arrays: Path, tokenizer: Path) -> Shards:
    """Writes the folder that makes training read the arrays.

    Args:
        folder: where tokenizer.json and meta.json go.
        arrays: the folder with train.zarr and heldout.zarr.
        tokenizer: the tokenizer.json of their tokens, GPT-2's.

    Raises:
        ValueError, FileNotFoundError: an array is not there or of another shape, or has tokens
            that the tokenizer does not know.
        ModuleNotFoundError: zarr is not installed.
    """
    encoder, end = read_tokenizer(tokenizer)
    parts = {part: open_array(arrays / name) for part, name in ARRAYS.items()}
    counts = {part: _counts(array, encoder, arrays) for part, array in parts.items()}
    with whole_file(folder / "tokenizer.json") as path:
        encoder.save(str(path))
    write_json(
        folder / "meta.json",
        {
            "zarr": str(arrays.resolve()),
            "prepared": True,
            "end_of_text": encoder.token_to_id(end),
            **counts,
        },
    )
    return open_longcrawl64(folder)


def open_longcrawl64(folder: Path) -> Shards:
    """Opens the arrays that a folder of link_longcrawl64 names.

    Raises:
        ValueError, FileNotFoundError: an array is gone, or is not the one it was.
        ModuleNotFoundError: zarr is not installed.
    """
    meta = read_json(folder / "meta.json")
    parts = []
    for part, name in ARRAYS.items():
        path = Path(meta["zarr"]) / name
        array = open_array(path)
        if _hash(array, _sample(array)) != meta[part]["sha256"]:
            raise ValueError(
                f"expected {path} to be as it was when {folder} was made, but it has changed: "
                "repeat fox-data longcrawl64"
            )
        bounds = np.arange(array.shape[0] + 1, dtype=np.int64) * array.shape[1]
        parts.append(Part(ZarrTokens(array), bounds))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Shards(folder, meta, tokenizer, *parts)


def open_array(path: Path) -> "Array":
    """A zarr array of documents.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not (documents, length) of integers.
        ModuleNotFoundError: zarr is not installed.
    """
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LongCrawl64 needs zarr: pip install 'fox-transformer[zarr]'"
        ) from error
    if not path.is_dir():
        raise FileNotFoundError(f"expected a zarr array, but there is no {path}")
    array = zarr.open_array(path, mode="r")
    if array.ndim != 2 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise ValueError(
            f"expected (documents, length) token ids in {path}, but it is {array.shape} "
            f"{array.dtype}"
        )
    return array


def _sample(array: "Array") -> np.ndarray:
    places = np.linspace(0, array.shape[0] - 1, min(SAMPLED, array.shape[0])).astype(int)
    return np.stack([np.asarray(array[place]) for place in places.tolist()])


def _hash(array: "Array", sample: np.ndarray) -> str:
    """Of the shape and the sample: the whole would take hours."""
    digest = hashlib.sha256(repr((array.shape, str(array.dtype))).encode())
    digest.update(sample.tobytes())
    return digest.hexdigest()


def _counts(array: "Array", tokenizer: Tokenizer, arrays: Path) -> Record:
    sample = _sample(array)
    if sample.max() >= num_entries(tokenizer):
        raise ValueError(
            f"expected the tokenizer of the arrays in {arrays}, but it has "
            f"{num_entries(tokenizer)} entries, and they have token {sample.max()}"
        )
    documents, length = array.shape
    texts = tokenizer.decode_batch(sample.tolist(), skip_special_tokens=False)
    per_document = sum(len(text.encode()) for text in texts) / len(texts)
    return {
        "documents": documents,
        "tokens": documents * length,
        "bytes": round(per_document * documents),
        "sha256": _hash(array, sample),
    }
