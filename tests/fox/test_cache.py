"""Decoding through FoxCache equals one full pass."""

import pytest
import torch

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def random_ids(B, T, V=31, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def in_chunks(model, ids, sizes, **first):
    cache = model.new_cache(ids.shape[0])
    logits = []
    for i, chunk in enumerate(ids.split(sizes, dim=1)):
        logits.append(model(chunk, cache=cache, **(first if i == 0 else {})).logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 25, [7, 1, 17], [24, 1], [1, 24]])
def test_any_chunks_equal_one_pass(variant, sizes):
    ids = random_ids(2, 25)
    torch.testing.assert_close(in_chunks(variant, ids, sizes), variant(ids).logits, **CLOSE)


@torch.no_grad()
def test_a_cache_grows_past_its_first_slots(fox_pro):
    ids = random_ids(1, 150)
    logits = in_chunks(fox_pro, ids, [60, 60, 30])
    torch.testing.assert_close(logits, fox_pro(ids).logits, **CLOSE)


@torch.no_grad()
def test_left_padded_prompts_decode_like_each_row_alone(variant):
    ids, pads = random_ids(2, 20), 6
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :pads] = 0
    logits = in_chunks(variant, ids, [12, 1, 1, 6], attention_mask=mask)
    torch.testing.assert_close(logits[0], variant(ids[:1]).logits[0], **CLOSE)
    torch.testing.assert_close(logits[1, pads:], variant(ids[1:, pads:]).logits[0], **CLOSE)


@torch.no_grad()
def test_a_document_start_in_a_later_chunk_cuts_the_past(fox_pro):
    ids = random_ids(1, 20)
    cache = fox_pro.new_cache(1)
    fox_pro(ids[:, :8], cache=cache)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 2] = True
    logits = fox_pro(ids[:, 8:], document_starts=starts, cache=cache).logits
    torch.testing.assert_close(logits[:, :2], fox_pro(ids).logits[:, 8:10], **CLOSE)
    torch.testing.assert_close(logits[:, 2:], fox_pro(ids[:, 10:]).logits, **CLOSE)


@torch.no_grad()
def test_the_cache_is_returned_and_knows_its_length(fox_pro):
    cache = fox_pro.new_cache(2)
    out = fox_pro(random_ids(2, 5), cache=cache)
    assert out.cache is cache
    assert cache.length == 5


@torch.no_grad()
def test_a_cache_for_other_rows_is_refused(fox_pro):
    with pytest.raises(ValueError, match="made for 3 rows, but input_ids has 2"):
        fox_pro(random_ids(2, 5), cache=fox_pro.new_cache(3))


@torch.no_grad()
def test_padding_that_a_cache_cannot_hold_is_refused(fox_pro):
    ids, mask = random_ids(1, 5), torch.tensor([[1, 1, 1, 1, 0]])
    cache = fox_pro.new_cache(1)
    with pytest.raises(ValueError, match="pad the prompts on the left"):
        fox_pro(ids, attention_mask=mask, cache=cache)
    fox_pro(ids, cache=cache)
    with pytest.raises(ValueError, match="with the first chunk only"):
        fox_pro(ids, attention_mask=torch.ones_like(ids), cache=cache)


def test_a_cache_with_gradients_is_refused_instead_of_losing_them(fox_pro):
    with pytest.raises(ValueError, match=r"no gradient: call the model inside torch.no_grad\(\)"):
        fox_pro(random_ids(2, 5), cache=fox_pro.new_cache(2))
