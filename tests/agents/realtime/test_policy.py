"""Claims about the realtime policy: its parts, its sizes, its weights and what it refuses."""

import numpy as np
import pytest
import torch

from fox import FoxConfig, FoxForCausalLM
from fox.agents.realtime import policy as module
from fox.agents.realtime.networks import Impala, observation_encoder
from fox.agents.realtime.policy import (
    PolicyConfig,
    RealtimePolicy,
    batch_of,
    check_head,
    head_seconds,
)
from fox.agents.realtime.ticks import token_dtype

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "d_max": 8}


def policy_of(shape=(5,), dtype=np.float32, **fields):
    config = PolicyConfig(**(TINY | fields))
    return RealtimePolicy(config, shape, np.dtype(dtype), 3)


def tokens_of(policy, B=2, T=6):
    random = np.random.default_rng(0)
    zeros = np.zeros(policy.observation_shape, policy.observation_dtype)
    tokens = np.zeros((B, T), token_dtype(zeros))
    tokens["obs"] = random.integers(0, 200, tokens["obs"].shape)
    tokens["action"], tokens["source"] = random.integers(3, size=(2, B, T))
    tokens["reward"] = random.normal(size=(B, T))
    tokens["start"][:, 0] = True
    return tokens


def q_of(policy, tokens, committed, fresh=None):
    batch = batch_of(tokens)
    h = policy.window(policy.encode(batch), batch["start"])
    return policy.head(h[:, -1], torch.as_tensor(committed), fresh)


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(1, 1, 0.90), (7, 1, 10.4), (29, 1, 104.7)]
)
def test_the_impala_trunk_has_the_sizes_of_the_paper(width, depth, millions):
    with torch.device("meta"):
        network = Impala((84, 84), width, depth)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_deeper_impala_has_six_sections():
    network = Impala((84, 84), 1, 2)
    assert sum(isinstance(part, torch.nn.MaxPool2d) for part in network.sections) == 6
    assert network(torch.zeros(1, 84, 84, dtype=torch.uint8)).shape == (1, 512)


@pytest.mark.parametrize("shape", [(5,), (84, 84)])
@pytest.mark.parametrize("block", ["llama", "pro"])
def test_every_field_of_a_token_matters_to_later_ticks_of_its_episode(shape, block):
    policy = policy_of(shape, np.float32 if len(shape) == 1 else np.uint8, block=block)
    tokens, committed = tokens_of(policy), torch.full((2, 3), -1)
    before = q_of(policy, tokens, committed)
    for field in ("obs", "action", "source", "reward", "start"):
        changed = tokens.copy()
        changed[field][:, 3] = 1 - changed[field][:, 3] % 2
        assert (q_of(policy, changed, committed) != before).all(), field
    old = tokens.copy()
    tokens["start"][:, 4] = old["start"][:, 4] = True
    old["obs"][:, :4] = 0
    torch.testing.assert_close(q_of(policy, old, committed), q_of(policy, tokens, committed))


def test_an_impala_policy_sees_the_last_frame_only():
    policy = policy_of((84, 84), np.uint8, trunk="impala")
    tokens, committed = tokens_of(policy), torch.full((2, 3), -1)
    batch = batch_of(tokens)
    h = policy.window(policy.encode(batch), batch["start"])
    assert h.shape == (2, 6, policy.features) == (2, 6, 512)
    other = tokens.copy()
    other["obs"][:, :-1] = 0
    torch.testing.assert_close(q_of(policy, other, committed), q_of(policy, tokens, committed))
    with pytest.raises(ValueError, match="has no cache"):
        policy.extend(None, h, batch["start"])


def test_the_late_head_adds_an_embedding_of_each_committed_action_at_its_place():
    policy = policy_of()
    h, committed = torch.randn(2, 32), torch.tensor([[2, 0, 1, -1], [1, -1, -1, -1]])
    table = policy.q_head.committed.weight[:-1].view(8, 3, 128)
    summed = torch.stack([table[0, 2] + table[1, 0] + table[2, 1], table[0, 1]])
    head = policy.q_head
    wanted = head.out(head.hidden((head.into(h) + summed).relu()).relu())
    torch.testing.assert_close(policy.head(h, committed), wanted)
    none = torch.full((2, 8), -1)
    torch.testing.assert_close(policy.head(h, none), policy.head(h, none[:, :1]))


def test_a_plain_head_knows_no_committed_actions():
    policy, h = policy_of(head="plain"), torch.randn(2, 32)
    one, other = (policy.head(h, torch.full((2, 4), a)) for a in (0, 1))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("shape", "dtype"), [((5,), np.float32), ((84, 84), np.uint8)])
def test_a_head_with_a_fresh_observation_looks_at_it(shape, dtype):
    policy = policy_of(shape, dtype, fresh=True)
    tokens, committed = tokens_of(policy), torch.full((2, 3), -1)
    fresh = batch_of(tokens)["obs"][:, -1]
    one, other = (q_of(policy, tokens, committed, x) for x in (fresh, fresh // 2))
    assert (one != other).all()
    with pytest.raises(ValueError, match="made for a fresh observation, but fresh is NoneType"):
        q_of(policy, tokens, committed)


def test_gradients_reach_every_parameter():
    for policy in (
        policy_of((84, 84), np.uint8, block="pro", fresh=True),
        policy_of((84, 84), np.uint8, trunk="impala", head="plain"),
    ):
        tokens = tokens_of(policy)
        fresh = batch_of(tokens)["obs"][:, -1] if policy.config.fresh else None
        q_of(policy, tokens, torch.zeros(2, 8, dtype=torch.int64), fresh).square().sum().backward()
        assert all(p.grad is not None for p in policy.parameters())


def test_a_policy_starts_from_the_trunk_of_a_checkpoint(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2}
    model = FoxForCausalLM(FoxConfig.preset("fox-pro-125m", vocab_size=11, **shape))
    model.save_pretrained(tmp_path)
    policy = policy_of(init_from=str(tmp_path))
    theirs = model.model.layers[1].attn.k_proj.linear.weight
    torch.testing.assert_close(policy.trunk.model.layers[1].attn.k_proj.linear.weight, theirs)
    assert policy.config.blocks() == model.config
    assert sum(p.numel() for p in policy.trunk.parameters()) == sum(
        p.numel() for name, p in model.model.named_parameters() if "embeddings" not in name
    )
    with pytest.raises(
        ValueError, match=r"policy.num_heads is 4, but .* set policy.num_heads to 2"
    ):
        policy_of(init_from=str(tmp_path), num_heads=4)


def test_one_row_of_tokens_is_a_batch_of_one():
    tokens = tokens_of(policy_of())
    batch = batch_of(tokens[0])
    assert batch["obs"].shape == (1, 6, 5)
    assert {name: x.dtype for name, x in batch.items()} == {
        "tick": torch.int64,
        "episode": torch.int64,
        "obs": torch.float32,
        "action": torch.int64,
        "source": torch.int64,
        "reward": torch.float32,
        "start": torch.bool,
    }


def test_the_head_takes_well_below_a_tenth_of_a_tick():
    assert head_seconds(policy_of(hidden_size=256, d_max=128)) < 1 / 60 / 10


def test_a_head_that_is_too_slow_is_refused(monkeypatch):
    monkeypatch.setattr(module, "head_seconds", lambda policy: 0.002)
    with pytest.raises(ValueError, match=r"at most a tenth of a tick, 1.67 ms, but takes 2.00 ms"):
        check_head(policy_of(), 1 / 60)
    assert check_head(policy_of(), 1.0) == 0.002


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "policy.window must be a whole number from 1 on, not 0"),
        ({"hidden_size": 1.5}, "policy.hidden_size must be a whole number from 1 on, not 1.5"),
        ({"cache": "shared"}, r"policy.cache must be one of \('window', 'catchup', 'wavefront'\)"),
        ({"depth": 3}, "policy.depth must be 1 or 2, but got 3"),
        ({"trunk": "impala", "cache": "catchup"}, "an IMPALA trunk sees the last frame only"),
        ({"head": "plain", "fresh": True}, 'only policy.head = "late" looks at a fresh'),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**fields)


@pytest.mark.parametrize("shape", [(84, 84, 3), (19, 84), ()])
def test_observations_of_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"vector \(n,\) or a gray frame .* 20 x 20, but has shape"
    ):
        observation_encoder(shape, 8, 8)


def test_the_smallest_frames_have_room_for_the_convolutions():
    assert observation_encoder((20, 20), 8, 8)(torch.zeros(1, 20, 20)).shape == (1, 8)
    for depth, side in ((1, 29), (2, 53)):
        assert Impala((side, side), 1, depth)(torch.zeros(1, side, side)).shape == (1, 512)
        with pytest.raises(ValueError, match="such as 84 x 84, but observations have shape"):
            Impala((side - 1, side), 1, depth)


def test_an_impala_trunk_refuses_what_is_no_frame():
    with pytest.raises(ValueError, match=r"reads gray frames \(H, W\), such .* shape \(5,\)"):
        policy_of(trunk="impala")


def test_more_committed_actions_than_the_largest_delay_are_refused():
    with pytest.raises(ValueError, match="at most d_max = 8 committed actions, but got 9"):
        policy_of().head(torch.zeros(1, 32), torch.zeros(1, 9, dtype=torch.int64))
