"""Pruning drops what it promises, no more, and counts what it computes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fox.kernels import computed_share, forgetting_attention
from fox.kernels.blocked import _spans
from fox.kernels.gates import running_log_gates
from fox.kernels.tiled import prepare
from fox.kernels.tiles import Lanes, Span, Tile, key_starts, plan

Inputs = Callable[..., list[Tensor]]
ATEN, MATMUL = Lanes(rows=None, width=2), Lanes(rows=128, width=8)


def computed(tiles: list[Tile], B: int, H: int, T: int, T_k: int) -> np.ndarray:
    """How often each score is computed: (B, H, T, T_k) int."""
    times = np.zeros((B, H, T, T_k), dtype=int)
    for tile in tiles:
        for chunk in range(tile.chunks):
            row, key = tile.row + chunk * tile.step, tile.key + chunk * tile.step
            block = np.ones((tile.rows, tile.keys), dtype=int)
            block = np.tril(block) if tile.causal else np.triu(block) if tile.edge else block
            rows, keys = slice(row, row + tile.rows), slice(key, key + tile.keys)
            times[tile.batch, tile.heads, rows, keys] += block
    return times


def tiles_of(inputs: list[Tensor], engine: str, **options: object) -> list[Tile]:
    q, k, _, log_f = inputs
    start, tolerance = options.get("start"), options.get("tolerance")
    spans = _spans(q, k, start, None, None, options.get("window"))
    running = running_log_gates(log_f, start)
    return prepare(q, k, running, spans, 0.25, tolerance, None, engine).tiles


@pytest.mark.parametrize("engine", ["aten", "matmul"])
@pytest.mark.parametrize("gates", ["open", "mixed", "steep resets", "shut"])
@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize(("T", "T_k"), [(1, 1), (200, 200), (900, 900), (130, 777)])
def test_every_visible_score_is_computed_once_or_dropped(
    random_inputs: Inputs, T: int, T_k: int, window: int | None, gates: str, engine: str
) -> None:
    inputs = random_inputs(T, T_k, H=3, gates=gates)
    start = torch.tensor([0, T_k // 3])
    times = computed(tiles_of(inputs, engine, start=start, window=window), 2, 3, T, T_k)
    band = np.tril(np.ones((T, T_k), dtype=bool), T_k - T)
    if window is not None:
        band = np.triu(band, T_k - T - window + 1)
    visible = band & np.ones((2, 3, 1, 1), dtype=bool)
    visible[1, ..., : T_k // 3] = False
    assert times.max() <= 1
    assert not (times.astype(bool) & ~visible).any()
    running = running_log_gates(inputs[3], start).numpy()
    decay = running[:, :, T_k - T :, None] - running[:, :, None, :]
    assert times[visible & (decay > -30)].min(initial=1) == 1
    assert times[visible & (decay <= -8192)].max(initial=0) == 0


@pytest.mark.parametrize("engine", ["aten", "matmul"])
@pytest.mark.parametrize("tolerance", [None, -3.0, -10.0])
@pytest.mark.parametrize(("T", "window"), [(300, None), (700, None), (700, 350)])
def test_no_row_loses_more_weight_than_the_tolerance(
    random_inputs: Inputs, T: int, window: int | None, tolerance: float | None, engine: str
) -> None:
    q, k, v, log_f = random_inputs(T, 700, H=4, gates="mixed")
    q[:, T // 2 :] = 8 * k[:, :1]  # late queries aligned with the oldest key ...
    k[:, -T // 4 :] = -k[:, :1]  # ... and opposed to their own
    tiles = tiles_of([q, k, v, log_f], engine, tolerance=tolerance, window=window)
    times = computed(tiles, 2, 4, T, 700)
    running = running_log_gates(log_f)
    decay = running[:, :, 700 - T :, None] - running[:, :, None, :]
    scores = 0.25 * torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) + decay
    band = torch.ones(T, 700).tril(700 - T).triu(700 - T + 1 - (window or 700))
    scores = scores.masked_fill(band == 0, -math.inf)
    lost = scores.softmax(-1).mul(torch.from_numpy(times == 0)).sum(-1).max()
    assert lost <= math.exp(-30.0 if tolerance is None else tolerance)
    if tolerance is not None and engine == "aten":
        assert (times == 0).sum() > (scores == -math.inf).sum()


@pytest.mark.parametrize(("T", "kept", "causal"), [(256, 58, 136), (128, 32, 100), (64, 16, 58)])
def test_rows_look_up_their_gate_at_their_position(T: int, kept: int, causal: int) -> None:
    # Looking up row m at m instead of T_k - T + m leaves the results right and prunes too little.
    running = np.cumsum(np.full(256, -0.5))
    first = np.arange(256 - T, 256, 16)
    starts = key_starts(running, first, np.asarray(-20.0)) // 16
    assert (first // 16 - starts + 1).sum() == kept
    assert (first // 16 + 1).sum() == causal


@pytest.mark.parametrize("lanes", [ATEN, MATMUL])
@pytest.mark.parametrize("T", [2048, 1024, 512])
def test_cost_follows_the_reach_of_the_gate_whatever_the_position(T: int, lanes: Lanes) -> None:
    running = np.cumsum(np.full((1, 1, 2048), -0.5), axis=-1)
    span = Span(slice(0, 1), slice(0, 1), 0, T, 0, 2048)
    tiles = plan(running, [span], lanes, lambda span: np.full((1, 1), -20.0))
    per_row = sum(tile.scores for tile in tiles) / T
    assert 40 <= per_row <= 40 + 16 + 256 / 2 + 1


@pytest.mark.parametrize("form", ["none", "float", "(H,)", "(B, H)"])
def test_a_given_bound_prunes_like_the_norms(random_inputs: Inputs, form: str) -> None:
    q, k, v, log_f = random_inputs(600, H=4)
    norms = 0.25 * q.norm(dim=-1).amax(1) * k.norm(dim=-1).amax(1)  # (B, H)
    bound = {
        "none": None, "float": float(norms.max()), "(H,)": norms.amax(0), "(B, H)": norms,
    }[form]  # fmt: skip
    exact = forgetting_attention(q, k, v, log_f, softmax_scale=0.25)
    pruned = forgetting_attention(
        q, k, v, log_f, softmax_scale=0.25, log_pruning_tolerance=-10.0, logit_bound=bound
    )
    assert (pruned - exact).abs().max() <= 2 * math.exp(-10) * v.abs().max() + 1e-5
    assert (pruned != exact).any()


def test_pruning_computes_less_and_nothing_prunable_changes_nothing(
    random_inputs: Inputs,
) -> None:
    q, k, v, log_f = random_inputs(900, H=2, gates="mixed")
    exact, pruned = (computed_share(q, k, log_f, log_pruning_tolerance=t) for t in (None, -5.0))
    assert pruned < exact < 1
    windowed = {"window_size": 300, "log_pruning_tolerance": -5.0}
    assert computed_share(q, k, log_f, **windowed) < 1
    narrow = forgetting_attention(q, k, v, log_f, **windowed)
    exact = forgetting_attention(q, k, v, log_f, window_size=300)
    assert (narrow - exact).abs().max() <= 2 * math.exp(-5) * v.abs().max()
    log_f.zero_()
    assert computed_share(q, k, log_f, log_pruning_tolerance=-10.0) == 1
    one = forgetting_attention(q, k, v, log_f)
    assert torch.equal(one, forgetting_attention(q, k, v, log_f, log_pruning_tolerance=-10.0))


def test_resets_and_padding_are_skipped_exactly(random_inputs: Inputs) -> None:
    q, k, _, log_f = random_inputs(400, gates="open")
    start = torch.tensor([0, 100])
    assert computed_share(q, k, log_f, seq_start=start) == 1
    log_f[:, 200] = -math.inf
    # The second row of the batch keeps 100 and 200 of its 300 tokens, the first 200 and 200 of 400.
    triangle = lambda n: n * (n + 1) / 2  # noqa: E731
    kept = (3 * triangle(200) + triangle(100)) / (triangle(400) + triangle(300))
    assert computed_share(q, k, log_f, seq_start=start) == pytest.approx(kept)
