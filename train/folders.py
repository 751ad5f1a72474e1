"""Prepared folders: opened by what is in them, and joined."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fox.files import read_json
from fox.train.longcrawl import open_longcrawl64
from fox.train.shards import PARTS, JoinedTokens, Part, Shards, open_shards


def open_folder(folder: Path) -> Shards:
    """Opens what fox-data or a run has put into a folder: shards, or the way to LongCrawl64.

    Raises:
        ValueError, FileNotFoundError: nothing is there, or it is not whole.
    """
    index = folder / "meta.json"
    if not index.is_file():
        begun = (folder / "begun.json").is_file()
        raise FileNotFoundError(
            f"expected a prepared corpus in {folder}, but "
            + ("preparing it was cut short: repeat the command" if begun else "there is none")
            + " (fox-data prepare)"
        )
    return open_longcrawl64(folder) if "zarr" in read_json(index) else open_shards(folder)


def join_shards(several: Sequence[Shards]) -> Shards:
    """Corpora of one tokenizer behind one another, as one.

    Raises:
        ValueError: they have different tokenizers.
    """
    first = several[0]
    if len(several) == 1:
        return first
    for other in several[1:]:
        if (
            other.tokenizer.to_str() != first.tokenizer.to_str()
            or other.meta["end_of_text"] != first.meta["end_of_text"]
        ):
            raise ValueError(
                f"expected one tokenizer in all folders of data.folder, but {other.folder} has "
                f"another one than {first.folder}: prepare both with --tokenizer"
            )
    meta = first.meta | {
        part: {
            name: sum(shards.meta[part][name] for shards in several)
            for name in ("documents", "tokens", "bytes")
        }
        for part in PARTS
    }
    train, validation = (_join([getattr(shards, part) for shards in several]) for part in PARTS)
    return Shards(first.folder, meta, first.tokenizer, train, validation)


def _join(parts: Sequence[Part]) -> Part:
    tokens = [part.tokens for part in parts]
    offsets = np.cumsum([0, *(len(each) for each in tokens)])
    ends = [part.bounds[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Part(
        JoinedTokens([len(each) for each in tokens], tokens.__getitem__),
        np.concatenate([[0], *ends]),
    )
