"""FoxCache: what a model must remember of the tokens it has read.

Legend: B batch, T tokens of a chunk, S slots, H query heads, K key and value heads, D head size.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fox.tail import Tail

Rows = TypeVar("Rows", bound="LayerCache")


class LayerCache(ABC):
    """Decode state of one attention layer; made by ForgettingAttention.new_cache.

    Rows may hold different numbers of tokens: padding is never stored.

    Attributes:
        lengths: tokens read so far in each row.
        floor: the length below which a row cannot be cropped any more.
        rollback: how many tokens a crop can always take back.
        max_length: the most tokens that a row may get; None for no limit.
        k_rows, v_rows: the last projected rows (B, K, D) before the token shift; None without.
        evicts: whether keys that can matter no more are dropped.
    """

    evicts = False

    def __init__(
        self,
        batch_size: int,
        *,
        max_length: int | None,
        rollback: int,
        k_rows: Tail | None,
        v_rows: Tail | None,
    ) -> None:
        self.lengths = [0] * batch_size
        self.floor = [0] * batch_size
        self.rollback = rollback
        self.max_length = max_length
        self.k_rows = k_rows
        self.v_rows = v_rows

    @abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        tokens: Sequence[int],
        backend: str | None,
    ) -> Tensor:
        """Appends the last tokens[b] of each row and lets them see all: (B, T, H, D).

        Args:
            q: (B, T, H, D). k, v: (B, T, K, D). log_f: (B, T, H).
            tokens: of each row, at most T; what stands before them is padding.
            backend: as in fox.kernels.forgetting_attention.
        """

    @abstractmethod
    def kept(self) -> Tensor:
        """(B, K) int64, the tokens whose key and value are still there."""

    @abstractmethod
    def _select(self: Rows, chosen: Rows, index: Tensor) -> None:
        """Gives `chosen`, a copy of self, the stored tokens of the rows at `index`."""

    @abstractmethod
    def _crop(self, lengths: list[int]) -> None:
        """Drops the stored tokens from lengths[b] on; self.lengths is still the old one."""

    @abstractmethod
    def _clear(self, rows: list[int]) -> None:
        """Drops all stored tokens of these rows; self.lengths is 0 there already."""

    @abstractmethod
    def _join(self: Rows, others: Sequence[Rows]) -> None:
        """Appends the stored tokens of the others' rows to one's own."""

    def reserve(self, tokens: int) -> None:
        """Makes room for that many more tokens in each row.

        Raises:
            ValueError: that would be more than max_length.
        """
        held = max(self.lengths, default=0)
        if self.max_length is not None and held + tokens > self.max_length:
            raise ValueError(
                f"the cache was made for max_length = {self.max_length} tokens, but {held} held "
                f"and {tokens} new ones are {held + tokens}; make a longer one, or shorten the text"
            )

    def advance(self, tokens: Sequence[int]) -> None:
        """Counts new tokens, after they have been stored."""
        self.lengths = [n + new for n, new in zip(self.lengths, tokens, strict=True)]
        if self.limited:
            ends = zip(self.floor, self.lengths, strict=True)
            self.floor = [max(floor, n - self.rollback) for floor, n in ends]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(x.device for x in vars(self).values() if isinstance(x, Tensor))

    @property
    def limited(self) -> bool:
        """Whether a crop finds only the last `rollback` tokens."""
        return self.k_rows is not None or self.v_rows is not None

    def positions(self, T: int, tokens: Sequence[int], device: torch.device) -> Tensor:
        """(B, T) int64, the place of each token in its row's text; below it in padding."""
        first = [n - (T - new) for n, new in zip(self.lengths, tokens, strict=True)]
        if len(set(first)) == 1:
            return torch.arange(first[0], first[0] + T, device=device).expand(len(first), T)
        return sent(first, device)[:, None] + torch.arange(T, device=device)

    def select(self: Rows, index: Tensor) -> Rows:
        """A new cache of the rows at these places of the batch."""
        chosen = copy.copy(self)
        for name in ("k_rows", "v_rows"):
            tail = getattr(self, name)
            setattr(chosen, name, tail and tail.select(index))
        rows = index.tolist()
        chosen.lengths, chosen.floor = ([x[b] for b in rows] for x in (self.lengths, self.floor))
        self._select(chosen, index)
        return chosen

    def crop(self, lengths: list[int]) -> None:
        """Forgets the tokens from lengths[b] on, as if they had not been read."""
        dropped = [held - n for held, n in zip(self.lengths, lengths, strict=True)]
        for tail in (self.k_rows, self.v_rows):
            if tail is not None:
                tail.crop(dropped)
        self._crop(lengths)
        self.lengths = lengths

    def clear(self, rows: list[int]) -> None:
        """Makes these rows as empty as new ones."""
        for tail in (self.k_rows, self.v_rows):
            if tail is not None:
                tail.fill(rows, 0.0)
        self.lengths, self.floor = (
            [0 if b in rows else n for b, n in enumerate(counts)]
            for counts in (self.lengths, self.floor)
        )
        self._clear(rows)

    def join(self: Rows, others: Sequence[Rows]) -> Rows:
        """A new cache of one's own rows and then the others'."""
        joined = self.select(torch.arange(len(self.lengths), device=self.device))
        for name in ("k_rows", "v_rows"):
            tails = [getattr(cache, name) for cache in (self, *others)]
            setattr(joined, name, tails[0] and Tail.cat(tails))
        joined._join(others)
        joined.lengths = [n for cache in (self, *others) for n in cache.lengths]
        joined.floor = [n for cache in (self, *others) for n in cache.floor]
        return joined

    def to(self: Rows, device: torch.device) -> Rows:
        """A copy on a device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, copy=True))
            elif isinstance(value, Tail):
                setattr(moved, name, value.to(device))
        return moved

    def kind(self) -> tuple[object, ...]:
        """What caches must share for their rows to stand in one."""
        return (type(self), self.rollback, self.max_length)

    def bytes(self) -> int:
        """Bytes allocated."""
        held = [x.rows if isinstance(x, Tail) else x for x in vars(self).values()]
        return sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """(len(numbers),) int64 on a device, without waiting for it."""
    here = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return here.to(device, non_blocking=True)


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds.

    Attributes:
        lengths: tokens read in each row.
        kept: (layers, B, K) int64, tokens whose key and value are still there.
        bytes: allocated by the cache.
        evicts: whether keys that can matter no more are dropped.
    """

    lengths: list[int]
    kept: Tensor
    bytes: int
    evicts: bool

    def __str__(self) -> str:
        read = max(sum(self.lengths), 1)
        lines = [
            f"{len(self.lengths)} rows of at most {max(self.lengths, default=0)} tokens, "
            f"{self.bytes / 2**20:.1f} MiB, {'evicting' if self.evicts else 'keeping all'}"
        ]
        for layer, kept in enumerate(self.kept.sum(1).tolist()):
            share = " ".join(f"{tokens / read:4.0%}" for tokens in kept)
            lines.append(f"layer {layer:3d}: {share} of the tokens kept, by key head")
        return "\n".join(lines)


class FoxCache:
    """Decode state of a model: pass it to every call, and each call continues the text.

    Made by `model.new_cache(batch_size)`. Rows may hold different numbers of tokens.

    Attributes:
        layers: one LayerCache per attention layer.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def lengths(self) -> list[int]:
        """Tokens read in each row, without padding."""
        return list(self.layers[0].lengths)

    @property
    def length(self) -> int:
        """Tokens read in the longest row."""
        return max(self.layers[0].lengths, default=0)

    @property
    def batch_size(self) -> int:
        """Rows, the same in every call."""
        return len(self.layers[0].lengths)

    @property
    def max_length(self) -> int | None:
        """The most tokens that a row may get; None for no limit."""
        return self.layers[0].max_length

    @property
    def evicts(self) -> bool:
        """Whether keys that can matter no more are dropped."""
        return any(layer.evicts for layer in self.layers)

    def check(self, layers: int) -> None:
        """Refuses a cache of another model, and one that a broken call has left half way."""
        if len(self.layers) != layers:
            raise ValueError(
                f"the cache was made for {len(self.layers)} layers, but the model has {layers}; "
                "make one with its new_cache"
            )
        for number, layer in enumerate(self.layers):
            if layer.lengths != self.layers[0].lengths:
                raise ValueError(
                    "a call that was broken off has left this cache half way: layer 0 has read "
                    f"{self.lengths} tokens of its rows, layer {number} {layer.lengths}; read the "
                    "text again with a new cache"
                )

    def reserve(self, tokens: int) -> None:
        """Allocates room for that many more tokens in each row at once.

        Raises:
            ValueError: that would be more than max_length.
        """
        for layer in self.layers:
            layer.reserve(tokens)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was, in place: beam search.

        Args:
            index: (B,) integer.
        """
        if len(index) != self.batch_size:
            raise ValueError(
                f"reorder expects one row number for each of the {self.batch_size} rows, "
                f"but got {len(index)}; select makes a cache of another size"
            )
        if index.tolist() != list(range(self.batch_size)):
            self.layers = self.select(index).layers

    def select(self, rows: Tensor | Sequence[int]) -> "FoxCache":
        """A new cache of the given rows, in that order; rows may repeat."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.layers[0].device)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.batch_size:
            raise ValueError(
                f"rows must lie in [0, {self.batch_size - 1}], but got {index.tolist()}"
            )
        return FoxCache([layer.select(index) for layer in self.layers])

    def repeat_interleave(self, repeats: int) -> "FoxCache":
        """A new cache with each row `repeats` times, copies side by side."""
        return self.select([b for b in range(self.batch_size) for _ in range(repeats)])

    @staticmethod
    def cat(caches: Sequence["FoxCache"]) -> "FoxCache":
        """A new cache with the rows of several caches of one model, made with the same options."""
        if not caches or len({c._kind() for c in caches}) != 1:
            raise ValueError(
                "FoxCache.cat expects caches of one model that were made with the same options, "
                f"but got {len(caches)} of {len({c._kind() for c in caches})} kinds"
            )
        columns = zip(*(cache.layers for cache in caches), strict=True)
        return FoxCache([column[0].join(column[1:]) for column in columns])

    def _kind(self) -> tuple[object, ...]:
        return (len(self.layers), *self.layers[0].kind())

    def crop(self, length: int | Sequence[int]) -> None:
        """Forgets the tokens behind the first `length` of each row, as if never read.

        Args:
            length: tokens that stay in each row, one number or one per row.

        Raises:
            ValueError: a row is shorter, or the crop goes back further than the cache can: by more
                than `rollback` tokens where there is a token shift or eviction.
        """
        held = self.lengths
        kept = [length] * self.batch_size if isinstance(length, int) else list(length)
        if len(kept) != self.batch_size:
            raise ValueError(f"crop expects {self.batch_size} lengths, but got {len(kept)}")
        for b, (n, have) in enumerate(zip(kept, held, strict=True)):
            if not 0 <= n <= have:
                raise ValueError(f"cannot crop row {b} to {n} tokens: the cache holds {have} of it")
            floor = max(layer.floor[b] for layer in self.layers)
            if n < floor:
                raise ValueError(
                    f"cannot crop row {b} to {n} tokens: of the tokens before {floor} the cache "
                    "has forgotten what it needs for that; make it with a larger rollback (now "
                    f"{self.layers[0].rollback}), or select a copy before reading on"
                )
        for layer in self.layers:
            layer.crop(list(kept))

    def clear(self, rows: Sequence[int]) -> None:
        """Makes these rows as empty as new ones, in place: their texts begin anew.

        Args:
            rows: numbers of rows.
        """
        if not all(0 <= row < self.batch_size for row in rows):
            raise ValueError(f"rows must lie in [0, {self.batch_size - 1}], but got {list(rows)}")
        for layer in self.layers:
            layer.clear(list(rows))

    def to(self, device: str | torch.device) -> "FoxCache":
        """A copy on a device."""
        return FoxCache([layer.to(torch.device(device)) for layer in self.layers])

    def report(self) -> CacheReport:
        """Tokens kept per layer and head, and bytes."""
        kept = torch.stack([layer.kept().cpu() for layer in self.layers])
        used = sum(layer.bytes() for layer in self.layers)
        return CacheReport(self.lengths, kept, used, self.evicts)
