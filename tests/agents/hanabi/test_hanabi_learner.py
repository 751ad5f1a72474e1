"""The learner: its loss against the definition, one turn at a time; its steps, and going on."""

import copy
import io

import numpy as np
import pytest
import torch
from episodes import made_up
from nets import make_net

from fox.agents.hanabi.batch import batch_of
from fox.agents.hanabi.learner import DRAWS, Learner, LearnerConfig, action_values
from fox.agents.hanabi.otherplay import renamed_at_random
from fox.agents.hanabi.replay import Replay, ReplayConfig, Sample
from fox.agents.hanabi.text import action_texts, collate, observation_places

GAMMA = 0.9


def games(counts=(2, 2, 3, 3, 4), first=0, style="full"):
    return [
        made_up(players, number, style=style) for number, players in enumerate(counts, start=first)
    ]


def learner(episodes=(), seed=0, alpha=0.9, updates=100, net=None, **changes):
    replay = Replay(ReplayConfig(capacity=16, alpha=alpha))
    for episode in episodes or games():
        replay.add(episode)
    options = {"batch_games": 6, "n_step": 2, "gamma": GAMMA} | changes
    return Learner(net or make_net(), replay, LearnerConfig(**options), seed, updates)


def sampled(episodes, weights=None):
    weights = np.ones(len(episodes), np.float32) if weights is None else weights
    return Sample(list(episodes), np.arange(len(episodes)), np.asarray(weights, np.float32))


def loss_of(learner, sample):
    batch = batch_of(sample.episodes, learner.net.config.style)
    return learner._loss(batch, torch.from_numpy(sample.weights))


def target_weights(learner):
    return learner.state_dict()["target_weights"].numpy()


def apart(learner):
    """Gives the target network weights of its own."""
    other = make_net(seed=1)
    for mine, theirs in zip(learner.target.parameters(), other.parameters(), strict=True):
        mine.copy_(theirs.detach())
    return learner


@torch.no_grad()
def game_values(net, episode):
    """(T, A), every turn from the views of its own seat alone, up to then."""
    rules, views, style = episode.rules, episode.views(), net.config.style
    e = net.encode(action_texts(rules.moves))
    rows = []
    for t in range(episode.turns):
        own = views[t % rules.players : t + 1 : rules.players]
        places = [observation_places(rules, len(view), style) for view in own]
        x = net.encode(collate(own, places))
        legal = torch.from_numpy(episode.legal[t : t + 1])
        rows.append(net.head(x[-1:] + net.memory(x[None])[0, -1:], e, legal)[0])
    return torch.stack(rows)


def by_definition(learner, episode):
    """Values and errors of what is learnt, turns or rounds, straight from the formulas."""
    config, P, T = learner.config, episode.rules.players, episode.turns
    online, target = game_values(learner.net, episode), game_values(learner.target, episode)
    r = [max(r, 0.0) if config.bomb == "keep" else r for r in episode.rewards.tolist()]
    q = [float(online[t, a]) for t, a in enumerate(episode.actions)]
    v = []
    for t in range(T):
        legal = episode.legal[t].nonzero()[0].tolist()
        v.append(float(target[t, max(legal, key=lambda a, t=t: online[t, a])]))
    if config.targets == "vdn":
        rounds = [range(first, min(first + P, T)) for first in range(0, T, P)]
        starts, values = list(range(0, T, P)), [sum(q[t] for t in turns) for turns in rounds]
        later = {turns[0]: sum(v[t] for t in turns) for turns in rounds}
        horizon = config.n_step * P
    else:
        starts, values, later = list(range(T)), q, dict(enumerate(v))
        horizon = config.n_step * (P if config.targets == "own" else 1)
    learnt, errors = [], []
    for start, value in zip(starts, values, strict=True):
        y = sum(GAMMA ** (t - start) * r[t] for t in range(start, min(start + horizon, T)))
        y += GAMMA**horizon * later.get(start + horizon, 0.0)
        if start // P >= config.burn_in:
            learnt.append(value)
            errors.append(y - value)
    return learnt, errors


@pytest.mark.parametrize("bomb", ["strict", "keep"])
@pytest.mark.parametrize("targets", ["next", "own", "vdn"])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_the_loss_is_the_definitions(targets, bomb, burn_in):
    episodes = games((2, 2, 3, 3, 3, 4), first=3)
    weights = np.linspace(0.1, 1, len(episodes))
    one = apart(learner(targets=targets, bomb=bomb, burn_in=burn_in))
    loss, metrics, (largest, mean) = loss_of(one, sampled(episodes, weights))
    by_players, all_values, all_sizes = {}, [], []
    for game, (episode, weight) in enumerate(zip(episodes, weights, strict=True)):
        values, errors = by_definition(one, episode)
        sizes = [abs(error) for error in errors]
        assert largest[game] == pytest.approx(max(sizes or [0.0]), abs=1e-4)
        assert mean[game] == pytest.approx(np.mean(sizes or [0.0]), abs=1e-4)
        all_values += values
        all_sizes += sizes
        huber = [weight * (e * e / 2 if abs(e) <= 1 else abs(e) - 0.5) for e in errors]
        by_players.setdefault(episode.rules.players, []).extend(huber)
    means = {players: np.mean(part) if part else 0.0 for players, part in by_players.items()}
    for players, part in means.items():
        assert metrics[f"loss_{players}p"] == pytest.approx(part, abs=1e-4)
    assert loss.item() == pytest.approx(np.mean(list(means.values())), abs=1e-4)
    assert metrics["q"] == pytest.approx(np.mean(all_values), abs=1e-4)
    assert metrics["td_error"] == pytest.approx(np.mean(all_sizes), abs=1e-4)


@pytest.mark.parametrize(("centre", "style"), [(False, "full"), (True, "paper")])
@pytest.mark.parametrize("memory", ["fox", "lstm", "none"])
@pytest.mark.parametrize("unit", ["clause", "token"])
def test_a_batch_gives_the_values_of_each_game_alone(memory, unit, centre, style):
    net = make_net(memory=memory, unit=unit, centre=centre, style=style)
    episodes = games(style=style)
    with torch.no_grad():
        together = action_values(net, batch_of(episodes, style))
    alone = [game_values(net, episode) for episode in episodes]
    for part, its in zip(together, (alone[:2], alone[2:4], alone[4:]), strict=True):
        torch.testing.assert_close(part, torch.cat(its), atol=1e-5, rtol=1e-5)


def test_rows_of_a_batch_are_the_turns_of_all_games():
    episodes = games()
    batch = batch_of(episodes, "full")
    row = 0
    for episode in episodes:
        for view in episode.views():
            length = len(view)
            assert batch.texts.length[row] == length
            assert batch.texts.words[row, :length].tolist() == view.tolist()
            places = observation_places(episode.rules, length)
            assert (batch.texts.field[row, :length] == places.field).all()
            assert (batch.texts.offset[row, :length] == places.offset).all()
            assert (batch.texts.clause[row, :length] == places.clause).all()
            row += 1
    assert [group.rules.players for group in batch.groups] == [2, 3, 4]
    assert batch.groups[-1].rows.stop == row == len(batch.place)


def test_own_turns_are_those_of_one_seat_and_lead_back_to_their_rows():
    episodes = games()
    batch = batch_of(episodes, "full")
    assert batch.own.flatten()[batch.place].tolist() == list(range(len(batch.place)))
    first, seat = 0, 0
    for episode in episodes:
        P = episode.rules.players
        for k in range(P):
            own = list(range(first + k, first + episode.turns, P))
            assert batch.own[seat, : len(own)].tolist() == own
            assert (batch.own[seat, len(own) :] == 0).all()
            seat += 1
        first += episode.turns
    assert seat == len(batch.own)


def test_the_target_network_learns_nothing_but_copies():
    one = learner(target_every=3)
    first = one.weights()
    for _ in range(2):
        one.step()
        assert (target_weights(one) == first).all()
    one.step()
    assert (target_weights(one) == one.weights()).all()
    with torch.no_grad():
        batch = batch_of(games((2,)), "full")
        assert (action_values(one.target, batch)[0] == action_values(one.net, batch)[0]).all()


def test_a_batch_without_one_number_of_players_is_learnt():
    metrics = learner(games((3, 3))).step()
    assert metrics["loss"] == metrics["loss_3p"]
    assert "loss_2p" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("targets", ["next", "vdn"])
def test_games_shorter_than_the_burn_in_teach_nothing_and_break_nothing(targets):
    one = learner([made_up(2, 0, turns=3), made_up(3, 1, turns=2)], burn_in=2, targets=targets)
    before = one.weights()
    metrics = one.step()
    assert metrics["loss"] == metrics["td_error"] == metrics["q"] == metrics["grad_norm"] == 0
    assert (one.weights() == before).all()


@pytest.mark.parametrize("targets", ["next", "vdn"])
def test_a_fixed_batch_is_fitted(targets):
    one = learner(
        games((2, 2, 3, 3)),
        alpha=0.0,
        batch_games=4,
        targets=targets,
        learning_rate=5e-3,
        target_every=20,
        updates=60,
    )
    losses = [one.step()["loss"] for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:5])


@pytest.mark.parametrize("style", ["full", "paper"])
def test_a_step_learns_from_the_games_that_are_drawn_by_their_weights(style):
    one = learner(games(style=style), net=make_net(centre=True, style=style))
    for _ in range(3):
        one.step()
    sample = one.replay.sample(np.random.default_rng([0, one.version, DRAWS]), 6)
    assert sample.weights.min() < 0.95
    loss, _, _ = loss_of(one, sample)
    assert one.step()["loss"] == pytest.approx(loss.item())


def test_errors_set_the_priorities_of_the_games_drawn(tmp_path):
    one = learner()
    sample = one.replay.sample(np.random.default_rng([0, 0, DRAWS]), 6)
    _, _, (largest, mean) = loss_of(one, sample)
    one.step()
    priorities = one.replay.save(tmp_path)["priorities"].numpy()
    expected = (0.9 * largest + 0.1 * mean) ** 0.9
    np.testing.assert_allclose(priorities[sample.numbers], expected, rtol=1e-5)


def test_the_learning_rate_falls_in_a_line_and_stays():
    one = learner(updates=4, learning_rate=1e-2, final_rate=0.2)
    rates = []
    for _ in range(6):
        rates.append(one.learning_rate)
        one.step()
        assert one.state_dict()["optimizer"]["param_groups"][0]["lr"] == rates[-1]
    assert rates == pytest.approx([1e-2, 0.8e-2, 0.6e-2, 0.4e-2, 0.2e-2, 0.2e-2])


def test_a_first_step_of_adam_moves_no_weight_beyond_the_learning_rate():
    one = learner(learning_rate=1e-3)
    before = one.weights()
    metrics = one.step()
    moved = np.abs(one.weights() - before)
    assert 0.5e-3 < moved.max() <= 1.001e-3
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("longest", [1e-3, 1e3])
def test_gradients_are_scaled_down_to_the_longest_allowed_and_never_up(longest):
    one = learner(max_grad_norm=longest)
    norm = one.step()["grad_norm"]
    assert 1e-3 < norm < 1e3
    average = one.state_dict()["optimizer"]["state"][0]["exp_avg"]  # a tenth of the first gradient
    assert 10 * float(average.norm()) == pytest.approx(min(norm, longest), rel=1e-2)


def test_lags_are_counted_in_updates():
    episodes = [made_up(2, number, version=version) for number, version in enumerate((0, 1, 3))]
    one = learner(episodes, alpha=0.0, batch_games=3)
    one.version = 5
    metrics = one.step()
    assert metrics["lag_mean"] == pytest.approx((5 + 4 + 2) / 3)
    assert metrics["lag_max"] == 5
    assert metrics["lag_p95"] == pytest.approx(4.9)


def test_what_is_published_is_a_copy():
    one = learner()
    weights = one.weights()
    one.step()
    assert (weights != one.weights()).any()


def test_other_play_learns_from_the_same_games_under_other_names():
    plain, renamed = learner(), learner(other_play=True)
    generator = np.random.default_rng([0, 0, DRAWS])
    sample = renamed.replay.sample(generator, 6)
    batch = renamed_at_random(batch_of(sample.episodes, "full"), generator)
    expected, _, _ = renamed._loss(batch, torch.from_numpy(sample.weights))
    loss = renamed.step()["loss"]
    assert loss == pytest.approx(expected.item())
    assert loss != pytest.approx(plain.step()["loss"])


@pytest.mark.parametrize("other_play", [False, True])
def test_a_learner_goes_on_bit_for_bit(tmp_path, other_play):
    one = learner(target_every=2, other_play=other_play)
    for _ in range(3):
        one.step()
    file = io.BytesIO()
    torch.save({"learner": one.state_dict(), "replay": one.replay.save(tmp_path)}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    replay = Replay(one.replay.config)
    replay.load(tmp_path, state["replay"])
    again = Learner(make_net(seed=5), replay, one.config, 0, 100)
    again.load_state_dict(state["learner"])
    for number in range(5, 8):
        expected = one.step()
        assert again.step() == expected
        for each in (one, again):
            each.replay.add(made_up(2, number))
    assert (again.weights() == one.weights()).all()
    assert (target_weights(again) == target_weights(one)).all()


def test_a_state_is_not_changed_by_the_steps_after_it():
    one = learner()
    one.step()
    state = one.state_dict()
    kept = copy.deepcopy(state)
    one.step()
    assert (state["weights"] == kept["weights"]).all()
    moments = state["optimizer"]["state"][0]
    assert (moments["exp_avg"] == kept["optimizer"]["state"][0]["exp_avg"]).all()


def test_another_networks_state_raises():
    state = learner(net=make_net(hidden_size=8)).state_dict()
    with pytest.raises(ValueError, match="was it made with another configuration"):
        learner().load_state_dict(state)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"targets": "last"}, r"learner.targets must be one of .*'vdn'\), but got 'last'"),
        ({"bomb": "boom"}, r"learner.bomb must be one of \('strict', 'keep'\), but got 'boom'"),
        ({"batch_games": 0}, "learner.batch_games must be at least 1, but got 0"),
        ({"n_step": 0}, "learner.n_step must be at least 1, but got 0"),
        ({"target_every": 0}, "learner.target_every must be at least 1, but got 0"),
        ({"burn_in": -1}, "learner.burn_in must be at least 0, but got -1"),
        ({"learning_rate": 0.0}, "learner.learning_rate must be above 0, but got 0.0"),
        ({"max_grad_norm": -1.0}, "learner.max_grad_norm must be above 0, but got -1.0"),
        ({"gamma": 1.1}, r"learner.gamma must lie in \[0, 1\], but got 1.1"),
        ({"final_rate": -0.1}, r"learner.final_rate must lie in \[0, 1\], but got -0.1"),
    ],
)
def test_learner_options_out_of_range_raise(option, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**option)


@pytest.mark.gpu
@pytest.mark.parametrize("targets", ["next", "own", "vdn"])
def test_a_gpu_makes_the_same_updates(targets):
    one, other = learner(targets=targets), learner(targets=targets, device="cuda")
    for _ in range(3):
        assert other.step()["loss"] == pytest.approx(one.step()["loss"], rel=1e-3)
    np.testing.assert_allclose(other.weights(), one.weights(), atol=1e-3)
    one.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(other.weights(), one.weights())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_fallback():
    with pytest.raises(ValueError, match="'cuda', but PyTorch finds 0 GPUs here: set it to 'cpu'"):
        learner(device="cuda")


def test_a_device_that_is_none_is_told():
    with pytest.raises(ValueError, match=r"must be a device of PyTorch, .* but got 'gpu'"):
        learner(device="gpu")
