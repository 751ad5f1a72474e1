"""The learner: its loss against one decision at a time, its steps, and its resumption."""

import copy
import io

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from fox.agents.realtime.learner import Learner, LearnerConfig
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.ticks import Source, token_dtype

D, ACTIONS = 3, 3
SMALL = {"batch_size": 6, "burn_in": 4, "train": 6}


def log(folder, reward=lambda actions, rng: rng.normal(), ticks=400, length=17, d=D):
    """Random observations and actions; every other episode terminates, the others are cut."""
    rng = np.random.default_rng(0)
    kind = token_dtype(np.zeros(4, np.float32))
    replay = Replay.create(folder, kind, 2 * ticks)
    token, actions = np.zeros((), kind), []
    for k in range(ticks):
        i = k % length
        token["tick"], token["start"], token["obs"] = k, i == 0, rng.normal(size=4)
        actions.append(int(rng.integers(ACTIONS)))
        r_t = reward(actions, rng)
        source = Source.POLICY if i >= d else Source.BETA_RESET
        over = i == length - 1
        terminated = over and k // length % 2 == 0
        obs_tick = k - d if source is Source.POLICY else -1
        replay.append(
            token, actions[-1], source, r_t, terminated, over - terminated, d, obs_tick, 0
        )
        token["action"], token["source"], token["reward"] = (
            (0, 4, 0) if over else (actions[-1], source, r_t)
        )
    return replay


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return log(tmp_path_factory.mktemp("learner") / "log")


def policy(seed=0, **changes):
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "d_max": 8} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RealtimePolicy(PolicyConfig(**options), (4,), np.dtype(np.float32), ACTIONS)


def learner(replay, seed=0, fresh=False, **changes):
    return Learner(policy(fresh=fresh), replay, LearnerConfig(**(SMALL | changes)), seed)


def by_definition(learner, sequences, replay):
    """The mean Huber loss, one decision after the other, each from tokens of its own."""
    config, columns, losses = learner.config, replay._columns, []
    for b, p in zip(*sequences.trainable.nonzero(), strict=True):
        first = sequences.tokens["tick"][b, 0]
        o = first + config.burn_in + p
        t = o + D

        def value(policy, saw, now, first=first):
            rows = np.arange(first, saw + 1)
            names = {"action": "action_tm1", "source": "source_tm1", "reward": "reward_tm1"}
            tokens = {
                name: torch.from_numpy(columns[names.get(name, name)][rows])[None]
                for name in replay.dtype.names
            }
            tokens |= {name: tokens[name].long() for name in ("action", "source")}
            h = policy.window(policy.encode(tokens), tokens["start"])[:, -1]
            committed = columns["action_t"][saw:now].astype(np.int64)[None]
            fresh = torch.from_numpy(columns["obs"][[now]]) if policy.config.fresh else None
            return policy.head(h, torch.from_numpy(committed), fresh)[0]

        target, m, over = 0.0, 0, False
        while m < config.n_step and not over:
            target += config.gamma**m * columns["reward_t"][t + m]
            over = columns["terminated_t"][t + m] or columns["truncated_t"][t + m]
            m += 1
        if not columns["terminated_t"][t + m - 1]:
            q_tpm = value(learner.target, o + m, t + m)
            chosen = value(learner.policy, o + m, t + m) if config.double else q_tpm
            target = target + config.gamma**m * q_tpm[chosen.argmax()]
        q_t = value(learner.policy, o, t)[columns["action_t"][t]]
        error = (torch.as_tensor(target).detach() - q_t).abs()
        losses.append(torch.where(error <= 1, error**2 / 2, error - 0.5))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("n_step", "fresh"), [(1, False), (3, False), (2, True)])
def test_the_gradient_is_that_of_one_decision_at_a_time(replay, n_step, double, fresh):
    trained = learner(replay, n_step=n_step, double=double, fresh=fresh, max_grad_norm=1e9)
    with torch.no_grad():
        trained._target_weights.mul_(1.5)  # so that the two networks differ
    sequences = trained.sample()
    gradient, metrics = trained.gradients(sequences)
    loss = by_definition(trained, sequences, replay)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    parts = torch.autograd.grad(loss, list(trained.policy.parameters()), materialize_grads=True)
    torch.testing.assert_close(gradient, parameters_to_vector(parts), rtol=1e-3, atol=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert 0 < metrics["trained"] < 1


def test_identical_batches_give_identical_gradients(replay):
    trained = learner(replay, learning_rate=0.0)
    sequences = trained.sample()
    norms = []
    for _ in range(4):
        gradient, metrics = trained.gradients(sequences)
        trained.apply([gradient])
        norms.append(metrics["grad_norm"])
    assert norms == [norms[0]] * 4


def test_several_learners_gradients_are_averaged(replay):
    one, two = learner(replay), learner(replay)
    gradient, _ = one.gradients(one.sample())
    one.apply([gradient])
    two.apply([0.5 * gradient, 1.5 * gradient])
    np.testing.assert_allclose(one.weights(), two.weights(), rtol=1e-6)


def test_what_is_clipped_is_what_is_stepped_and_published(replay):
    trained = learner(replay, max_grad_norm=0.01)
    gradient, metrics = trained.gradients(trained.sample())
    assert float(gradient.norm()) == pytest.approx(0.01, rel=1e-3)
    assert metrics["grad_norm"] > 0.1
    before = trained.weights()
    trained.apply([gradient])
    moved = torch.from_numpy(trained.weights() - before)
    # Adam's first step is the learning rate along the sign of every gradient of some size.
    large = gradient.abs() > 1e-5
    assert large.sum() > 100
    torch.testing.assert_close(moved[large], -1e-4 * gradient[large].sign(), rtol=0.01, atol=2e-7)
    np.testing.assert_array_equal(
        trained.weights(), parameters_to_vector(trained.policy.parameters()).detach().numpy()
    )


def test_published_weights_do_not_change_with_the_next_update(replay):
    trained = learner(replay)
    published = trained.weights()
    kept = published.copy()
    trained.step()
    np.testing.assert_array_equal(published, kept)
    assert (trained.weights() != kept).any()
    assert (published.dtype, published.shape) == (np.float32, kept.shape)


def test_the_networks_stay_the_same_objects_and_the_target_follows_by_copies(replay):
    trained = learner(replay, target_every=3)
    networks = trained.policy, trained.target
    start = trained.weights()
    targets = []
    for _ in range(6):
        trained.step()
        targets.append(parameters_to_vector(trained.target.parameters()).numpy())
        if trained.version % 3 == 0:
            np.testing.assert_array_equal(targets[-1], trained.weights())
    np.testing.assert_array_equal(targets[0], start)
    np.testing.assert_array_equal(targets[1], start)
    np.testing.assert_array_equal(targets[3], targets[2])
    assert networks == (trained.policy, trained.target)
    assert trained.version == 6


def test_polyak_averaging_moves_the_target_by_its_rate_each_update(replay):
    trained = learner(replay, target_every=1, target_rate=0.005, learning_rate=0.1)
    start = trained.weights()
    trained.step()
    target = parameters_to_vector(trained.target.parameters()).numpy()
    np.testing.assert_allclose(target, start + 0.005 * (trained.weights() - start), atol=1e-7)


def test_a_resumed_learner_goes_on_bit_for_bit(replay):
    options = {"target_every": 4, "n_step": 2, "double": True}
    whole = learner(replay, seed=3, **options)
    for _ in range(6):
        whole.step()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = Learner(policy(seed=9), replay, LearnerConfig(**(SMALL | options)), 3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.version == 6
    for _ in range(5):
        assert resumed.step() == whole.step()
    np.testing.assert_array_equal(resumed.weights(), whole.weights())
    torch.testing.assert_close(resumed._target_weights, whole._target_weights, rtol=0, atol=0)


def test_a_state_does_not_change_with_later_updates(replay):
    trained = learner(replay)
    trained.step()
    state = trained.state_dict()
    kept = copy.deepcopy(state)
    trained.step()
    assert state["version"] == 1
    torch.testing.assert_close(state["weights"], kept["weights"], rtol=0, atol=0)
    moments, wanted = (s["optimizer"]["state"][0]["exp_avg"] for s in (state, kept))
    torch.testing.assert_close(moments, wanted, rtol=0, atol=0)


def test_seeds_and_updates_draw_their_own_batches(replay):
    one, other = learner(replay), learner(replay, seed=1)
    first = one.sample().tokens["tick"]
    np.testing.assert_array_equal(first, one.sample().tokens["tick"])
    assert (first != other.sample().tokens["tick"]).any()
    one.step()
    assert (first != one.sample().tokens["tick"]).any()


def test_a_batch_without_a_trainable_decision_has_no_gradient(replay):
    trained = learner(replay)
    sequences = trained.sample()
    sequences.trainable[:] = False
    gradient, metrics = trained.gradients(sequences)
    assert not gradient.any()
    assert metrics == dict.fromkeys(("loss", "q", "td_error", "grad_norm", "trained"), 0.0)


def test_values_depend_on_what_only_committed_actions_tell(tmp_path):
    """The reward of a tick is 1 if its action repeats the one before: no observation shows it."""

    def repeats(actions, rng):
        return float(len(actions) > 1 and actions[-1] == actions[-2])

    memory = log(tmp_path / "log", repeats, ticks=1500, length=1500)
    config = LearnerConfig(batch_size=8, burn_in=2, train=16, gamma=0.0, learning_rate=3e-3)
    trained = Learner(policy(), memory, config, seed=0)
    for _ in range(150):
        metrics = trained.step()
    assert metrics["td_error"] < 0.1
    committed = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 1, 2]])
    q = trained.policy.head(torch.zeros(3, trained.policy.features), committed)
    assert q.argmax(-1).tolist() == [0, 1, 2]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"learner\.train must be at least 1, but got 0"):
        LearnerConfig(train=0)
    with pytest.raises(ValueError, match=r"learner\.burn_in must be at least 0, but got -1"):
        LearnerConfig(burn_in=-1)
    with pytest.raises(ValueError, match=r"learner\.gamma must lie in \[0, 1\], but got 1\.5"):
        LearnerConfig(gamma=1.5)


def test_the_state_of_another_policy_is_refused(replay):
    state = learner(replay).state_dict()
    other = Learner(policy(hidden_size=32), replay, LearnerConfig(**SMALL), 0)
    with pytest.raises(ValueError, match=r"has \d+ weights, but the state to load has \d+"):
        other.load_state_dict(state)
