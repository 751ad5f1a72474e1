"""Finished work on disk: lines of JSON, appended as they come, so that a stopped run can go on."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Store:
    """The rows of one run in a file that only grows.

    Rows of other runs (another model, text or protocol) stay in the file and are passed over.

    Args:
        path: the file; made if missing. A last line without a newline was torn by a crash and is
            cut off.
        run: what the rows must agree in; see `fingerprint`.

    Raises:
        ValueError: a line before the last is not JSON.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"expected JSON in {path}, line {number}: {error}; "
                    "delete the file to start anew"
                ) from None
            if row.pop("run") == run:
                self.rows.append(row)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, in memory and on disk."""
        rows = list(rows)
        lines = [json.dumps({"run": self.run, **row}, allow_nan=False) + "\n" for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        self.rows += rows


def fingerprint(model: nn.Module, parts: Sequence[object]) -> str:
    """Sixteen hexadecimal digits that change with the model's config or weights, or with a part."""
    digest = hashlib.sha256(repr((model.config, *parts)).encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        content = weight.detach().cpu().contiguous().reshape(-1)  # no view of a scalar as bytes
        digest.update(content.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def run_key(*parts: object) -> str:
    """Sixteen hexadecimal digits that change with any of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
