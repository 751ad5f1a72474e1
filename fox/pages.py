"""PagedCache: a decode cache from which forgotten keys leave for good, head by head.

Legend: B batch, T tokens of a chunk, H query heads, K key heads, G = H / K, D head size, P pages.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fox.cache import LayerCache, sent
from fox.kernels import forgetting_attention_with_kvcache, paged_attention, sort_pages
from fox.kernels.gates import running_log_gates
from fox.tail import Tail

PAGE = 64
# So many rows see the pages as they lie, like heads of a group; more are worth gathering them.
FEW = 16
_POOL = ("k", "v", "running", "reach", "owner", "number")


class PagedCache(LayerCache):
    """Keys and values in pages of 64 tokens of one key head; forgotten pages return to a pool.

    With U >= |softmax_scale <q_i, k_j>| for every pair, the keys up to c have at most the share
    sum_{j <= c} exp(lambda_i - lambda_j + 2 U) of row i's attention. lambda only falls, so once

        2 U + lambda_t + ln sum_{j <= c} exp(-lambda_j) < log_tolerance,

    they have less than exp(log_tolerance) of any row from t on, together and whatever the text
    says: they are dropped. The sum counts every key before c, dropped ones too, so the bound holds
    for all dropped keys at once and for texts of any length.

    Args:
        batch_size, num_heads, num_kv_heads, head_dim, dtype, device: of the layer.
        log_pruning_tolerance: ln of the largest total weight that a row may lose; half of it goes
            to eviction, half to the pruning of the rows of a chunk.
        logit_bound: (H,), U.
        logit_cap: if not None, U rests on nothing but the caller's word: it is checked against the
            norms of all queries and keys, and a breach raises.
        max_length, rollback, k_rows, v_rows: as in LayerCache. A page is only judged by the gates
            up to `rollback` tokens ago, so that these can be taken back.

    Attributes:
        k, v: (P, 64, D), the pool; pages [0, used) are in use, in any order.
        running: (P, G, 64) float64, running log gates; inf in empty slots.
        reach: (P, G) float64, ln sum exp(-lambda_j) up to the page's last token.
        owner, number: (P,) int64, b K + key head, and the page's place in that head's text.
        open: (B, K) int64, the page that is being filled, where there is one.
        order, borders: the pages by owner, as fox.kernels.sort_pages gives them.

    Source: the bound of Lin et al., Adaptive Computation Pruning for the Forgetting Transformer,
    2025, with the sum over keys in the place of their number.
    """

    evicts = True

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        log_pruning_tolerance: float,
        logit_bound: Tensor,
        logit_cap: float | None,
        max_length: int | None,
        rollback: int,
        k_rows: Tail | None,
        v_rows: Tail | None,
    ) -> None:
        super().__init__(
            batch_size, max_length=max_length, rollback=rollback, k_rows=k_rows, v_rows=v_rows
        )
        B, H, K, G = batch_size, num_heads, num_kv_heads, num_heads // num_kv_heads
        # Half of the tolerance each for eviction and for pruning inside a chunk.
        self.log_tolerance = log_pruning_tolerance - math.log(2)
        self.bound = logit_bound.to(device, torch.float64)
        self.logit_cap = logit_cap
        self.largest_key = torch.zeros(B, K, device=device)
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.total = Tail(torch.zeros(B, H, **wide), rollback)
        self.total_reach = Tail(torch.full((B, H), -math.inf, **wide), rollback)
        self.used = 0
        self.k = torch.zeros(0, PAGE, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.running = torch.zeros(0, G, PAGE, **wide)
        self.reach = torch.zeros(0, G, **wide)
        self.owner = torch.zeros(0, dtype=torch.int64, device=device)
        self.number = torch.zeros_like(self.owner)
        self.open = torch.zeros(B, K, dtype=torch.int64, device=device)
        self._sort()

    @property
    def limited(self) -> bool:
        return True

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        tokens: Sequence[int],
        backend: str | None,
    ) -> Tensor:
        self.reserve(max(tokens, default=0))
        if self.logit_cap is not None:
            self._check_cap(q, k, tokens)
        running, reach = self._gates(log_f, tokens)
        try:
            opened = self._open_pages(tokens)
            self._store(k, v, running, reach, tokens)
            if 0 < q.shape[1] <= FEW:
                out = self._few_rows(q, running, tokens, backend)
            else:
                out = self._rows(q, tokens, backend)
        except BaseException:  # or an interrupt: what has been stored was never read
            self._crop(self.lengths)
            raise
        self.total.append(running, tokens)
        self.total_reach.append(reach, tokens)
        self.advance(tokens)
        if opened:
            self._sort()
            self._evict()
        return out

    def kind(self) -> tuple[object, ...]:
        return (*super().kind(), self.log_tolerance, self.logit_cap)

    def kept(self) -> Tensor:
        filled = (self._lengths()[self._row()] - self._used("number") * PAGE).clamp(max=PAGE)
        kept = torch.zeros(self.open.numel(), dtype=torch.int64, device=self.k.device)
        return kept.index_add_(0, self._used("owner"), filled).view(self.open.shape)

    def _check_cap(self, q: Tensor, k: Tensor, tokens: Sequence[int]) -> None:
        T = q.shape[1]
        if max(tokens, default=0) == 0:
            return
        padding = self.positions(T, tokens, q.device) < self._lengths()[:, None]
        q_norm, k_norm = (
            torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
            .masked_fill(padding[..., None], 0.0)
            .amax(1)
            for x in (q, k.to(self.k.dtype))
        )
        largest_key = torch.maximum(self.largest_key, k_norm)
        pairs = q_norm.view(*self.open.shape, -1) * largest_key[..., None]
        largest = float(pairs.max()) / math.sqrt(q.shape[-1])
        if not largest <= self.logit_cap:  # type: ignore[operator]
            raise ValueError(
                f"the cache drops keys on the word that no logit exceeds logit_cap = "
                f"{self.logit_cap}, but the norms of q and k now allow {largest:.4g}; read the "
                "text again with a larger logit_cap"
            )
        self.largest_key = largest_key

    def _gates(self, log_f: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Running log gates and ln sum exp(-lambda) of a chunk, each (B, T, H) float64."""
        T = log_f.shape[1]
        start = None
        if min(tokens, default=T) < T:
            start = sent([T - new for new in tokens], log_f.device)
        running = running_log_gates(log_f, start, self.total.back(0))
        steps = -running
        if start is not None:
            padding = torch.arange(T, device=log_f.device) < start[:, None]
            steps = steps.masked_fill(padding[:, None], -math.inf)
        before = self.total_reach.back(0).unsqueeze(-1)
        if T == 1:
            reach = torch.logaddexp(before, steps)
        else:
            reach = torch.logcumsumexp(torch.cat([before, steps], dim=-1), dim=-1)[..., 1:]
        return running.transpose(1, 2), reach.transpose(1, 2)

    def _open_pages(self, tokens: Sequence[int]) -> bool:
        """Takes from the pool the pages that the new tokens need; whether there are any."""
        pages = [
            (b, number)
            for b, (held, new) in enumerate(zip(self.lengths, tokens, strict=True))
            for number in range(-(-held // PAGE), -(-(held + new) // PAGE))
        ]
        if not pages:
            return False
        K = self.open.shape[1]
        new = slice(self.used, self.used + len(pages) * K)
        if new.stop > len(self.k):
            self._resize(new.stop)
        row, number = torch.tensor(pages, device=self.k.device).repeat_interleave(K, 0).unbind(1)
        head = torch.arange(K, device=self.k.device).repeat(len(pages))
        self.owner[new] = row * K + head
        self.number[new] = number
        self.running[new] = math.inf
        # A page may come from a row of NaNs, and what is not visible must be finite at least.
        self.k[new] = self.v[new] = 0.0
        self.used = new.stop
        self._sort()
        return True

    def _store(
        self, k: Tensor, v: Tensor, running: Tensor, reach: Tensor, tokens: Sequence[int]
    ) -> None:
        B, T, K, _ = k.shape
        position = self.positions(T, tokens, k.device)
        if T == 1:
            page = self.open.unsqueeze(2)
        else:
            first = self._lengths() // PAGE
            table = self._table(first, T // PAGE + 2)
            place = (position // PAGE - first[:, None]).clamp(min=0)
            page = table.gather(2, place[:, None].expand(B, K, T))  # (B, K, T)
        slot = (position % PAGE)[:, None].expand(B, K, T)
        real: Tensor | slice = slice(None)
        if min(tokens, default=T) < T:
            real = (position >= self._lengths()[:, None])[:, None].expand(B, K, T)
        page, slot = page[real], slot[real]
        self.k[page, slot] = k.transpose(1, 2)[real].to(self.k.dtype)
        self.v[page, slot] = v.transpose(1, 2)[real].to(self.v.dtype)
        self.running[page, :, slot] = running.unflatten(2, (K, -1)).transpose(1, 2)[real]
        ends = [(n + new) // PAGE > n // PAGE for n, new in zip(self.lengths, tokens, strict=True)]
        if any(ends):
            last = slot == PAGE - 1
            self.reach[page[last]] = reach.unflatten(2, (K, -1)).transpose(1, 2)[real][last]

    def _table(self, first: Tensor, pages: int) -> Tensor:
        """(B, K, pages), the pages from number first[b] on; 0 where there is none."""
        column = self._used("number") - first[self._row()]
        wanted = ((column >= 0) & (column < pages)).nonzero().squeeze(1)
        table = self.open.new_zeros(self.open.numel(), pages)
        table[self._used("owner")[wanted], column[wanted]] = wanted
        return table.view(*self.open.shape, pages)

    def _sort(self) -> None:
        """After pages have changed hands: which ones are being filled, and whose each is."""
        self.order, self.borders = sort_pages(self._used("owner"), self.open.numel())
        self.open = self._table(self._lengths() // PAGE, 1).squeeze(2)

    def _few_rows(
        self, q: Tensor, running: Tensor, tokens: Sequence[int], backend: str | None
    ) -> Tensor:
        """(B, T, H, D): all rows see all pages where they lie, as if they were heads of a group."""
        T, K, owner = q.shape[1], self.open.shape[1], self._used("owner")
        now = running.unflatten(2, (K, -1)).transpose(1, 2).flatten(0, 1)  # (B K, T, G)
        bias = (now[owner].unsqueeze(3) - self._used("running").unsqueeze(1)).float()
        if T > 1:
            first = self._used("number")[:, None] * PAGE
            slots = first + torch.arange(PAGE, device=q.device)  # (P, 64)
            rows = self.positions(T, tokens, q.device)[self._row()]  # (P, T)
            later = slots[:, None] > rows[..., None]
            bias = bias.masked_fill(later.unsqueeze(2), -math.inf)
        heads = q.unflatten(2, (K, -1)).transpose(1, 2)  # (B, K, T, G, D)
        out = paged_attention(
            heads.flatten(1, 3),
            self._used("k"),
            self._used("v"),
            bias.flatten(1, 2),
            owner,
            order=self.order,
            borders=self.borders,
            backend=backend,
        )
        return out.view(heads.shape).transpose(1, 2).flatten(2, 3)

    def _rows(self, q: Tensor, tokens: Sequence[int], backend: str | None) -> Tensor:
        """(B, T, H, D): the rows of a chunk, one key head after the other."""
        _, T, H, D = q.shape
        G = H // self.open.shape[1]
        out, borders = torch.zeros_like(q), self.borders.tolist()
        for owner in range(self.open.numel()):
            b, head = divmod(owner, self.open.shape[1])
            last, group = slice(T - tokens[b], T), slice(head * G, (head + 1) * G)
            if tokens[b] == 0:
                continue
            pages = self.order[borders[owner] : borders[owner + 1]]
            pages = pages[self.number[pages].argsort()]
            empty = -(self.lengths[b] + tokens[b]) % PAGE
            held = slice(0, len(pages) * PAGE - empty)
            out[b : b + 1, last, group] = forgetting_attention_with_kvcache(
                q[b : b + 1, last, group],
                self.k[pages].view(1, -1, 1, D)[:, held],
                self.v[pages].view(1, -1, 1, D)[:, held],
                self.running[pages].transpose(1, 2).reshape(1, -1, G)[:, held],
                log_pruning_tolerance=self.log_tolerance,
                logit_bound=self.bound[group],
                backend=backend,
            )
        return out

    def _evict(self) -> None:
        """Returns to the pool the pages that no later row can miss."""
        owner, row = self._used("owner"), self._row()
        whole = (self._used("number") + 1) * PAGE <= self._lengths()[row]
        settled = self.total.back(self.rollback).reshape(self.open.numel(), -1)[owner]
        bound = self.bound.view(self.open.shape[1], -1)[owner % self.open.shape[1]]
        lost = 2 * bound + settled + self._used("reach")
        self._free(whole & (lost < self.log_tolerance).all(-1))

    def _free(self, freed: Tensor) -> None:
        """Moves the last pages in use into the places of the freed ones."""
        left = self.used - int(freed.sum())
        if left == self.used:
            return
        holes = freed[:left].nonzero().squeeze(1)
        moved = (~freed[left:]).nonzero().squeeze(1) + left
        for name in _POOL:
            pool = getattr(self, name)
            pool[holes] = pool[moved]
        self.used = left
        if 4 * left < 3 * len(self.k):
            self._resize(left)
        self._sort()

    def _resize(self, used: int) -> None:
        """An eighth more pages than are used: small steps, as the last pages of all heads are."""
        pages = used + used // 8
        for name in _POOL:
            old = getattr(self, name)
            new = old.new_zeros(pages, *old.shape[1:])
            new[: self.used] = old[: self.used]
            setattr(self, name, new)

    def _select(self, chosen: "PagedCache", index: Tensor) -> None:
        K = self.open.shape[1]
        borders = self.borders[::K].tolist()
        places = [self.order[borders[b] : borders[b + 1]] for b in index.tolist()]
        pages = torch.cat([index[:0], *places])
        for name in _POOL:
            setattr(chosen, name, getattr(self, name)[pages])
        counts = sent([len(place) for place in places], index.device)
        row = torch.arange(len(places), device=index.device).repeat_interleave(counts)
        chosen.owner = row * K + chosen.owner % K
        chosen.used = len(pages)
        chosen.total, chosen.total_reach = self.total.select(index), self.total_reach.select(index)
        chosen.largest_key, chosen.open = self.largest_key[index], self.open[index]
        chosen._sort()

    def _crop(self, lengths: list[int]) -> None:
        dropped = [held - n for held, n in zip(self.lengths, lengths, strict=True)]
        self.total.crop(dropped)
        self.total_reach.crop(dropped)
        self.lengths = lengths
        self._free(self._used("number") * PAGE >= self._lengths()[self._row()])
        self._sort()
        for page, n in zip(self.open, lengths, strict=True):
            if n % PAGE:
                empty = slice(n % PAGE, PAGE)
                self.running[page, :, empty] = math.inf
                self.k[page, empty] = self.v[page, empty] = 0.0

    def _clear(self, rows: list[int]) -> None:
        index = sent(rows, self.k.device)
        self.total.fill(rows, 0.0)
        self.total_reach.fill(rows, -math.inf)
        self.largest_key[index] = 0.0
        self._free(torch.isin(self._row(), index))

    def _join(self, others: Sequence["PagedCache"]) -> None:
        caches, rows = (self, *others), 0
        parts = {name: [cache._used(name) for cache in caches] for name in _POOL}
        for i, cache in enumerate(caches):
            parts["owner"][i] = parts["owner"][i] + rows * self.open.shape[1]
            rows += len(cache.open)
        for name in _POOL:
            setattr(self, name, torch.cat(parts[name]))
        self.used = len(self.k)
        self.total = Tail.cat([cache.total for cache in caches])
        self.total_reach = Tail.cat([cache.total_reach for cache in caches])
        self.largest_key = torch.cat([cache.largest_key for cache in caches])
        self.open = torch.cat([cache.open for cache in caches])
        self.lengths = [n for cache in caches for n in cache.lengths]
        self._sort()

    def _used(self, name: str) -> Tensor:
        pool: Tensor = getattr(self, name)
        return pool[: self.used]

    def _row(self) -> Tensor:
        """(used,), the batch row of each page."""
        return self._used("owner") // self.open.shape[1]

    def _lengths(self) -> Tensor:
        return sent(self.lengths, self.k.device)
