"""Keys that leave the cache can never have mattered: the bound, by brute force."""

import math

import pytest
import torch

from fox import ForgettingAttention, FoxCache, pages
from fox.layers import rotate
from fox.pages import PAGE, PagedCache

TOLERANCE = -10.0
LOCAL, GLOBAL = -0.7, -1e-5  # log gates of a head that forgets and of one that does not


def paged(H=4, K=2, D=8, B=1, bound=4.0, tolerance=TOLERANCE, rollback=0, cap=None):
    return PagedCache(
        B, H, K, D, dtype=torch.float32, device=torch.device("cpu"),
        log_pruning_tolerance=tolerance, logit_bound=torch.full((H,), bound), logit_cap=cap,
        max_length=None, rollback=rollback, k_rows=None, v_rows=None,
    )  # fmt: skip


def bounded(*shape, bound, generator):
    """Vectors with |q| |k| / sqrt(D) = bound, some along one common direction."""
    x = torch.randn(*shape, generator=generator)
    aligned = torch.rand(*shape[:-1], 1, generator=generator)
    sign = torch.where(aligned < 0.15, -1.0, 1.0)
    x = torch.where(aligned < 0.5, sign * torch.ones(shape[-1]), x)
    return x / x.norm(dim=-1, keepdim=True) * math.sqrt(bound * math.sqrt(shape[-1]))


def stream(T, gates, seed, *, H=4, K=2, D=8, bound=4.0):
    """q, k, v and log_f of a text, with log gates around `gates` (H,) and a few resets."""
    generator = torch.Generator().manual_seed(seed)
    q = bounded(1, T, H, D, bound=bound, generator=generator)
    k = bounded(1, T, K, D, bound=bound, generator=generator)
    v = torch.randn(1, T, K, D, generator=generator)
    log_f = torch.tensor(gates) * torch.rand(1, T, H, generator=generator) * 2
    return q, k, v, log_f


def weights(q, k, log_f):
    """(H, T, T) float64: every row's attention to every key, by definition."""
    H, K, T = q.shape[2], k.shape[2], q.shape[1]
    k = k.repeat_interleave(H // K, dim=2)
    scores = torch.einsum("thd,shd->hts", q[0].double(), k[0].double()) / math.sqrt(q.shape[-1])
    running = log_f[0].double().cumsum(0).T
    scores = scores + running[:, :, None] - running[:, None, :]
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)


def dropped(cache, head, T):
    """(T,) bool: which of the tokens read by the first row have left its key head."""
    gone = torch.arange(T) < cache.lengths[0]
    for page in range(cache.used):
        if cache.owner[page] == head:
            first = int(cache.number[page]) * PAGE
            gone[first : first + PAGE] = False
    return gone


@pytest.mark.parametrize("bound", [0.5, 4.0])
@pytest.mark.parametrize("sizes", [[1] * 700, [300, *[1] * 200, 190, 10], [64] * 10 + [60]])
def test_no_row_loses_more_than_the_tolerance(bound, sizes):
    gates = [LOCAL, LOCAL / 4, LOCAL / 16, GLOBAL]
    q, k, v, log_f = stream(700, gates, seed=len(sizes), K=4, bound=bound)
    cache, all_weights = paged(K=4, bound=bound), weights(q, k, log_f)
    full = torch.einsum("hts,shd->thd", all_weights, v[0].double())
    largest, lost, at = 0.0, 0.0, 0
    for T in sizes:
        chunk = slice(at, at + T)
        gone = torch.stack([dropped(cache, h, 700) for h in range(4)])
        lost = max(lost, float((all_weights[:, chunk] * gone[:, None]).sum(-1).max()))
        parts = (x[:, chunk] for x in (q, k, v, log_f))
        out = cache.attend(*parts, [T], None)
        largest = max(largest, float((out[0] - full[chunk]).abs().max()))
        at += T
    assert 0 < lost <= math.exp(TOLERANCE) / 2  # half of it is for the pruning of chunks
    assert largest <= 2 * math.exp(TOLERANCE) * float(v.abs().max()) + 1e-5
    kept = cache.kept()[0].tolist()
    assert kept[0] <= kept[1] <= kept[2] <= kept[3] == 700
    assert kept[0] <= 2 * PAGE + 60


def test_pages_leave_exactly_when_the_gates_have_taken_all_they_could_weigh():
    bound, rollback = 2.0, 20
    q, k, v, log_f = stream(640, [-0.3, -0.1, -0.05, GLOBAL], seed=3, bound=bound)
    cache = paged(bound=bound, rollback=rollback)
    running = log_f[0].double().cumsum(0)
    for t in range(640):
        parts = (x[:, t : t + 1] for x in (q, k, v, log_f))
        cache.attend(*parts, [1], None)
        if t % PAGE or t == 0:
            continue  # pages are judged when new ones are taken
        for head in range(2):
            expected = 0
            for last in range(PAGE - 1, t, PAGE):
                mass = (-running[: last + 1]).logsumexp(0)
                bounds = 2 * bound + running[t - rollback] + mass
                heads = bounds[2 * head : 2 * head + 2]
                expected += bool((heads < TOLERANCE - math.log(2)).all())
            assert int(dropped(cache, head, t + 1).sum()) == expected * PAGE
    assert cache.kept()[0, 0] < 400
    assert cache.kept()[0, 1] == 640  # one head of the group forgets nothing


@pytest.mark.parametrize("bound", [0.0, 1.0, 4.0])
def test_the_bound_is_tight(bound):
    """Aligned with all that is dropped, opposed to its own key, a row loses the tolerance."""
    old, threshold = 3 * PAGE, 2 * bound + math.log(3 * PAGE) - TOLERANCE + math.log(2)
    e = torch.full((8,), math.sqrt(bound / math.sqrt(8)))
    q, k, v = e.expand(1, old + 2, 2, 8), e.repeat(1, old + 2, 2, 1), torch.randn(1, old + 2, 2, 8)
    k[:, old:] *= -1
    log_f = torch.zeros(1, old + 2, 2)
    log_f[:, old, 0], log_f[:, old, 1] = -(threshold - 0.1), -(threshold + 0.1)
    cache = paged(H=2, bound=bound)
    for chunk in (slice(0, old), slice(old, old + 1)):
        parts = (x[:, chunk] for x in (q, k, v, log_f))
        cache.attend(*parts, [chunk.stop - chunk.start], None)
    assert cache.kept().tolist() == [[PAGE + 1, 1]]  # two pages are less than three
    lost = float(weights(q, k, log_f)[1, old, :old].sum())
    assert 0.85 < lost / (math.exp(TOLERANCE) / 2) <= 1


@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_the_bound_holds_for_another_text_after_a_crop(bound):
    """The worst case: the taken-back gates were strong, and those that follow forget nothing."""
    T, back, rest = 200, 30, 60
    generator = torch.Generator().manual_seed(0)
    q, k, v, log_f = stream(T, [-0.02, -0.4, -0.4, -0.4], seed=1, K=4, bound=bound)
    log_f[:, T - back :] = -5.0
    cache = paged(K=4, bound=bound, rollback=back)
    for chunk in torch.arange(T).split(40):
        cache.attend(*(x[:, chunk] for x in (q, k, v, log_f)), [len(chunk)], None)
    cache.crop([T - back])
    more = stream(rest, [0.0] * 4, seed=2, K=4, bound=bound)
    more[0][:] = bounded(1, 1, 1, 8, bound=bound, generator=generator).abs()
    text = [
        torch.cat([x[:, : T - back], y], dim=1) for x, y in zip((q, k, v, log_f), more, strict=True)
    ]
    all_weights = weights(text[0], text[1], text[3])
    gone = torch.stack([dropped(cache, h, T - back + rest) for h in range(4)])
    lost = (all_weights[:, T - back :] * gone[:, None]).sum(-1).max()
    assert gone.any()
    assert lost <= math.exp(TOLERANCE) / 2
    full = torch.einsum("hts,shd->thd", all_weights, text[2][0].double())[T - back :]
    outs = [cache.attend(*(x[:, i : i + 1] for x in more), [1], None) for i in range(rest)]
    assert (torch.cat(outs, 1)[0] - full).abs().max() <= 2 * math.exp(TOLERANCE) * 4 + 1e-5


@pytest.mark.parametrize("steps", [1, 5])
def test_what_a_crop_took_back_evicts_nothing_when_a_page_is_opened_later(steps):
    """The strong gates at the end of the first text were never read by the second."""
    T, back = 220, 31
    q, k, v, log_f = stream(T, [0.0] * 4, seed=1)
    log_f[:, T - back :] = -8.0
    cache = paged(rollback=back)
    for t in range(T):
        cache.attend(*(x[:, t : t + 1] for x in (q, k, v, log_f)), [1], None)
    cache.crop([T - back])
    more = stream(2 * back, [0.0] * 4, seed=2)
    for t in range(0, 2 * back - steps, steps):
        cache.attend(*(x[:, t : t + steps] for x in more), [steps], None)
        assert (cache.kept() == cache.lengths[0]).all()


def test_memory_follows_the_tokens_kept_and_stays_bounded_for_a_head_that_forgets():
    sizes = []
    cache = paged(H=2, K=2)
    for step in range(12):
        cache.attend(*stream(256, [LOCAL, LOCAL], seed=step, H=2), [256], None)
        sizes.append((cache.used, cache.bytes()))
    assert sizes[2:] == sizes[1:-1]
    assert cache.used < 12
    assert len(cache.k) <= cache.used + cache.used // 8 + 1
    remember = paged(H=2, K=2)
    for step in range(12):
        remember.attend(*stream(256, [0.0, 0.0], seed=step, H=2), [256], None)
    assert remember.kept().tolist() == [[12 * 256] * 2]
    assert remember.bytes() > 5 * cache.bytes()


def test_a_reset_gives_all_pages_before_it_back():
    q, k, v, log_f = stream(320, [0.0] * 4, seed=0)
    log_f[:, 130] = -math.inf
    cache = paged()
    cache.attend(q, k, v, log_f, [320], None)
    assert cache.kept().tolist() == [[320 - 128] * 2]


def test_a_page_shows_nothing_of_the_row_that_had_it_before():
    q, k, v, log_f = stream(256, [LOCAL] * 4, seed=0)
    cache, alone = paged(B=2), paged()
    poisoned = q, k.clone(), v.clone(), log_f
    poisoned[1][:, :128], poisoned[2][:, :128] = math.nan, math.nan
    for t in range(256):
        rows = [
            torch.cat([x, y])[:, t : t + 1] for x, y in zip(poisoned, (q, k, v, log_f), strict=True)
        ]
        out = cache.attend(*rows, [1, 1], None)
        expected = alone.attend(*(x[1:] for x in rows), [1], None)
        torch.testing.assert_close(out[1:], expected)
        assert t >= 128 or out[0].isnan().all()
    assert out.isfinite().all()  # what was not is gone


def test_cropped_tokens_leave_nothing_in_their_page():
    q, k, v, log_f = stream(20, [LOCAL] * 4, seed=0)
    cache, never = paged(rollback=5), paged(rollback=5)
    poisoned = q, k.clone(), v.clone(), log_f
    poisoned[1][:, 15:], poisoned[2][:, 15:] = math.nan, math.inf
    cache.attend(*poisoned, [20], None)
    cache.crop([15])
    never.attend(*(x[:, :15] for x in (q, k, v, log_f)), [15], None)
    step = [x[:, 15:16] for x in (q, k, v, log_f)]
    out, expected = (c.attend(*step, [1], None) for c in (cache, never))
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("T", "owner", "name"),
    [
        (1, pages, "paged_attention"),
        (70, pages, "forgetting_attention_with_kvcache"),
        (70, PagedCache, "_resize"),
        (70, PagedCache, "_store"),
    ],
)
def test_a_step_that_is_broken_off_has_never_been(T, owner, name, monkeypatch):
    q, k, v, log_f = stream(300, [LOCAL, GLOBAL] * 2, seed=0)
    cache, whole = paged(), paged()
    chunks = [slice(0, 63), slice(63, 64), slice(64, 64 + T), slice(64 + T, 64 + T + 1)]
    for chunk in chunks:
        parts = [x[:, chunk] for x in (q, k, v, log_f)]
        size = [parts[0].shape[1]]
        if chunk.start == 64:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    cache.attend(*(2 * x for x in parts), size, None)
            assert cache.lengths == [64]
        expected = whole.attend(*parts, size, None)
        assert torch.equal(cache.attend(*parts, size, None), expected)


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@torch.no_grad()
def test_rows_keep_what_they_have_forgotten_when_the_batch_changes(build, fox_pro):
    model = forgetful(build, fox_pro)
    ids, more = torch.randint(31, (3, 500)), torch.randint(31, (3, 80))
    cache = model.new_cache(3, log_pruning_tolerance=TOLERANCE)
    mask = (torch.arange(500) < torch.tensor([500, 310, 77])[:, None]).long()
    model(ids, attention_mask=mask, cache=cache)
    kept = cache.report().kept
    assert (kept[:, 0] < 500).any()
    order = [2, 0, 0]
    moved = cache.select(order)
    joined = FoxCache.cat([cache.select([2]), cache.select([0, 0])])
    for other in (moved, joined):
        assert torch.equal(other.report().kept, kept[:, order])
        logits = torch.cat([model(more[:, :1], cache=other).logits,
                            model(more[:, 1:], cache=other).logits], dim=1)  # fmt: skip
        for b, r in enumerate(order):
            text = torch.cat([ids[r, mask[r].bool()], more[b]])[None]
            alone = model(text).logits[0, -80:]
            torch.testing.assert_close(logits[b], alone, atol=2e-3, rtol=2e-3)


def forgetful(build, fox_pro):
    """A model whose heads remember about 3, 3, 30 and 3000 tokens."""
    model = build(fox_pro.config)
    for layer in model.model.layers:
        layer.attn.fgate_proj.weight.data.mul_(0.02)
        layer.attn.fgate_proj.bias.data = torch.tensor([1.0, 1.0, 3.4, 8.0])
        for norm in (layer.attn.q_norm, layer.attn.k_norm):
            norm.weight.data.clamp_(max=1.0)
    return model


@torch.no_grad()
def test_local_heads_keep_a_short_cache_and_global_heads_a_long_one(build, fox_pro):
    model, ids = forgetful(build, fox_pro), torch.randint(31, (1, 1000))
    cache, exact = model.new_cache(1, log_pruning_tolerance=TOLERANCE), model.new_cache(1)
    for chunk in ids[:, :960].split(240, dim=1):
        model(chunk, cache=cache)
        model(chunk, cache=exact)
    for token in ids[:, 960:].split(1, dim=1):
        logits, expected = model(token, cache=cache).logits, model(token, cache=exact).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    kept = cache.report().kept[:, 0]
    assert (kept[:, :2] < 200).all()
    assert (kept[:, 2] < 900).all()
    assert (kept[:, 3] == 1000).all()
    assert cache.report().bytes < 0.75 * exact.report().bytes
    assert "evicting" in str(cache.report())


@torch.no_grad()
def test_without_qk_norm_a_stated_cap_bounds_the_logits_and_a_breach_raises():
    torch.manual_seed(0)
    layer = ForgettingAttention(32, 4)
    layer.fgate_proj.bias.data.fill_(1.0)
    x = torch.randn(2, 300, 32)
    q, k = (proj(x).unflatten(-1, (4, 8)).norm(dim=-1) for proj in (layer.q_proj, layer.k_proj))
    cap = float((q.amax(1) * k.amax(1)).max()) / math.sqrt(8)
    cache = layer.new_cache(2, log_pruning_tolerance=TOLERANCE, logit_cap=1.01 * cap)
    out = layer(x, cache=cache)
    torch.testing.assert_close(out, layer(x), atol=1e-3, rtol=1e-3)
    assert (cache.kept() < 300).all()
    low = layer.new_cache(2, log_pruning_tolerance=TOLERANCE, logit_cap=0.5 * cap)
    with pytest.raises(ValueError, match=r"no logit exceeds logit_cap = .* now allow .* larger"):
        layer(x, cache=low)
    far = layer.new_cache(2, log_pruning_tolerance=TOLERANCE, logit_cap=1.01 * cap)
    layer(x, cache=far)
    with pytest.raises(ValueError, match="no logit exceeds"):  # with a key of long ago
        layer(3 * x[:, :1], cache=far)


def test_eviction_needs_gates_and_a_bound(fox_pro):
    plain = ForgettingAttention(32, 4, log_pruning_tolerance=TOLERANCE)
    assert not isinstance(plain.new_cache(1), PagedCache)
    with pytest.raises(ValueError, match="the model needs gates, and QK-norm or a logit_cap"):
        plain.new_cache(1, log_pruning_tolerance=TOLERANCE)
    softmax = ForgettingAttention(32, 4, qk_norm=True, fgate_type="none")
    with pytest.raises(ValueError, match="only where gates forget"):
        softmax.new_cache(1, log_pruning_tolerance=TOLERANCE)
    for layer in (ForgettingAttention(32, 4), ForgettingAttention(32, 4, qk_norm=True)):
        tolerance = None if layer.q_norm is None else TOLERANCE
        with pytest.raises(ValueError, match="have no QK-norm to bound their logits: leave it out"):
            layer.new_cache(1, log_pruning_tolerance=tolerance, logit_cap=9.0)
    bounded_layer = ForgettingAttention(32, 4, qk_norm=True, log_pruning_tolerance=TOLERANCE)
    assert isinstance(bounded_layer.new_cache(1), PagedCache)
    for tolerance in (0.5, math.nan):
        with pytest.raises(ValueError, match=f"None or at most 0, but got {tolerance}"):
            bounded_layer.new_cache(1, log_pruning_tolerance=tolerance)
    assert not fox_pro.new_cache(1).evicts


def test_the_bound_covers_every_rounding_of_a_rotated_key_in_16_bits():
    layer = ForgettingAttention(8, 4, qk_norm=True, use_rope=True)
    for norm in (layer.q_norm, layer.k_norm):
        norm.weight.data.fill_(1 + 2**-8 + 2**-12)  # bfloat16 makes 1 + 2^-7 of it
    q = layer.q_norm(torch.full((1, 4000, 4, 2), 100.0, dtype=torch.bfloat16))
    q = rotate(q, torch.arange(4000)[None], 500000.0).float()
    largest = (q * q).sum(-1).max() / math.sqrt(2)
    assert largest <= layer.logit_bound().min()
    assert largest > layer.logit_bound().min() * (1 - 2**-7)


@torch.no_grad()
def test_a_cap_is_checked_for_tokens_alone_and_on_what_is_stored():
    torch.manual_seed(0)
    layer, x = ForgettingAttention(32, 4), torch.randn(2, 6, 32)
    options = {"log_pruning_tolerance": TOLERANCE, "logit_cap": 50.0}
    cache = layer.new_cache(2, **options)
    x[0, :2] = math.nan  # padding
    layer(x, seq_start=torch.tensor([2, 0]), cache=cache)
    assert layer(x[:, :0], cache=cache).shape == (2, 0, 32)
    assert cache.lengths == [4, 6]
    assert layer(x[:0], cache=layer.new_cache(0, **options)).shape == (0, 6, 32)
    with pytest.raises(ValueError, match="no logit exceeds"):
        layer(1e3 * x[:, 2:], cache=cache)
    layer(x[:, 2:], cache=cache)  # the refused keys do not count
