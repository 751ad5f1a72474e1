"""SlotCache: a decode cache that keeps every key and value.

Legend: B batch, T tokens of a chunk, S slots, H query heads, K key and value heads, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fox.cache import LayerCache, sent
from fox.kernels import forgetting_attention_with_kvcache
from fox.tail import Tail


class SlotCache(LayerCache):
    """Every key and value, in one buffer that grows by doubling.

    Attributes:
        log_pruning_tolerance: of the rows of a chunk, by their norms: where gates forget and
            QK-norm bounds the logits, keys are on pages instead.
        k, v: (B, K, S, D), as attention uses them: after shift, norm and rotation.
        lambda_: (B, H, S) float64, the running log gate up to each token, so that no step sums
            gates again and position 1e6 is as exact as position 10.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        log_pruning_tolerance: float | None,
        max_length: int | None,
        rollback: int,
        k_rows: Tail | None,
        v_rows: Tail | None,
    ) -> None:
        super().__init__(
            batch_size, max_length=max_length, rollback=rollback, k_rows=k_rows, v_rows=v_rows
        )
        self.log_pruning_tolerance = log_pruning_tolerance
        slots = max_length or 0
        self.k = torch.empty(batch_size, num_kv_heads, slots, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.lambda_ = torch.empty(batch_size, num_heads, slots, dtype=torch.float64, device=device)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        tokens: Sequence[int],
        backend: str | None,
    ) -> Tensor:
        T = q.shape[1]
        self._make_room(max(tokens, default=T))
        rest: dict[str, Any] = {"backend": backend}
        rest |= {"log_pruning_tolerance": self.log_pruning_tolerance}
        held = (self.k.transpose(1, 2), self.v.transpose(1, 2), self.lambda_.transpose(1, 2))
        if min(tokens, default=T) == T:
            alike = len(set(self.lengths)) <= 1
            filled = max(self.lengths, default=0) if alike else sent(self.lengths, q.device)
            out = forgetting_attention_with_kvcache(q, *held, k, v, log_f, filled, **rest)
        else:  # Padded chunks are rare: each row goes alone, so that padding is never stored.
            out = torch.zeros_like(q)
            for b, new in enumerate(tokens):
                row, last = slice(b, b + 1), slice(T - new, T)
                if new:
                    out[row, last] = forgetting_attention_with_kvcache(
                        q[row, last],
                        held[0][row],
                        held[1][row],
                        held[2][row],
                        k[row, last],
                        v[row, last],
                        log_f[row, last],
                        self.lengths[b],
                        **rest,
                    )
        self.advance(tokens)
        return out

    def reserve(self, tokens: int) -> None:
        super().reserve(tokens)
        needed = max(self.lengths, default=0) + tokens
        if needed > self.k.shape[2]:
            self._resize(needed)

    def _make_room(self, tokens: int) -> None:
        super().reserve(tokens)
        needed, slots = max(self.lengths, default=0) + tokens, self.k.shape[2]
        if needed > slots:
            self._resize(max(needed, 2 * slots, 64))

    def _resize(self, slots: int) -> None:
        held = max(self.lengths, default=0)
        for name in ("k", "v", "lambda_"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], slots, *old.shape[3:])
            new[:, :, :held] = old[:, :, :held]
            setattr(self, name, new)

    def kept(self) -> Tensor:
        return torch.tensor(self.lengths)[:, None].repeat(1, self.k.shape[1])

    def _select(self, chosen: "SlotCache", index: Tensor) -> None:
        rows = index.tolist()
        for name in ("k", "v", "lambda_"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            for b, row in enumerate(rows):  # 3 times as fast as an index, which copies twice
                held = slice(0, self.lengths[row])
                new[b, :, held] = old[row, :, held]
            setattr(chosen, name, new)

    def _crop(self, lengths: list[int]) -> None:
        pass  # slots from a row's length on are never read

    def _clear(self, rows: list[int]) -> None:
        pass  # nor are those of an empty row

    def _join(self, others: Sequence["SlotCache"]) -> None:
        self._resize(max(cache.k.shape[2] for cache in (self, *others)))
        for name in ("k", "v", "lambda_"):
            parts = [getattr(self, name)]
            for other in others:
                part = getattr(other, name)
                held = max(other.lengths, default=0)
                parts.append(part.new_empty(len(part), *parts[0].shape[1:]))
                parts[-1][:, :, :held] = part[:, :, :held]
            setattr(self, name, torch.cat(parts))
