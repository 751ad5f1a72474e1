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

import numpy as np
import torch
from torch import Tensor

from fox.kernels import engines
from fox.kernels.pruning import Pruning
from fox.kernels.tiles import LARGEST_FALL, Lanes, Span, Tile, plan

MATMUL_LANES = Lanes(rows=128, pairs=8)

# The backward pass works on weights times 2**WEIGHT_LIFT and d_out times 2**GRADIENT_LIFT: faint
# weights would otherwise make denormal products, which a CPU computes a hundred times slower.
WEIGHT_LIFT = 64
GRADIENT_LIFT = 32
UNLIFT = 2.0 ** -(WEIGHT_LIFT + GRADIENT_LIFT)

# Without a tolerance, ln of the weight that a row may lose: 1e-13 where rounding is 6e-8.
ROUNDING = {torch.float32: -30.0, torch.float64: -60.0}


def compute_dtype(x: Tensor) -> torch.dtype:
    """What 16-bit inputs are computed in: float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose_engine(q: Tensor) -> str:
    """ "aten" where PyTorch's CPU flash attention serves and works, else "matmul"."""
    on_cpu = q.device.type == "cpu" and q.dtype != torch.float64
    return "aten" if on_cpu and engines.aten_works() else "matmul"


def tiles_for(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    spans: list[Span],
    scale: float,
    tolerance: float | None,
    bound: Tensor | None,
    engine: str,
) -> list[Tile]:
    """The plan for inputs q (B, T, H, D), k (B, T_k, H_kv, D), running (B, H, T_k)."""
    lanes = Lanes(None, torch.get_num_threads()) if engine == "aten" else MATMUL_LANES
    host = running.cpu().numpy()
    return plan(host, spans, lanes, _threshold(q, k, host, scale, tolerance, bound))


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


def forward_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    tiles: list[Tile],
    scale: float,
    engine: str,
) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) and lse (B, H, T); rows without a tile get 0 and -inf."""
    B, T, H, D = q.shape
    dtype = compute_dtype(q)
    forward = engines.aten_forward if engine == "aten" else engines.matmul_forward
    lse = q.new_full((B, H, T), -math.inf, dtype=dtype)
    only = _only_tile(tiles, q, k)
    q, k, v = q.transpose(1, 2).to(dtype), _wide_heads(k, H).to(dtype), _wide_heads(v, H).to(dtype)
    if only is not None:
        part, part_lse = forward(q, k, v, _bias(running, only, dtype), True, scale)
        torch.add(part_lse, _row_decay(running, only), out=lse)
        return part.transpose(1, 2).contiguous(), lse
    out = q.new_zeros(B, T, H, D).transpose(1, 2)
    for tile in tiles:
        bias = _bias(running, tile, dtype)
        part, part_lse = forward(
            _rows(q, tile), _keys(k, tile), _keys(v, tile), bias, tile.causal, scale
        )
        whole, whole_lse = _rows(out, tile), _rows(lse, tile)
        if tile.causal:
            whole.copy_(part)
            whole_lse.copy_(part_lse)
        else:
            whole.lerp_(part, torch.sigmoid(part_lse - whole_lse).unsqueeze(-1))
            whole_lse.copy_(torch.logaddexp(whole_lse, part_lse))
    for tile in tiles:
        if tile.causal:
            _rows(lse, tile).add_(_row_decay(running, tile))
    return out.transpose(1, 2), lse


def backward_tiles(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    running: Tensor,
    tiles: list[Tile],
    scale: float,
    engine: str,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Write dq, dk, dv into gradients; return row minus column sums, (B, H, T_k) float64."""
    B, T, H, D = q.shape
    T_k = k.shape[1]
    dtype = compute_dtype(q)
    backward = engines.aten_backward if engine == "aten" else engines.matmul_backward

    # The spare column adds 1 * 1 to every score, which lse takes back below. In d_out and out it
    # turns the row sum of d_out * out into that sum - d_lse, which is what d_lse does to a row.
    wide_q, wide_d_out, wide_out = q.new_empty(3, B, H, T, D + 1, dtype=dtype)
    wide_k, wide_v = q.new_empty(2, B, H, T_k, D + 1, dtype=dtype)
    torch.mul(q.transpose(1, 2), scale, out=wide_q[..., :D])
    torch.mul(d_out.transpose(1, 2), 2.0**GRADIENT_LIFT, out=wide_d_out[..., :D])
    wide_out[..., :D].copy_(out.transpose(1, 2))
    wide_k[..., :D].copy_(_wide_heads(k, H))
    wide_v[..., :D].copy_(_wide_heads(v, H))
    wide_q[..., D] = 1.0
    wide_k[..., D] = 1.0
    wide_v[..., D] = 0.0
    wide_d_out[..., D] = 2.0**GRADIENT_LIFT
    torch.neg(d_lse, out=wide_out[..., D])

    frame = lse + (1.0 - WEIGHT_LIFT * math.log(2))
    for tile in tiles:
        if tile.causal:
            _rows(frame, tile).sub_(_row_decay(running, tile))
    only = _only_tile(tiles, q, k)
    if only is not None:
        bias = _bias(running, only, dtype)
        dq, dk, dv = backward(wide_d_out, wide_q, wide_k, wide_v, wide_out, frame, bias, True, 1.0)
    else:
        dq, dk, dv = (torch.zeros_like(x) for x in (wide_q, wide_k, wide_v))
        for tile in tiles:
            parts = backward(
                _rows(wide_d_out, tile), _rows(wide_q, tile), _keys(wide_k, tile),
                _keys(wide_v, tile), _rows(wide_out, tile), _rows(frame, tile),
                _bias(running, tile, dtype), tile.causal, 1.0,
            )  # fmt: skip
            _rows(dq, tile).add_(parts[0])
            _keys(dk, tile).add_(parts[1])
            _keys(dv, tile).add_(parts[2])

    _unlift(dq[..., :D], scale * UNLIFT, gradients[0])
    _unlift(dk[..., :D], UNLIFT, gradients[1])
    _unlift(dv[..., :D], UNLIFT, gradients[2])
    d_lambda = dk[..., D].double().neg_()
    for tile in tiles:
        if tile.causal:
            _view(d_lambda, tile, tile.position, tile.rows).add_(_rows(dq[..., D], tile))
    return d_lambda.mul_(UNLIFT)


def _view(x: Tensor, tile: Tile, start: int, length: int) -> Tensor:
    """The tile's part of x (B, H, T, ...): (batch, heads, length, ...), chunks as the batch."""
    part = x[tile.batch, tile.heads, start : start + (tile.count - 1) * tile.rows + length]
    if tile.count == 1:
        return part
    _, heads, time, *rest = part.stride()
    return part.as_strided(
        (tile.count, part.shape[1], length, *part.shape[3:]), (tile.rows * time, heads, time, *rest)
    )


def _rows(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.row, tile.rows)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.key, tile.keys)


def _reference(running: Tensor, tile: Tile) -> Tensor:
    """The middle of the running gates of each chunk of rows, (batch, heads, 1) float64."""
    chunk = _view(running, tile, tile.position, tile.rows)
    return (chunk[..., :1] + chunk[..., -1:]) * 0.5


def _bias(running: Tensor, tile: Tile, dtype: torch.dtype) -> Tensor:
    bias = _reference(running, tile) - _keys(running, tile)
    return bias.to(dtype).unsqueeze(-2)


def _row_decay(running: Tensor, tile: Tile) -> Tensor:
    """lambda_i - lambda_ref, what the bias per key leaves out of a row's lse."""
    return _view(running, tile, tile.position, tile.rows) - _reference(running, tile)


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
