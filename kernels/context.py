"""How a sequence is split over the ranks of a process group, and how its tokens travel.

Legend: B batch, W ranks, n chunks of a rank, L tokens of a chunk, T = n L tokens of a rank,
H_kv key heads.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ContextSplit:
    """Which tokens of each sequence the ranks of a group hold.

    The sequence is cut into chunks of equal length. With zigzag there are 2 W, and rank r holds
    chunks r and 2 W - 1 - r, one behind the other: all ranks then have equal work, although late
    tokens see more keys. Without it there are W, and rank r holds chunk r.

    Args:
        group: the ranks that share a sequence.
        zigzag: balance the work; False keeps the tokens of a rank contiguous.
    """

    group: dist.ProcessGroup
    zigzag: bool = True

    @property
    def size(self) -> int:
        """W, the number of ranks."""
        return dist.get_world_size(self.group)

    @property
    def per_rank(self) -> int:
        """n, the chunks that a rank holds."""
        return 2 if self.zigzag else 1

    def chunks(self, rank: int | None = None) -> list[int]:
        """The chunks that a rank holds, this one if None, in the order in which it holds them."""
        rank = dist.get_rank(self.group) if rank is None else rank
        return [rank, 2 * self.size - 1 - rank] if self.zigzag else [rank]

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of whole sequences.

        Raises:
            ValueError: the length does not divide into chunks.
        """
        number = self.size * self.per_rank
        if x.shape[dim] % number:
            raise ValueError(
                f"a sequence over {self.size} ranks is cut into {number} chunks of equal length, "
                f"but got {x.shape[dim]} tokens: pad it to a multiple of {number}"
            )
        chunks = x.chunk(number, dim)
        return torch.cat([chunks[c] for c in self.chunks()], dim)

    def whole(self, x: Tensor) -> Tensor:
        """Every rank's tokens (B, T, ...) as whole sequences (B, W T, ...), without gradient."""
        chunks = x.detach().unflatten(1, (self.per_rank, -1)).transpose(0, 1)
        return self.in_order(chunks).transpose(0, 1).flatten(1, 2)

    def positions(self, T: int, device: torch.device) -> Tensor:
        """(T,) int64, where the T tokens of this rank stand in the whole sequence."""
        L = T // self.per_rank
        first = torch.tensor(self.chunks(), device=device) * L
        return (first[:, None] + torch.arange(L, device=device)).flatten()

    def rows(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B n, L, ...): every chunk as a row of its own."""
        return x.unflatten(1, (self.per_rank, -1)).flatten(0, 1)

    def in_order(self, x: Tensor) -> Tensor:
        """The (n, ...) of every rank together, (W n, ...), in the order of the chunks."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        held = [c for rank in range(self.size) for c in self.chunks(rank)]
        return torch.cat(parts)[torch.tensor(held, device=x.device).argsort()]


def rows_before(y: Tensor, context: ContextSplit) -> Tensor:
    """The row that stands before each of this rank's chunks, in the whole sequence.

    Args:
        y: (B, T, ...), this rank's tokens.
        context: how the sequence is split.

    Returns:
        (B n, ...), for chunks as `context.rows` has them; zero before the first of all. The
        gradient goes back to the rank that holds the row.
    """
    last = y.unflatten(1, (context.per_rank, -1))[:, :, -1].transpose(0, 1)  # (n, B, ...)
    return _Neighbours.apply(last, context, -1).transpose(0, 1).flatten(0, 1)


class _Neighbours(torch.autograd.Function):
    """For each chunk c what chunk c + step has: (n, ...) -> (n, ...), zero beyond the ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, context: ContextSplit, step: int) -> Tensor:
        ctx.context, ctx.step = context, step
        return _neighbours(x, context, step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _neighbours(gradients[0], ctx.context, -ctx.step), None, None


def _neighbours(x: Tensor, context: ContextSplit, step: int) -> Tensor:
    every = context.in_order(x)
    wanted = [c + step for c in context.chunks()]
    zero = torch.zeros_like(x[0])
    return torch.stack([every[c] if 0 <= c < len(every) else zero for c in wanted])


class Route(NamedTuple):
    """Which (batch row, chunk, key head) this rank sends to each rank, and gets from each.

    Args:
        context: how the sequence is split.
        first: the earliest chunk that comes to this rank, or its own.
        sent: for each rank, (3, pieces) int64: batch row, chunk among this rank's, key head.
        received: for each rank, the same, with chunks counted from `first`.
    """

    context: ContextSplit
    first: int
    sent: list[Tensor]
    received: list[Tensor]

    @classmethod
    def of(cls, wanted: Tensor, context: ContextSplit, device: torch.device) -> "Route":
        """The route that brings every rank what it wants, (W, chunks, B, H_kv) bool on the CPU."""
        here, mine = context.chunks(), wanted[dist.get_rank(context.group)]
        first = min([*here, *mine.nonzero()[:, 0].tolist()])

        def pieces(wanted: Tensor) -> Tensor:
            chunk, row, head = wanted.nonzero().unbind(1)
            return torch.stack([row, chunk, head]).to(device)

        received = []
        for rank in range(context.size):
            theirs = torch.zeros_like(mine)
            theirs[context.chunks(rank)] = mine[context.chunks(rank)]
            received.append(pieces(theirs[first:]))
        return cls(context, first, [pieces(theirs[here]) for theirs in wanted], received)

    @property
    def here(self) -> list[int]:
        """This rank's chunks, counted from `first`; the last one ends what is collected."""
        return [c - self.first for c in self.context.chunks()]

    def collect(self, x: Tensor) -> Tensor:
        """This rank's tokens with those that it gets, from chunk `first` to its own last one.

        (B, T, H_kv, X) -> (B, chunks L, H_kv, X); zero where a piece does not come.
        """
        mine = x.unflatten(1, (self.context.per_rank, -1))  # (B, n, L, H_kv, X)
        whole = x.new_zeros(len(x), max(self.here) + 1, *mine.shape[2:])
        whole[:, self.here] = mine
        packed = [mine[b, c, :, h] for b, c, h in self.sent]  # (pieces, L, X) each
        parts = self._travel(packed, self.received)
        for (b, c, h), part in zip(self.received, parts, strict=True):
            whole[b, c, :, h] = part
        return whole.flatten(1, 2)

    def bring_home(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """The adjoint of collect: pieces travel in dtype, and are summed in the gradient's."""
        whole = gradient.unflatten(1, (max(self.here) + 1, -1))
        mine = whole[:, self.here]
        packed = [whole[b, c, :, h].to(dtype) for b, c, h in self.received]
        parts = self._travel(packed, self.sent)
        for (b, c, h), part in zip(self.sent, parts, strict=True):
            mine[b, c, :, h] += part
        return mine.flatten(1, 2).to(dtype)

    def _travel(self, packed: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Sends packed[r] to rank r; returns what each rank has for the places here."""
        counts = [place.shape[1] for place in places]
        together = torch.cat(packed)
        arrived = together.new_empty(sum(counts), *together.shape[1:])
        dist.all_to_all_single(
            arrived, together, counts, [len(part) for part in packed], group=self.context.group
        )
        return list(arrived.split(counts))
