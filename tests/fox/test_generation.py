"""generate: greedy and sampled, seeded, with stops and padded prompts."""

import pytest
import torch

from fox.generation import sample


def random_ids(B, T, V=31, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_greedy_generation_equals_repeated_full_passes(variant):
    ids = random_ids(2, 6)
    expected = ids
    for _ in range(8):
        new = variant(expected).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, new], dim=1)
    assert torch.equal(variant.generate(ids, 8), expected)


def test_left_padded_prompts_generate_like_each_alone(fox_pro):
    ids = random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    both = fox_pro.generate(ids, 6, attention_mask=mask)
    assert torch.equal(both[0], fox_pro.generate(ids[:1], 6)[0])
    assert torch.equal(both[1, 4:], fox_pro.generate(ids[1:, 4:], 6)[0])


def test_the_same_seed_gives_the_same_samples(fox_pro):
    ids = random_ids(2, 4)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return fox_pro.generate(ids, 12, temperature=1.0, top_p=0.9, generator=generator)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_rows_end_at_a_stop_token_and_the_loop_when_all_have_ended(fox_pro):
    ids = random_ids(2, 4)
    free = fox_pro.generate(ids, 10)
    stop = free[0, 6].item()
    stopped = fox_pro.generate(ids, 10, stop_token_ids=[stop])
    first = (free[0, 4:] == stop).nonzero()[0].item() + 4
    assert torch.equal(stopped[0, : first + 1], free[0, : first + 1])
    assert (stopped[0, first:] == stop).all()
    everything = fox_pro.generate(ids, 10, stop_token_ids=range(31))
    assert everything.shape == (2, 5)


def test_top_k_and_top_p_keep_the_likeliest_tokens_only():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)

    def drawn(**options):
        return set(sample(logits, 1.0, **options, generator=generator).flatten().tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.79) == {0, 1}
    assert drawn(top_p=0.81) == {0, 1, 2}
    assert drawn(top_p=0.01) == {0}


def test_temperature_sharpens_the_distribution():
    logits = torch.tensor([[1.0, 0.0]]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    warm = sample(logits, 1.0, generator=generator).float().mean()
    cold = sample(logits, 0.25, generator=generator).float().mean()
    assert abs(warm - 0.269) < 0.03
    assert abs(cold - 0.018) < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, but got -1"),
        ({"temperature": -1.0}, "temperature must be at least 0, but got -1.0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, but got 0"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must lie in \(0, 1\], but got 0.0"),
        ({"top_p": 0.5}, "give a temperature above 0"),
        ({"input_ids": torch.zeros(1, 0).long()}, "at least one token"),
    ],
)
def test_options_out_of_range_are_named(fox_pro, arguments, message):
    with pytest.raises(ValueError, match=message):
        fox_pro.generate(**({"input_ids": random_ids(1, 3), "max_new_tokens": 2} | arguments))
