"""generate, stream and beam_search: against full passes, alone and padded, ended and continued."""

import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from fox.generation import Stop

VOCABULARY = [*"abcdefghijklmnopqrstuvwxyzäö", "the", "é€", " "]


def random_ids(B, T, V=31, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def padded(ids, lengths, side):
    """Rows cut to their lengths, with noise as padding, and the mask."""
    B, T = ids.shape
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    if side == "left":
        mask = mask.flip(1)
    noise = random_ids(B, T, seed=9)
    rows = noise.clone()
    for b, n in enumerate(lengths):
        rows[b, mask[b]] = ids[b, :n]
    return rows, mask.long()


def tokens_of(row):
    return [token for token in row.tolist() if token >= 0]


@pytest.fixture
def tokenizer():
    """One text per id of the small models."""
    vocabulary = {text: place for place, text in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.fixture
def counted(fox_pro):
    """A model with a list of the shapes of what its trunk and its head were given."""
    shapes = {"trunk": [], "head": []}
    fox_pro.model.embeddings.register_forward_hook(
        lambda module, inputs, out: shapes["trunk"].append(tuple(inputs[0].shape))
    )
    fox_pro.lm_head.register_forward_hook(
        lambda module, inputs, out: shapes["head"].append(tuple(inputs[0].shape))
    )
    return fox_pro, shapes


@torch.no_grad()
def test_greedy_generation_equals_repeated_full_passes(variant):
    ids = random_ids(2, 6)
    expected = ids
    for _ in range(8):
        new = variant(expected).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, new], dim=1)
    assert torch.equal(variant.generate(ids, 8), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prefill_chunk", [3, 2048])
def test_padded_prompts_generate_like_each_alone(variant, side, prefill_chunk):
    ids, lengths = random_ids(3, 9), [9, 2, 5]
    rows, mask = padded(ids, lengths, side)
    options = {"repetition_penalty": 1.2, "prefill_chunk": prefill_chunk}
    together = variant.generate(rows, 6, attention_mask=mask, **options)
    for b, n in enumerate(lengths):
        alone = variant.generate(ids[b : b + 1, :n], 6, **options)
        assert torch.equal(together[b, 9:], alone[0, n:])


@torch.no_grad()
def penalized_logits(model, ids, penalty):
    """(B, V) logits after (B, T) ids, with the penalty for all of them, one by one."""
    logits = model(ids).logits[:, -1]
    for b, row in enumerate(ids):
        for token in row.unique():
            logits[b, token] *= 1 / penalty if logits[b, token] > 0 else penalty
    return logits


def test_the_penalty_counts_prompt_and_new_tokens(fox_pro):
    ids = random_ids(2, 6)
    expected = ids
    for _ in range(12):
        new = penalized_logits(fox_pro, expected, 1.7).argmax(-1, keepdim=True)
        expected = torch.cat([expected, new], dim=1)
    assert torch.equal(fox_pro.generate(ids, 12, repetition_penalty=1.7), expected)
    assert not torch.equal(fox_pro.generate(ids, 12), expected)


def test_the_same_seed_gives_the_same_samples(fox_pro):
    ids = random_ids(2, 4)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return fox_pro.generate(ids, 12, temperature=1.0, top_p=0.9, generator=generator)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@torch.no_grad()
def test_samples_follow_the_models_distribution(fox_pro):
    ids = random_ids(1, 4)
    expected = fox_pro(ids).logits[0, -1].div(0.7).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    drawn = fox_pro.generate(ids.expand(8000, 4), 1, temperature=0.7, generator=generator)
    torch.testing.assert_close(
        drawn[:, 4].bincount(minlength=31) / 8000, expected, atol=0.02, rtol=0
    )


def test_a_row_ends_with_its_first_stop_token_and_the_loop_with_the_last_row(fox_pro):
    ids = random_ids(2, 4)
    free = fox_pro.generate(ids, 10)
    stop = free[0, 6].item()
    stopped = fox_pro.generate(ids, 10, stop_token_ids=[stop])
    for row, whole in zip(stopped, free, strict=True):
        new = whole[4:].tolist()
        length = new.index(stop) + 1 if stop in new else 10
        assert row[4 : 4 + length].tolist() == new[:length]
        assert (row[4 + length :] == -1).all()
    assert fox_pro.generate(ids, 10, stop_token_ids=range(31)).shape == (2, 5)


def test_a_row_that_has_ended_does_not_change_what_the_others_draw(fox_pro):
    ids = random_ids(3, 4)

    def draw(stop):
        generator = torch.Generator().manual_seed(5)
        options = {"temperature": 1.5, "stop_token_ids": stop, "generator": generator}
        return fox_pro.generate(ids, 20, **options)

    free = draw([])
    stop = next(t for t in free[0, 4:8].tolist() if t not in free[1, 4:])
    stopped = draw([stop])
    assert stopped[0, -1] == -1
    assert torch.equal(stopped[1], free[1])


def test_a_stop_string_ends_a_row_across_tokens_and_stays_in_the_output(fox_pro, tokenizer):
    ids = random_ids(1, 4)
    free = fox_pro.generate(ids, 12)[0, 4:].tolist()
    texts = [VOCABULARY[token] for token in free]
    middle = "".join(texts[3:6])
    assert middle not in "".join(texts[:5])
    options = {"stop_strings": ["nowhere", middle], "tokenizer": tokenizer}
    assert fox_pro.generate(ids, 12, **options)[0, 4:].tolist() == free[:6]
    options["stop_token_ids"] = free[2:3]
    first = free.index(free[2]) + 1
    assert fox_pro.generate(ids, 12, **options)[0, 4:].tolist() == free[:first]


def test_stop_strings_end_each_row_by_its_own_text(fox_pro, tokenizer):
    ids = random_ids(4, 4)
    free = fox_pro.generate(ids, 12)
    stop = "".join(VOCABULARY[token] for token in free[2, 8:10].tolist())
    rows = fox_pro.generate(ids, 12, stop_strings=[stop], tokenizer=tokenizer)
    ends = []
    for row, whole in zip(rows, free, strict=True):
        new = tokens_of(row[4:])
        assert new == whole[4 : 4 + len(new)].tolist()
        ends.append(len(new))
        said = [stop in tokenizer.decode(whole[4 : 4 + n].tolist()) for n in range(1, 13)]
        assert len(new) == (said.index(True) + 1 if True in said else 12)
    assert ends[2] <= 6
    assert max(ends) == 12


def test_a_stop_string_in_the_prompt_ends_nothing(fox_pro, tokenizer):
    ids = random_ids(1, 4)
    free = fox_pro.generate(ids, 3)
    stop = VOCABULARY[ids[0, 3]] + VOCABULARY[free[0, 4]]
    stopped = fox_pro.generate(ids, 3, stop_strings=[stop], tokenizer=tokenizer)
    assert torch.equal(stopped, free)


def test_a_space_that_decoders_drop_at_the_beginning_of_a_text_still_stops():
    tokenizer = Tokenizer(models.WordLevel({"▁": 0, "a": 1}))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([0, 1]) == "a"
    stop = Stop(2, [], [" a"], tokenizer)
    assert stop(torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])).tolist() == [True, False]


def test_streaming_yields_what_generate_returns_one_token_at_a_time(counted):
    model, shapes = counted
    ids = random_ids(2, 6)
    stop = model.generate(ids, 8)[0, 9].item()
    expected = model.generate(ids, 8, stop_token_ids=[stop])
    shapes["trunk"].clear()
    steps = model.stream(ids, 8, stop_token_ids=[stop])
    assert shapes["trunk"] == []
    new = [next(steps)]
    assert shapes["trunk"] == [(2, 6)]
    new += steps
    assert torch.equal(torch.stack(new, dim=1), expected[:, 6:])


def test_a_long_prompt_is_read_in_chunks_and_only_its_last_logits_are_computed(counted):
    model, shapes = counted
    ids = random_ids(2, 50)
    whole = model.generate(ids, 3)
    shapes["trunk"].clear()
    assert torch.equal(model.generate(ids, 3, prefill_chunk=16), whole)
    assert shapes["trunk"] == [(2, 16)] * 3 + [(2, 2)] + [(2, 1)] * 2
    assert set(shapes["head"]) == {(2, 32)}


@torch.no_grad()
@pytest.mark.parametrize("prefill_chunk", [1, 7, 64])
def test_reading_a_prompt_in_chunks_equals_one_pass(variant, prefill_chunk):
    ids = random_ids(2, 64)
    expected = variant(ids).logits[:, -1].log_softmax(-1).topk(3)
    texts, scores = variant.beam_search(ids, 1, 3, prefill_chunk=prefill_chunk)
    assert torch.equal(texts[..., -1], expected.indices)
    torch.testing.assert_close(scores, expected.values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_continues_a_conversation(variant, side):
    ids, lengths = random_ids(3, 8), [8, 3, 5]
    rows, mask = padded(ids, lengths, side)
    free = variant.generate(rows, 6, attention_mask=mask)
    stop = free[1, 9].item()  # so that rows end at different steps
    cache = variant.new_cache(3)
    first = variant.generate(rows, 6, attention_mask=mask, stop_token_ids=[stop], cache=cache)
    new = [tokens_of(row) for row in first[:, 8:]]
    assert cache.lengths == [n + len(row) - 1 for n, row in zip(lengths, new, strict=True)]
    more = random_ids(3, 2, seed=3)
    turn = torch.cat([torch.tensor([row[-1:] for row in new]), more], dim=1)
    second = variant.generate(turn, 4, cache=cache)
    for b, n in enumerate(lengths):
        text = torch.cat([ids[b, :n], torch.tensor(new[b]), more[b]])[None]
        assert torch.equal(second[b, 3:], variant.generate(text, 4)[0, text.shape[1] :])


def test_a_prompt_that_the_cache_cannot_hold_is_refused_before_anything_is_read(counted):
    model, shapes = counted
    cache = model.new_cache(2, max_length=12)
    with pytest.raises(ValueError, match="max_length = 12"):
        model.stream(random_ids(2, 8), 5, cache=cache)
    with pytest.raises(ValueError, match="max_length = 12"):
        model.beam_search(random_ids(2, 8), 5, 2, cache=cache)
    assert shapes["trunk"] == []
    assert model.generate(random_ids(2, 8), 4, cache=cache).shape == (2, 12)


def test_the_cache_is_allocated_once(fox_pro):
    cache = fox_pro.new_cache(2)
    steps = fox_pro.stream(random_ids(2, 70), 80, cache=cache)
    held = cache.report().bytes
    assert held > 0
    assert sum(1 for _ in steps) == 80
    assert cache.report().bytes == held


@torch.no_grad()
def log_probs_of(model, ids, new):
    """(R, n) log p of each new token after (1, T) ids, by a full pass over (R, n) new ones."""
    text = torch.cat([ids.expand(len(new), -1), new], dim=1)
    log_p = model(text).logits[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    return log_p.gather(2, new[..., None])[..., 0]


def all_texts(model, ids, n, stops, length_penalty):
    """Every continuation up to its first stop token, best first, as (score, tokens)."""
    V = model.config.vocab_size
    new = torch.tensor(list(itertools.product(range(V), repeat=n)))
    sums = log_probs_of(model, ids, new).cumsum(1)
    texts = {}
    for row, total in zip(new.tolist(), sums.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in stops), n)
        texts[tuple(row[:length])] = total[length - 1] / length**length_penalty
    return sorted(((score, list(text)) for text, score in texts.items()), reverse=True)


@pytest.mark.parametrize(
    ("stops", "length_penalty"),
    [([], 1.0), ([2], 1.0), ([2], 0.0), ([2], -1.0), ([0, 3], 2.0)],
)
def test_a_beam_search_that_drops_nothing_finds_the_best_of_all_texts(
    fox_pro, build, stops, length_penalty
):
    model = build(fox_pro.config.replace(vocab_size=4))
    ids = random_ids(2, 5, V=4)
    texts, scores = model.beam_search(
        ids, 4, 4**4, stop_token_ids=stops, length_penalty=length_penalty
    )
    for b in range(2):
        expected = all_texts(model, ids[b : b + 1], 4, stops, length_penalty)
        found = scores[b] > -math.inf
        assert found.sum() == len(expected)
        torch.testing.assert_close(
            scores[b, found], torch.tensor([score for score, _ in expected]), atol=1e-5, rtol=1e-5
        )
        assert tokens_of(texts[b, 0, 5:]) == expected[0][1]
        assert sorted(tokens_of(row[5:]) for row in texts[b, found]) == sorted(
            text for _, text in expected
        )
        assert (texts[b, ~found, 5:] == -1).all()


def test_scores_of_every_step_equal_those_of_full_passes(variant):
    ids = random_ids(2, 6)
    for n in range(1, 8):
        texts, scores = variant.beam_search(ids, n, 3, length_penalty=0.5)
        assert torch.equal(scores, scores.sort(descending=True).values)
        for b in range(2):
            log_p = log_probs_of(variant, ids[b : b + 1], texts[b, :, 6:])
            expected = log_p.sum(1) / n**0.5
            torch.testing.assert_close(scores[b], expected, atol=1e-4, rtol=1e-4)


def test_the_penalty_counts_each_beams_own_tokens(fox_pro):
    ids = random_ids(1, 6)
    texts, scores = fox_pro.beam_search(ids, 8, 4, repetition_penalty=1.7)
    expected = 0
    for n in range(6, 14):
        log_p = penalized_logits(fox_pro, texts[0, :, :n], 1.7).log_softmax(-1)
        expected = expected + log_p.gather(1, texts[0, :, n, None])[:, 0]
    torch.testing.assert_close(scores[0], expected / 8, atol=1e-4, rtol=1e-4)


def test_each_beam_goes_on_from_the_likeliest_of_the_step_before(fox_pro):
    ids = random_ids(1, 6)
    survivors = torch.empty(1, 0, dtype=torch.int64)
    for n in range(1, 7):
        new = torch.cat(
            [survivors.repeat_interleave(31, 0), torch.arange(31).repeat(len(survivors))[:, None]],
            1,
        )
        best = log_probs_of(fox_pro, ids, new).sum(1).topk(4).indices
        survivors = new[best]
        texts, _ = fox_pro.beam_search(ids, n, 4)
        assert torch.equal(texts[0, :, 6:], survivors)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_are_searched_like_each_alone(variant, side):
    ids, lengths = random_ids(3, 9), [9, 2, 5]
    rows, mask = padded(ids, lengths, side)
    options = {"stop_token_ids": [3, 4, 5], "repetition_penalty": 1.1, "prefill_chunk": 4}
    together, scores = variant.beam_search(rows, 6, 3, attention_mask=mask, **options)
    for b, n in enumerate(lengths):
        alone, score = variant.beam_search(ids[b : b + 1, :n], 6, 3, **options)
        torch.testing.assert_close(scores[b], score[0], atol=1e-4, rtol=1e-4)
        for row, single in zip(together[b], alone[0], strict=True):
            assert tokens_of(row[9:]) == tokens_of(single[n:])


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_beams_are_those_of_transformers(fox_pro, length_penalty, tmp_path):
    import fox.hf

    with torch.no_grad():
        fox_pro.lm_head.weight.mul_(0.5)  # less sure of the next token: some texts end early
    fox_pro.save_pretrained(tmp_path)
    other = fox.hf.FoxHFForCausalLM.from_pretrained(tmp_path).eval()
    ids, stops = random_ids(2, 6, seed=0), [3, 4, 5]
    texts, scores = fox_pro.beam_search(
        ids, 10, 4, length_penalty=length_penalty, stop_token_ids=stops
    )
    expected = other.generate(
        ids,
        max_new_tokens=10,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=length_penalty,
        eos_token_id=stops,
        early_stopping="never",
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected_scores = expected.sequences_scores.view(2, 4)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-4)
    lengths = set()
    for row, other_row in zip(texts.flatten(0, 1), expected.sequences, strict=True):
        text = tokens_of(row)
        assert other_row[: len(text)].tolist() == text
        lengths.add(len(text))
    assert len(lengths) > 1


def test_one_beam_that_never_ends_is_greedy(fox_pro):
    ids = random_ids(3, 5)
    texts, _ = fox_pro.beam_search(ids, 7, 1, repetition_penalty=1.3)
    assert torch.equal(texts[:, 0], fox_pro.generate(ids, 7, repetition_penalty=1.3))


def test_a_search_is_over_when_no_unfinished_text_can_win(counted):
    model, shapes = counted
    ids = random_ids(2, 5)
    texts, _ = model.beam_search(ids, 50, 2, stop_token_ids=range(31))
    assert texts.shape == (2, 2, 6)
    assert shapes["trunk"] == [(2, 5)]
    model.beam_search(ids, 50, 2, stop_token_ids=range(15), length_penalty=0.0)
    assert len(shapes["trunk"]) < 20


def test_beams_end_at_stop_strings(fox_pro, tokenizer):
    ids = random_ids(1, 5)
    free, _ = fox_pro.beam_search(ids, 6, 2)
    stop = "".join(VOCABULARY[token] for token in free[0, 0, 7:9].tolist())
    options = {"stop_strings": [stop], "tokenizer": tokenizer, "length_penalty": -1.0}
    texts, _ = fox_pro.beam_search(ids, 6, 2, **options)
    for row in texts[0, :, 5:]:
        new = tokens_of(row)
        assert len(new) == 6 or tokenizer.decode(new).endswith(stop)
    assert any(len(tokens_of(row)) == 4 for row in texts[0, :, 5:])


def test_a_search_leaves_the_prompt_in_the_cache(fox_pro):
    ids, cache = random_ids(2, 9), fox_pro.new_cache(2)
    fox_pro.generate(ids[:, :5], 1, cache=cache)
    texts, scores = fox_pro.beam_search(ids[:, 5:], 6, 3, cache=cache)
    assert cache.lengths == [9, 9]
    whole, expected = fox_pro.beam_search(ids, 6, 3)
    assert torch.equal(texts[..., 4:], whole[..., 9:])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, but got 0"),
        ({"prefill_chunk": 0}, "prefill_chunk must be at least 1, but got 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, but got 0.0"),
        ({"stop_token_ids": [3, 31]}, r"stop_token_ids must lie in \[0, 31\), but got 31"),
        ({"stop_strings": "end"}, "stop_strings must be a list of texts, none empty"),
        ({"stop_strings": ["end", ""]}, "stop_strings must be a list of texts, none empty"),
        ({"stop_strings": ["end"]}, "give the tokenizer with them"),
        ({"input_ids": random_ids(1, 3)[0]}, r"input_ids must have shape \(B, T\), but got \(3,\)"),
        ({"input_ids": random_ids(1, 0)}, "at least one token, .* but row 0 has 0 runs"),
        ({"attention_mask": torch.zeros(1, 3)}, "but row 0 has 0 runs"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "but row 0 has 2 runs"),
        ({"attention_mask": torch.ones(1, 4)}, r"shape of input_ids, \(1, 3\), but got \(1, 4\)"),
    ],
)
def test_arguments_out_of_range_are_named(fox_pro, arguments, message):
    arguments = {"input_ids": random_ids(1, 3), "max_new_tokens": 2} | arguments
    with pytest.raises(ValueError, match=message):
        fox_pro.stream(**arguments)
    with pytest.raises(ValueError, match=message):
        fox_pro.beam_search(num_beams=2, **arguments)


def test_options_of_sampling_and_of_beams_are_checked_at_the_call(fox_pro):
    with pytest.raises(ValueError, match="min_p must lie in"):
        fox_pro.stream(random_ids(1, 3), 2, temperature=1.0, min_p=0.0)
    with pytest.raises(ValueError, match="num_beams must be at least 1, but got 0"):
        fox_pro.beam_search(random_ids(1, 3), 2, 0)
    with pytest.raises(ValueError, match="the cache was made for 2 rows"):
        fox_pro.generate(random_ids(1, 3), 2, cache=fox_pro.new_cache(2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_that_forgets_generates_searches_and_continues_alike(fox_pro, side):
    rows, mask = padded(random_ids(2, 300), [300, 180], side)
    stop = fox_pro.generate(rows, 6, attention_mask=mask)[0, 303].item()
    answers = []
    for tolerance in (None, -20.0):
        cache = fox_pro.new_cache(2, log_pruning_tolerance=tolerance)
        options = {"attention_mask": mask, "cache": cache, "prefill_chunk": 100}
        first = fox_pro.generate(rows, 6, stop_token_ids=[stop], **options)
        assert (first[0, 304:] == -1).all()
        second, _ = fox_pro.beam_search(random_ids(2, 70, seed=3), 5, 3, cache=cache)
        answers.append(torch.cat([first[:, 300:], second[:, 0, 70:]], dim=1))
    assert torch.equal(*answers)
    assert cache.evicts
    assert (cache.report().kept.sum((0, 2)) < 0.8 * 8 * torch.tensor(cache.lengths)).all()
