"""A cache is the text that it has read: decoding through it equals one full pass."""

import copy

import pytest
import torch

from fox import FoxCache

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def random_ids(B, T, V=31, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def read(model, ids, cache, sizes=None, **first):
    """The logits of a text that is read in chunks."""
    logits = []
    for i, chunk in enumerate(ids.split(sizes or [ids.shape[1]], dim=1)):
        logits.append(model(chunk, cache=cache, **(first if i == 0 else {})).logits)
    return torch.cat(logits, dim=1)


@pytest.fixture(params=["slots", "pages"])
def new_cache(request):
    """Makes a cache that keeps all, or one that evicts (by a tolerance that is out of reach)."""

    def make(model, batch_size, **options):
        if request.param == "pages":
            options |= {"log_pruning_tolerance": -80.0}
            options |= {} if model.config.qk_norm else {"logit_cap": 1e4}
        cache = model.new_cache(batch_size, **options)
        tolerance = options.get("log_pruning_tolerance", model.config.log_pruning_tolerance)
        assert cache.evicts == (tolerance is not None)
        return cache

    return make


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 25, [7, 1, 17], [24, 1], [1, 24]])
def test_any_chunks_equal_one_pass(variant, sizes):
    ids = random_ids(2, 25)
    logits = read(variant, ids, variant.new_cache(2), sizes)
    torch.testing.assert_close(logits, variant(ids).logits, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_random_splits_equal_one_pass_to_rounding(fox_pro, new_cache, seed):
    generator = torch.Generator().manual_seed(seed)
    T = 300
    cuts = torch.randperm(T - 1, generator=generator)[: 3 + 5 * seed].add(1).sort().values
    sizes = torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([T])).tolist()
    ids = random_ids(2, T, seed=seed)
    logits, whole = read(fox_pro, ids, new_cache(fox_pro, 2), sizes), fox_pro(ids).logits
    assert (logits - whole).abs().max() <= 1e-5 * whole.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_prompts_decode_like_each_row_alone(variant, side):
    ids, more = random_ids(3, 12), random_ids(3, 9, seed=2)
    tokens = {"left": (0, 6, 12), "right": (0, 0, 0), "both": (0, 3, 12)}[side]
    ends = {"left": (12, 12, 12), "right": (12, 7, 0), "both": (9, 8, 12)}[side]
    mask = torch.zeros(3, 12, dtype=torch.int64)
    for b in range(3):
        mask[b, tokens[b] : ends[b]] = 1
    cache = variant.new_cache(3)
    first = variant(ids, cache=cache, attention_mask=mask).logits
    assert cache.lengths == mask.sum(1).tolist()
    rest = read(variant, more, cache, [1, 1, 7])
    for b in range(3):
        text = torch.cat([ids[b, tokens[b] : ends[b]], more[b]])[None]
        alone = variant(text).logits[0]
        both = torch.cat([first[b, tokens[b] : ends[b]], rest[b]])
        torch.testing.assert_close(both, alone, **CLOSE)


@torch.no_grad()
def test_later_chunks_may_be_padded_and_rows_may_get_nothing(fox_pro, new_cache):
    ids = random_ids(2, 40)
    cache, logits = new_cache(fox_pro, 2), [[], []]
    at = [0, 0]
    for counts in [(3, 7), (1, 0), (0, 1), (5, 2), (1, 1), (12, 11), (0, 0), (6, 6)]:
        T = max(counts) + 1
        chunk, mask = torch.zeros(2, T, dtype=torch.int64), torch.zeros(2, T, dtype=torch.int64)
        for b, n in enumerate(counts):
            start = (T - n) // 2
            chunk[b, start : start + n] = ids[b, at[b] : at[b] + n]
            mask[b, start : start + n] = 1
            at[b] += n
        out = fox_pro(chunk, attention_mask=mask, cache=cache).logits
        for b in range(2):
            logits[b].append(out[b, mask[b].bool()])
        assert cache.lengths == at
    for b in range(2):
        whole = fox_pro(ids[b : b + 1, : at[b]]).logits[0]
        torch.testing.assert_close(torch.cat(logits[b]), whole, **CLOSE)


@torch.no_grad()
def test_a_document_start_in_a_later_chunk_cuts_the_past(fox_pro, new_cache):
    ids = random_ids(1, 20)
    cache = new_cache(fox_pro, 1)
    fox_pro(ids[:, :8], cache=cache)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 2] = True
    logits = fox_pro(ids[:, 8:], document_starts=starts, cache=cache).logits
    torch.testing.assert_close(logits[:, :2], fox_pro(ids).logits[:, 8:10], **CLOSE)
    torch.testing.assert_close(logits[:, 2:], fox_pro(ids[:, 10:]).logits, **CLOSE)


@torch.no_grad()
def test_embeddings_may_stand_for_ids(fox_pro):
    ids = random_ids(2, 9)
    features = fox_pro.model(inputs_embeds=fox_pro.model.embeddings(ids))
    assert torch.equal(features, fox_pro.model(ids))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        fox_pro.model(ids, inputs_embeds=features)
    with pytest.raises(ValueError, match=r"\(B, T, C = 32\), but got \(2, 9, 31\)"):
        fox_pro.model(inputs_embeds=torch.zeros(2, 9, 31))


@torch.no_grad()
def test_rows_can_be_reordered_selected_repeated_and_joined(variant, new_cache):
    if variant.config.fgate_type == "none":
        new_cache = type(variant).new_cache  # nothing is forgotten, so nothing can be evicted
    ids, more = random_ids(3, 70), random_ids(4, 5, seed=2)
    lengths = [70, 66, 3]

    def texts(rows):
        """Logits of the rest, each row computed alone."""
        parts = [
            variant(torch.cat([ids[r, : lengths[r]], more[b]])[None]).logits[0, lengths[r] :]
            for b, r in enumerate(rows)
        ]
        return torch.stack(parts)

    mask = (torch.arange(70) < torch.tensor(lengths)[:, None]).long()
    cache = new_cache(variant, 3)
    variant(ids, attention_mask=mask, cache=cache)
    changed = {
        "select": (cache.select([2, 0]), [2, 0]),
        "repeat_interleave": (cache.select([1, 2]).repeat_interleave(2), [1, 1, 2, 2]),
        "join": (FoxCache.cat([cache.select([2]), cache, cache.select([])]), [2, 0, 1, 2]),
        "to": (cache.to("cpu").select([0, 1, 2]), [0, 1, 2]),
    }
    cache.reorder(torch.tensor([1, 1, 0]))
    changed["reorder"] = (cache, [1, 1, 0])
    for name, (other, rows) in changed.items():
        assert other.lengths == [lengths[r] for r in rows], name
        logits = read(variant, more[: len(rows)], other, [1, 3, 1])
        torch.testing.assert_close(logits, texts(rows), **CLOSE, msg=lambda m, name=name: name + m)


@torch.no_grad()
@pytest.mark.parametrize("dropped", [(5, 5), (0, 9), (32, 1), (20, 32)])
def test_cropped_text_is_as_if_never_read(variant, new_cache, dropped):
    if variant.config.fgate_type == "none":
        new_cache = type(variant).new_cache
    ids, more = random_ids(2, 90), random_ids(2, 30, seed=2)
    cache = new_cache(variant, 2)
    read(variant, ids, cache, [60, 1, 29])
    kept = [90 - n for n in dropped]
    cache.crop(kept)
    assert cache.lengths == kept
    logits = read(variant, more, cache, [1, 1, 28])
    for b in range(2):
        text = torch.cat([ids[b, : kept[b]], more[b]])[None]
        torch.testing.assert_close(logits[b], variant(text).logits[0, kept[b] :], **CLOSE)


@torch.no_grad()
def test_crops_and_steps_may_alternate_as_long_as_they_stay_within_the_rollback(fox_pro, new_cache):
    text, cache = random_ids(1, 50), new_cache(fox_pro, 1, rollback=8)
    fox_pro(text, cache=cache)
    furthest, generator = 50, torch.Generator().manual_seed(0)
    for step in range(60):
        new = random_ids(1, int(torch.randint(1, 9, (1,), generator=generator)), seed=step)
        logits = fox_pro(new, cache=cache).logits
        text = torch.cat([text, new], dim=1)
        expected = fox_pro(text).logits[:, -new.shape[1] :]
        torch.testing.assert_close(logits, expected, **CLOSE)
        furthest = max(furthest, text.shape[1])
        with pytest.raises(ValueError, match=f"of the tokens before {furthest - 8} the cache"):
            cache.crop(furthest - 9)
        length = int(torch.randint(furthest - 8, text.shape[1] + 1, (1,), generator=generator))
        cache.crop(length)
        text = text[:, :length]


@torch.no_grad()
@pytest.mark.parametrize("change", ["to", "select", "cat", "deepcopy"])
def test_a_copy_and_its_original_go_different_ways(fox_pro, new_cache, change):
    ids, more = random_ids(1, 70), random_ids(2, 9, seed=2)
    cache = new_cache(fox_pro, 1)
    fox_pro(ids, cache=cache)
    copies = {
        "to": lambda: cache.to("cpu"),
        "select": lambda: cache.select([0]),
        "cat": lambda: FoxCache.cat([cache]),
        "deepcopy": lambda: copy.deepcopy(cache),
    }
    both = [cache, copies[change]()]
    logits = [[], []]
    for token in more.split(1, dim=1):
        for b in range(2):
            logits[b].append(fox_pro(token[b : b + 1], cache=both[b]).logits)
    for b in range(2):
        whole = fox_pro(torch.cat([ids, more[b : b + 1]], dim=1)).logits[:, 70:]
        torch.testing.assert_close(torch.cat(logits[b], dim=1), whole, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 2])
def test_no_rows_and_no_tokens_are_nothing_to_do(variant, rows):
    cache = variant.new_cache(rows)
    for T in (0, 1, 0, 3):
        assert variant(random_ids(rows, T), cache=cache).logits.shape == (rows, T, 31)
    mask = torch.zeros(rows, 1, dtype=torch.int64)
    variant(random_ids(rows, 1), attention_mask=mask, cache=cache)
    cache.crop(0)
    assert cache.select([]).repeat_interleave(2).lengths == []
    assert cache.lengths == [0] * rows


@torch.no_grad()
def test_a_plain_cache_without_token_shift_can_be_cropped_to_any_length(build, fox_pro):
    model = build(fox_pro.config.replace(use_k_shift=False, use_v_shift=False))
    ids, cache = random_ids(1, 80), model.new_cache(1)
    model(ids, cache=cache)
    cache.crop(2)
    logits = model(ids[:, 2:], cache=cache).logits
    torch.testing.assert_close(logits, model(ids).logits[:, 2:], **CLOSE)


@torch.no_grad()
def test_buffers_double_and_a_reservation_is_taken_as_it_is(fox_pro):
    cache, sizes = fox_pro.new_cache(1), set()
    for token in random_ids(1, 200).unbind(1):
        fox_pro(token[:, None], cache=cache)
        sizes.add(cache.layers[0].k.shape[2])
    assert sizes == {64, 128, 256}
    cache.reserve(100)
    assert cache.layers[0].k.shape[2] == 300


@torch.no_grad()
def test_a_text_beyond_the_declared_maximum_is_refused_and_leaves_the_cache_whole(
    fox_pro, new_cache
):
    ids, cache = random_ids(2, 30), new_cache(fox_pro, 2, max_length=20)
    logits = read(fox_pro, ids[:, :18], cache, [15, 3])
    match = "max_length = 20 tokens, but 18 held and 3 new ones are 21"
    with pytest.raises(ValueError, match=match):
        fox_pro(ids[:, 18:21], cache=cache)
    with pytest.raises(ValueError, match=match):
        cache.reserve(3)
    logits = torch.cat([logits, fox_pro(ids[:, 18:20], cache=cache).logits], dim=1)
    torch.testing.assert_close(logits, fox_pro(ids[:, :20]).logits, **CLOSE)


@torch.no_grad()
def test_position_a_million_is_as_exact_as_position_ten(fox_pro, new_cache):
    ids = random_ids(1, 40)
    cache = new_cache(fox_pro, 1)
    logits = read(fox_pro, ids, cache, [20, 20])
    late = new_cache(fox_pro, 1)
    fox_pro(ids[:, :20], cache=late)
    for layer in late.layers:  # as after a million gates of e^-100
        if late.evicts:
            layer.running -= 1e8
            layer.total.rows -= 1e8
            layer.total_reach.rows += 1e8
        else:
            layer.lambda_ -= 1e8
    rest = fox_pro(ids[:, 20:], cache=late).logits
    torch.testing.assert_close(rest, logits[:, 20:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_cache_is_returned_and_knows_its_lengths_and_bytes(fox_pro):
    cache = fox_pro.new_cache(2, max_length=10)
    out = fox_pro(random_ids(2, 5), cache=cache)
    assert out.cache is cache
    assert (cache.length, cache.lengths, cache.batch_size, cache.max_length) == (5, [5, 5], 2, 10)
    report = cache.report()
    assert report.kept.shape == (2, 2, 4)
    assert (report.kept == 5).all()
    buffers = 2 * 10 * 4 * (2 * 8 * 4 + 8)  # k, v and running gates: rows, slots, heads
    tails = 2 * (2 * 49 * 32 * 4)
    assert report.bytes == 2 * (buffers + tails)
    assert "2 rows of at most 5 tokens" in str(report)
    assert "100%" in str(report)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.crop(6), "cannot crop row 0 to 6 tokens: the cache holds 5 of it"),
        (lambda c: c.crop([5, -1]), "cannot crop row 1 to -1 tokens: the cache holds 5"),
        (lambda c: c.crop([5]), "crop expects 2 lengths, but got 1"),
        (lambda c: c.reorder(torch.tensor([0])), "one row number for each of the 2 rows"),
        (lambda c: c.select([0, 2]), r"rows must lie in \[0, 1\], but got \[0, 2\]"),
        (lambda c: FoxCache.cat([]), "expects caches of one model"),
    ],
)
def test_what_cannot_be_done_to_a_cache_is_said(fox_pro, change, message):
    cache = fox_pro.new_cache(2)
    fox_pro(random_ids(2, 5), cache=cache)
    with pytest.raises(ValueError, match=message):
        change(cache)


@torch.no_grad()
def test_caches_that_forget_otherwise_are_not_joined(fox_pro):
    caches = [fox_pro.new_cache(1, log_pruning_tolerance=e) for e in (-10.0, -20.0)]
    with pytest.raises(ValueError, match="same options, but got 2 of 2 kinds"):
        FoxCache.cat(caches)


@torch.no_grad()
def test_a_cache_whose_layers_are_out_of_step_is_refused(fox_pro, new_cache, monkeypatch):
    ids, cache = random_ids(1, 5), new_cache(fox_pro, 1)
    with monkeypatch.context() as patch:
        patch.setattr(fox_pro.model.layers[1].attn, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fox_pro(ids, cache=cache)
    match = r"broken off .* layer 0 has read \[5\] tokens of its rows, layer 1 \[0\]; read"
    with pytest.raises(ValueError, match=match):
        fox_pro(ids, cache=cache)
    with pytest.raises(ValueError, match="made for 1 layers, but the model has 2"):
        fox_pro(ids, cache=FoxCache(new_cache(fox_pro, 1).layers[:1]))


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@torch.no_grad()
def test_a_cache_for_other_rows_and_a_mask_with_holes_are_refused(fox_pro):
    with pytest.raises(ValueError, match="made for 3 rows, but the text has 2"):
        fox_pro(random_ids(2, 5), cache=fox_pro.new_cache(3))
    holes = torch.tensor([[1, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="one run of ones in each row, but it has holes"):
        fox_pro(random_ids(1, 5), attention_mask=holes, cache=fox_pro.new_cache(1))


def test_a_cache_with_gradients_is_refused_instead_of_losing_them(fox_pro):
    with pytest.raises(ValueError, match=r"no gradient: call the model inside torch.no_grad\(\)"):
        fox_pro(random_ids(2, 5), cache=fox_pro.new_cache(2))


@torch.no_grad()
def test_a_row_that_is_cleared_reads_a_new_text_and_the_others_read_on(fox_pro, new_cache):
    old, new = random_ids(3, 150), random_ids(3, 90, seed=2)
    cache = new_cache(fox_pro, 3)
    read(fox_pro, old, cache, [149, 1])
    held = cache.report().bytes
    cache.clear([0, 2])
    assert cache.lengths == [0, 150, 0]
    assert cache.report().kept[:, [0, 2]].sum() == 0
    assert cache.report().bytes <= held
    logits = read(fox_pro, new, cache, [70, 20])
    torch.testing.assert_close(logits[[0, 2]], fox_pro(new[[0, 2]]).logits, **CLOSE)
    both = torch.cat([old, new], dim=1)[1:2]
    torch.testing.assert_close(logits[1:2], fox_pro(both).logits[:, 150:], **CLOSE)


def test_only_rows_of_the_cache_are_cleared(fox_pro):
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 1\], but got \[2\]"):
        fox_pro.new_cache(2).clear([2])
