"""FoxPolicy is the trunk of a model: the same features from sequences, chunks and checkpoints."""

import pytest
import torch

from fox import FoxPolicy

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def policy_of(model):
    """The trunk of a model, with its weights."""
    policy = FoxPolicy(model.config).eval()
    weights = model.model.state_dict()
    del weights["embeddings.weight"]
    policy.model.load_state_dict(weights)
    return policy


def observations(B=3, T=40, C=32):
    x = torch.randn(B, T, C)
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[:, 0] = starts[0, 9] = starts[1, [3, 20, 21]] = starts[2, 24] = True
    return x, starts


def test_the_features_are_those_of_the_model_behind_its_embedding(variant):
    x, starts = observations()
    features = policy_of(variant)(x, starts)
    wanted = variant.model(inputs_embeds=x, document_starts=starts)
    torch.testing.assert_close(features, wanted)


def test_no_parameter_is_unused(variant):
    policy = policy_of(variant)
    policy(*observations()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 40, [9, 11, 1, 19], [40]])
def test_any_chunks_equal_the_whole_sequence_across_episodes(variant, sizes):
    policy, (x, starts) = policy_of(variant), observations()
    cache = policy.new_cache(3)
    chunks = zip(x.split(sizes, 1), starts.split(sizes, 1), strict=True)
    features = [policy.extend(cache, chunk, begins) for chunk, begins in chunks]
    torch.testing.assert_close(torch.cat(features, 1), policy(x, starts), **CLOSE)


@torch.no_grad()
def test_a_row_is_emptied_where_an_episode_begins(fox_pro):
    policy, (x, starts) = policy_of(fox_pro), observations()
    for options in ({}, {"log_pruning_tolerance": -30.0}):
        cache = policy.new_cache(3, **options)
        features = [policy.step(cache, x[:, t], starts[:, t]) for t in range(40)]
        torch.testing.assert_close(torch.stack(features, 1), policy(x, starts), **CLOSE)
        assert cache.lengths == [31, 19, 16]


@torch.no_grad()
def test_rows_go_on_by_different_numbers_of_tokens(fox_pro):
    policy, x = policy_of(fox_pro), torch.randn(2, 12, 32)
    cache = policy.new_cache(2)
    policy.extend(cache, x[:, :5])
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, 3:] = 0
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 0] = starts[0, 5] = True  # the latter is padding
    features = policy.extend(cache, x[:, 5:], starts, mask)
    torch.testing.assert_close(features[:1, :3], policy(x[:1, 5:8]), **CLOSE)
    torch.testing.assert_close(features[1:], policy(x[1:])[:, 5:], **CLOSE)
    assert cache.lengths == [3, 12]


@torch.no_grad()
def test_a_checkpoint_gives_its_trunk(variant, tmp_path):
    variant.save_pretrained(tmp_path)
    policy, (x, starts) = FoxPolicy.from_checkpoint(tmp_path), observations()
    torch.testing.assert_close(policy(x, starts), policy_of(variant)(x, starts))
    assert not any("embed" in name for name in policy.state_dict())
    assert policy.config == variant.config


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no checkpoint folder"):
        FoxPolicy.from_checkpoint(tmp_path)


def test_embeddings_of_another_width_are_refused(fox_pro):
    with pytest.raises(ValueError, match=r"shape \(B, T, C = 32\), but got \(1, 2, 31\)"):
        policy_of(fox_pro)(torch.zeros(1, 2, 31))
