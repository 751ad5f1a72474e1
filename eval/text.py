"""Held-out documents, and rows of tokens cut from them.

Legend: N rows, T scored positions of a row.
"""

from typing import Literal, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from fox.corpus import Document, divide, read_documents

TOKENS_PER_BATCH = 8192
DOCUMENTS_AT_ONCE = 64  # encoded together: by several threads, but never the whole corpus

Split = Literal["held_out", "all"]


def documents_of(files: list[str] | None, split: Split) -> list[Document]:
    """Documents that no training has seen, or, with split "all", every document.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: there is no text.
    """
    if split == "all":
        return list(read_documents(files))
    return [
        document
        for document, held_out in divide(lambda: read_documents(files))
        if held_out and document.text
    ]


def batches_of(rows: int, length: int) -> list[slice]:
    """Slices over `rows` rows of `length` tokens, of about TOKENS_PER_BATCH tokens each."""
    size = max(1, TOKENS_PER_BATCH // length)
    return [slice(start, start + size) for start in range(0, rows, size)]


class Rows(NamedTuple):
    """Windows of documents that do not overlap, all of one length.

    Attributes:
        ids: (N, T + 1) int32; first the first window of every document, then the second ones.
        documents: (N,) int64, the number of each row's document.
        num_bytes: (N, T + 1) int32, UTF-8 bytes from the end of a row's first token to each one's.
    """

    ids: Tensor
    documents: Tensor
    num_bytes: Tensor


def rows_of(
    documents: list[Document], tokenizer: Tokenizer, length: int, max_rows: int | None
) -> Rows:
    """Cut documents into windows of length + 1 tokens; what is left at an end is not used.

    Raises:
        ValueError: no document is long enough.
    """
    found, longest = [], 0
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        chunk = documents[start : start + DOCUMENTS_AT_ONCE]
        encodings = tokenizer.encode_batch([text for _, text in chunk], add_special_tokens=False)
        for number, (document, code) in enumerate(zip(chunk, encodings, strict=True), start):
            longest = max(longest, len(code.ids))
            ends = torch.tensor(byte_ends(document, [end for _, end in code.offsets]))
            windows = zip(
                torch.tensor(code.ids).split(length + 1), ends.split(length + 1), strict=True
            )
            for window, (ids, end) in enumerate(windows):
                if len(ids) == length + 1:
                    found.append((window, number, ids.int(), (end - end[0]).int()))
    if not found:
        raise ValueError(
            f"expected a document of more than {length} tokens, but the longest of "
            f"{len(documents)} has {longest}: lower --length"
        )
    found.sort(key=lambda row: row[:2])
    _, numbers, ids, num_bytes = zip(*found[:max_rows], strict=True)
    return Rows(torch.stack(ids), torch.tensor(numbers), torch.stack(num_bytes))


def byte_ends(document: Document, ends: list[int]) -> list[int]:
    """Ends in characters -> ends in UTF-8 bytes."""
    text, result, done, last = document.text, [], 0, 0
    for end in ends:
        if end > last:  # a token may be a part of one character
            done += len(text[last:end].encode())
            last = end
        result.append(done)
    return result
