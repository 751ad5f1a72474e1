"""The forward and backward passes over a plan of tiles.

The row term lambda_i of the decay cancels in the softmax, so a tile gets one number per key:
lambda_ref - lambda_j, formed in float64 relative to the middle of its chunk of rows. Parts of a
row are merged by their lse. The gates' gradient comes out of the same products as dq and dk: in the
backward pass q and k carry a spare column of ones, whose gradients are the row and column sums of
the score gradient.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fox.kernels import engines
from fox.kernels.pruning import Pruning
from fox.kernels.tiles import LARGEST_FALL, Lanes, Span, Tile, plan, references

MATMUL_LANES = Lanes(rows=128, width=8)

# The backward pass works on weights times 2**WEIGHT_LIFT and on d_out times the power of two that
# brings its largest entry to about 2**GRADIENT_LIFT: faint weights would otherwise make denormal
# products, which a CPU computes a hundred times slower.
WEIGHT_LIFT = 64
GRADIENT_LIFT = 32

# Without a tolerance, ln of the weight that a row may lose: 1e-13 where rounding is 6e-8.
ROUNDING = {torch.float32: -30.0, torch.float64: -60.0}


def compute_dtype(x: Tensor) -> torch.dtype:
    """What 16-bit inputs are computed in: float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose_engine(q: Tensor) -> str:
    """ "aten" where PyTorch's CPU flash attention serves and works, else "matmul"."""
    on_cpu = q.device.type == "cpu" and q.dtype != torch.float64
    return "aten" if on_cpu and engines.aten_works() else "matmul"


class Pass(NamedTuple):
    """A plan with the numbers it needs.

    Args:
        tiles: what to compute, the causal tile of a row first.
        running: (B, H, T_k) float64 running log gates.
        reference: (B, H, T_k) float64, lambda_ref of the chunk at each position.
        bias: (B, H, T_k), lambda_ref - lambda_j within the chunk, in the compute dtype.
        scale: factor on the dot products.
        engine: "aten" or "matmul".
    """

    tiles: list[Tile]
    running: Tensor
    reference: Tensor
    bias: Tensor
    scale: float
    engine: str


def prepare(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    spans: list[Span],
    scale: float,
    tolerance: float | None,
    bound: Tensor | None,
    engine: str | None = None,
) -> Pass:
    """Plan a pass over q (B, T, H, D), k (B, T_k, H_kv, D), running gates (B, H, T_k)."""
    engine = engine or choose_engine(q)
    lanes = Lanes(None, torch.get_num_threads()) if engine == "aten" else MATMUL_LANES
    host = running.cpu().numpy()
    tiles = plan(host, spans, lanes, _threshold(q, k, host, scale, tolerance, bound))
    reference = torch.from_numpy(references(host, tiles)).to(running.device)
    bias = (reference - running).to(compute_dtype(q))
    return Pass(tiles, running, reference, bias, scale, engine)


def _threshold(
    q: Tensor,
    k: Tensor,
    running: np.ndarray,
    scale: float,
    tolerance: float | None,
    bound: Tensor | None,
) -> Callable[[Span], np.ndarray] | None:
    """The threshold of every span; None where the gates fall too little to drop much."""
    fall = 0.0 if running.size == 0 else (running[..., 0] - running[..., -1]).max()
    if tolerance is None:
        tolerance = ROUNDING[compute_dtype(q)]
        if fall < LARGEST_FALL:
            return None
    if fall < -tolerance:
        return None
    return Pruning(q.transpose(1, 2), k.transpose(1, 2), scale, tolerance, bound).threshold


def forward_tiles(q: Tensor, k: Tensor, v: Tensor, work: Pass) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) and lse (B, H, T); rows without a tile get 0 and -inf."""
    B, T, H, D = q.shape
    dtype = compute_dtype(q)
    forward = engines.aten_forward if work.engine == "aten" else engines.matmul_forward
    only = _only_tile(work.tiles, q, k)
    q, k, v = q.transpose(1, 2).to(dtype), _wide_heads(k, H).to(dtype), _wide_heads(v, H).to(dtype)
    if only is not None:
        out, lse = forward(q, k, v, _bias(work, only), True, work.scale)
        return out.transpose(1, 2).contiguous(), (lse - work.bias).contiguous()
    out = (q.new_empty if _covers(work, T) else q.new_zeros)(B, T, H, D).transpose(1, 2)
    lse = q.new_full((B, H, T), -math.inf)
    for tile in work.tiles:
        part, part_lse = forward(
            _rows(q, tile), _keys(k, tile), _keys(v, tile), _bias(work, tile), tile.half,
            work.scale,
        )  # fmt: skip
        part, part_lse = _in_order(part, tile), _in_order(part_lse, tile)
        whole, whole_lse = _row_view(out, tile), _row_view(lse, tile)
        if tile.causal:
            whole.copy_(part)
            whole_lse.copy_(part_lse)
        else:
            whole.lerp_(part, torch.sigmoid(part_lse - whole_lse).unsqueeze(-1))
            whole_lse.copy_(torch.logaddexp(whole_lse, part_lse))
    # The bias per key leaves lambda_i - lambda_ref out of the scores of row i.
    return out.transpose(1, 2), lse.sub_(_at_rows(work, T))


def backward_tiles(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    work: Pass,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Write dq, dk, dv into gradients; return row minus column sums, (B, H, T_k) float64."""
    B, T, H, D = q.shape
    T_k = k.shape[1]
    dtype = compute_dtype(q)
    backward = engines.aten_backward if work.engine == "aten" else engines.matmul_backward

    # The spare column adds 1 * 1 to every score, which lse takes back below. In d_out and out it
    # turns the row sum of d_out * out into that sum - d_lse, which is what d_lse does to a row.
    wide_q, wide_d_out, wide_out = q.new_empty(3, B, H, T, D + 1, dtype=dtype)
    wide_k, wide_v = q.new_empty(2, B, H, T_k, D + 1, dtype=dtype)
    torch.mul(q.transpose(1, 2), work.scale, out=wide_q[..., :D])
    lift = _gradient_lift(d_out, d_lse)
    unlift = 2.0**-WEIGHT_LIFT / lift
    torch.mul(d_out.transpose(1, 2), lift, out=wide_d_out[..., :D])
    wide_out[..., :D].copy_(out.transpose(1, 2))
    wide_k[..., :D].copy_(_wide_heads(k, H))
    wide_v[..., :D].copy_(_wide_heads(v, H))
    wide_q[..., D] = 1.0
    wide_k[..., D] = 1.0
    wide_v[..., D] = 0.0
    wide_d_out[..., D] = lift
    torch.neg(d_lse, out=wide_out[..., D])

    frame = (lse + (1.0 - WEIGHT_LIFT * math.log(2))).add_(_at_rows(work, T))
    only = _only_tile(work.tiles, q, k)
    if only is not None:
        bias = _bias(work, only)
        dq, dk, dv = backward(wide_d_out, wide_q, wide_k, wide_v, wide_out, frame, bias, True, 1.0)
    else:
        fresh = torch.empty_like if T_k == T and _covers(work, T) else torch.zeros_like
        dq, dk, dv = fresh(wide_q), fresh(wide_k), fresh(wide_v)
        for tile in work.tiles:
            parts = backward(
                _rows(wide_d_out, tile), _rows(wide_q, tile), _keys(wide_k, tile),
                _keys(wide_v, tile), _rows(wide_out, tile), _rows(frame, tile),
                _bias(work, tile), tile.half, 1.0,
            )  # fmt: skip
            whole = _row_view(dq, tile), _key_view(dk, tile), _key_view(dv, tile)
            for sum_, part in zip(whole, parts, strict=True):
                sum_.copy_(part) if tile.causal else sum_.add_(_in_order(part, tile))

    _unlift(dq[..., :D], work.scale * unlift, gradients[0])
    _unlift(dk[..., :D], unlift, gradients[1])
    _unlift(dv[..., :D], unlift, gradients[2])
    d_lambda = dk[..., D].double().neg_()
    if _aligned(work, T):
        d_lambda[..., T_k - T :] += dq[..., D]
    else:
        for tile in work.tiles:
            if tile.causal:
                _key_view(d_lambda, tile).add_(_row_view(dq[..., D], tile))
    return d_lambda.mul_(unlift)


def _covers(work: Pass, T: int) -> bool:
    """Whether every row has a causal tile."""
    B, H = work.bias.shape[:2]
    causal = (t for t in work.tiles if t.causal)
    return sum(t.members * t.chunks * t.rows for t in causal) == B * H * T


def _gradient_lift(d_out: Tensor, d_lse: Tensor) -> float:
    """The power of two that brings the largest gradient to about 2**GRADIENT_LIFT.

    At most 2**60, so that what takes both lifts back is a normal float32.
    """
    largest = max(float(x.abs().amax()) if x.numel() else 0.0 for x in (d_out, d_lse))
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    return 2.0 ** min(GRADIENT_LIFT - exponent, 60)


def _aligned(work: Pass, T: int) -> bool:
    """Whether row i stands at T_k - T + i in every tile, as it does unless sequences are packed."""
    shift = work.running.shape[-1] - T
    return all(tile.position - tile.row == shift for tile in work.tiles)


def _at_rows(work: Pass, T: int) -> Tensor:
    """The bias at the position of each row, (B, H, T); 0 for rows without a tile."""
    if _aligned(work, T):
        return work.bias[..., work.bias.shape[-1] - T :]
    rows = work.bias.new_zeros(*work.bias.shape[:2], T)
    for tile in work.tiles:
        if tile.causal:
            _row_view(rows, tile).copy_(_key_view(work.bias, tile))
    return rows


def _view(x: Tensor, tile: Tile, start: int, length: int) -> Tensor:
    """The tile's part of x (B, H, T, ...): (batch, heads, length, ...), chunks as the batch."""
    part = x[tile.batch, tile.heads, start : start + (tile.chunks - 1) * tile.step + length]
    if tile.chunks == 1:
        return part
    _, heads, time, *rest = part.stride()
    return part.as_strided(
        (tile.chunks, part.shape[1], length, *part.shape[3:]),
        (tile.step * time, heads, time, *rest),
    )


def _row_view(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.row, tile.rows)


def _key_view(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.key, tile.keys)


def _rows(x: Tensor, tile: Tile) -> Tensor:
    return _in_order(_row_view(x, tile), tile)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    return _in_order(_key_view(x, tile), tile)


def _in_order(x: Tensor, tile: Tile) -> Tensor:
    """Rows or keys (B, H, length, ...) as engines take them: those of an edge tile reversed."""
    return x.flip(2) if tile.edge else x


def _bias(work: Pass, tile: Tile) -> Tensor:
    """What the tile adds to the scores of each key, (batch, heads, 1, keys)."""
    if tile.causal:
        return _keys(work.bias, tile).unsqueeze(-2)
    reference = _view(work.reference, tile, tile.position, 1)
    return (reference - _keys(work.running, tile)).to(work.bias.dtype).unsqueeze(-2)


def _wide_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T_k, H_kv, D) -> (B, H, T_k, D)."""
    x = x.transpose(1, 2)
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _unlift(x: Tensor, factor: float, out: Tensor) -> None:
    """(B, H, T, D) times factor into (B, T, H or H_kv, D), heads of a group summed."""
    x = x.transpose(1, 2)
    if x.shape[2] != out.shape[2]:
        x = x.unflatten(2, (out.shape[2], -1)).sum(3)
    if x.dtype == out.dtype:
        torch.mul(x, factor, out=out)
    else:
        out.copy_(x * factor)


def _only_tile(tiles: list[Tile], q: Tensor, k: Tensor) -> Tile | None:
    """The one causal tile that is all there is, so that its results need no place of their own."""
    B, T, H, _ = q.shape
    whole = Tile(slice(0, B), slice(0, H), 0, 0, 0, T, T, 1)
    return whole if tiles == [whole] and k.shape[1] == T else None
