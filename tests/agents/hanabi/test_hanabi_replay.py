"""The replay: what is drawn how often, and that a folder gives the same ring back."""

import os

import numpy as np
import pytest
from episodes import made_up, same

from fox.agents.hanabi.episode import packed, unpacked
from fox.agents.hanabi.replay import LEAST, Replay, ReplayConfig
from fox.agents.hanabi.sumtree import SumTree


def replay_of(counts, **config):
    """A replay with one game for each number of players in counts."""
    replay = Replay(ReplayConfig(**{"capacity": 8} | config))
    for number, players in enumerate(counts):
        replay.add(made_up(players, number))
    return replay


def drawn(replay, batch_size=4, seed=0):
    return replay.sample(np.random.default_rng(seed), batch_size)


def frequencies(replay, batch_size, times=400):
    """How often each game is drawn, of all draws."""
    samples = [drawn(replay, batch_size, seed).numbers for seed in range(times)]
    return np.bincount(np.concatenate(samples), minlength=replay.added) / (times * batch_size)


def prioritise(replay, errors):
    """Sets the priority of each game in the ring by its largest and mean error."""
    sample, seen = None, set()
    for seed in range(200):
        sample = drawn(replay, 8, seed)
        largest, mean = np.array([errors[number] for number in sample.numbers]).T
        replay.update(sample, largest, mean)
        seen |= set(sample.numbers)
    assert seen == set(range(replay.added - len(replay), replay.added))


def loaded(folder, state, **config):
    """An empty replay that has become the saved one."""
    replay = replay_of([], **config)
    replay.load(folder, state)
    return replay


def equal_rings(one, other):
    assert one.added == other.added
    assert len(one) == len(other)
    for seed in range(20):
        a, b = drawn(one, 6, seed), drawn(other, 6, seed)
        assert a.numbers.tolist() == b.numbers.tolist()
        assert a.weights.tolist() == b.weights.tolist()
        assert all(map(same, a.episodes, b.episodes))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_a_tree_draws_in_proportion_to_priorities(size):
    rng = np.random.default_rng(0)
    tree, priorities = SumTree(size), rng.random(size)
    tree.set(np.arange(size), 1.0)
    tree.set(np.arange(size), priorities)
    assert tree.total == pytest.approx(priorities.sum())
    counts = np.bincount(tree.draw(rng, 20_000), minlength=size) / 20_000
    np.testing.assert_allclose(counts, priorities / priorities.sum(), atol=1e-3)


def test_a_tree_never_draws_a_priority_of_zero():
    tree = SumTree(5)
    tree.set(np.array([1, 3]), np.array([0.1, 0.7]))
    assert set(tree.draw(np.random.default_rng(0), 5000)) == {1, 3}
    assert tree[np.arange(5)].tolist() == [0, 0.1, 0, 0.7, 0]


def test_a_place_that_is_set_twice_keeps_its_last_priority():
    tree = SumTree(4)
    tree.set(np.array([2, 1, 2]), np.array([1.0, 0.5, 3.0]))
    assert tree[np.arange(4)].tolist() == [0, 0.5, 3, 0]
    assert tree.total == 3.5


def test_a_rest_that_rounding_has_made_too_large_stays_among_the_drawn():
    class Last:
        def random(self, count):
            return np.full(count, 1.0)  # a generator's numbers are below 1, but their product?

    tree = SumTree(4)
    tree.set(np.array([0, 1]), 0.1)
    assert tree.draw(Last(), 3).tolist()[-1] == 1


def test_leaves_alone_decide_a_tree():
    rng = np.random.default_rng(0)
    worn, fresh = SumTree(16), SumTree(16)
    for _ in range(100):
        worn.set(rng.permutation(16)[:5], rng.random(5))
    fresh.set(np.arange(16), worn[np.arange(16)])
    assert worn.total == fresh.total
    draws = [tree.draw(np.random.default_rng(1), 1000) for tree in (worn, fresh)]
    assert (draws[0] == draws[1]).all()


def test_the_oldest_games_give_way():
    replay = replay_of([2] * 5, capacity=3)
    assert len(replay) == 3
    assert set(drawn(replay, 64).numbers) == {2, 3, 4}
    assert all(
        episode.number == number for episode, number in zip(*drawn(replay, 64)[:2], strict=True)
    )


def test_each_number_of_players_is_drawn_equally_often():
    replay = replay_of([2, 2, 2, 2, 2, 3, 4, 4])
    episodes = drawn(replay, 12).episodes
    assert [episode.rules.players for episode in episodes] == [2] * 4 + [3] * 4 + [4] * 4


def test_within_a_number_of_players_draws_are_uniform():
    frequency = frequencies(replay_of([2, 2, 2, 2, 2, 3, 3, 3]), 8)
    np.testing.assert_allclose(frequency, [0.1] * 5 + [1 / 6] * 3, atol=0.01)


def test_a_number_of_players_that_is_missing_is_left_out():
    replay = replay_of([3, 3])
    assert {episode.rules.players for episode in drawn(replay, 6).episodes} == {3}
    replay.add(made_up(2, 2))
    assert [one.rules.players for one in drawn(replay, 7).episodes] == [2] * 4 + [3] * 3


def test_a_number_of_players_whose_games_have_all_left_is_left_out():
    replay = replay_of([3, 2, 2], capacity=2)
    assert [rules.players for rules in replay.rules] == [2]
    assert {episode.rules.players for episode in drawn(replay, 6).episodes} == {2}


def test_uniform_draws_have_no_weights_and_no_priorities():
    replay = replay_of([2, 2, 3])
    prioritise(replay, {0: (9, 9), 1: (0, 0), 2: (1, 1)})
    assert drawn(replay).weights.tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(frequencies(replay, 4), [0.25, 0.25, 0.5], atol=0.02)


def test_draws_follow_the_priorities_exactly():
    replay = replay_of([2, 2, 2, 3, 3], alpha=0.7, beta=0.5, eta=0.75)
    errors = {0: (1.0, 0.2), 1: (3.0, 1.0), 2: (0.0, 0.0), 3: (0.5, 0.1), 4: (2.0, 2.0)}
    prioritise(replay, errors)
    p = np.array([max(0.75 * largest + 0.25 * mean, LEAST) for largest, mean in errors.values()])
    p = p**0.7
    expected = np.concatenate([p[:3] / p[:3].sum(), p[3:] / p[3:].sum()]) / 2
    np.testing.assert_allclose(frequencies(replay, 8, 3000), expected, atol=3e-3)
    sample = drawn(replay, 8)
    for its in (sample.numbers < 3, sample.numbers >= 3):
        weights = expected[sample.numbers[its]] ** -0.5
        np.testing.assert_allclose(sample.weights[its], weights / weights.max(), rtol=1e-6)


def test_games_without_any_error_are_still_drawn():
    replay = replay_of([2, 2, 2], alpha=1.0)
    prioritise(replay, {0: (0.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 0.0)})
    assert set(drawn(replay, 8).numbers) == {0, 1, 2}


def test_a_new_game_has_the_highest_priority_so_far():
    replay = replay_of([2, 2], alpha=1.0)
    prioritise(replay, {0: (5.0, 5.0), 1: (1.0, 1.0)})
    prioritise(replay, {0: (2.0, 2.0), 1: (1.0, 1.0)})
    replay.add(made_up(2, 2))
    np.testing.assert_allclose(frequencies(replay, 8), np.array([2, 1, 5]) / 8, atol=5e-3)


def test_an_empty_replay_and_too_small_a_sample_raise():
    with pytest.raises(ValueError, match=r"games of 1 to 4 rules .* games of 0: play some first"):
        drawn(Replay(ReplayConfig()))
    with pytest.raises(ValueError, match="games of 2: play some first, or draw more"):
        drawn(replay_of([2, 3]), 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"capacity": 0}, "replay.capacity must be at least 1, but got 0"),
        ({"alpha": -0.1}, r"replay.alpha must lie in \[0, 1\], but got -0.1"),
        ({"beta": 1.5}, r"replay.beta must lie in \[0, 1\], but got 1.5"),
        ({"eta": 2}, r"replay.eta must lie in \[0, 1\], but got 2"),
    ],
)
def test_options_out_of_range_raise(option, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(**option)


def test_packed_games_are_unpacked_as_they_were():
    games = [made_up(players, number, game="full") for number, players in enumerate((3, 2, 5, 2))]
    assert all(map(same, games, unpacked(packed(games))))


@pytest.mark.parametrize("saves", [(3,), (2, 3), (5, 9), (3, 6, 9), (1, 2, 20), (20, 20, 23)])
def test_a_folder_gives_the_same_ring_back(tmp_path, saves):
    replay = Replay(ReplayConfig(capacity=7, alpha=0.9))
    for added in saves:
        while replay.added < added:
            replay.add(made_up(2 + replay.added % 2, replay.added))
        sample = drawn(replay)
        replay.update(sample, np.arange(1.0, 5.0), np.arange(4.0))
        state = replay.save(tmp_path)
    again = loaded(tmp_path, state, capacity=7, alpha=0.9)
    equal_rings(again, replay)
    for one in (again, replay):
        one.add(made_up(3, 99))
    equal_rings(again, replay)


def test_a_run_killed_after_saving_games_but_before_its_state_goes_on(tmp_path):
    replay = replay_of([2, 3] * 4, capacity=6)
    state = replay.save(tmp_path)
    for number in range(8, 20):  # the whole ring is new
        replay.add(made_up(2, number))
    replay.save(tmp_path)
    again = loaded(tmp_path, state, capacity=6)
    equal_rings(again, replay_of([2, 3] * 4, capacity=6))
    for end in (13, 22):
        while again.added < end:  # other games than those of the killed run
            again.add(made_up(3, again.added + 100))
        newer = again.save(tmp_path)
        equal_rings(loaded(tmp_path, newer, capacity=6), again)


def test_a_run_may_be_killed_again_before_its_state_is_safe(tmp_path):
    replay = replay_of([2, 3] * 4, capacity=6)
    state = replay.save(tmp_path)
    for players in (2, 3):
        killed = loaded(tmp_path, state, capacity=6)
        equal_rings(killed, replay)
        for number in range(8, 13):
            killed.add(made_up(players, number))
        killed.save(tmp_path)
    equal_rings(loaded(tmp_path, state, capacity=6), replay)


def test_half_a_file_of_a_killed_run_is_not_read(tmp_path):
    replay = replay_of([2, 3, 2])
    state = replay.save(tmp_path)
    (tmp_path / f".{os.getpid()}-games-000000003-000000005.npz").write_bytes(b"PK")
    equal_rings(loaded(tmp_path, state), replay)


def test_files_that_have_left_the_ring_are_removed(tmp_path):
    replay = Replay(ReplayConfig(capacity=4))
    for number in range(20):
        replay.add(made_up(2, number))
        state = replay.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    # Of the last save and of the one before: its state may be the one that is safe.
    assert names == [f"games-{k:09d}-{k + 1:09d}.npz" for k in range(15, 20)]
    assert state["added"] == 20


def test_saving_twice_writes_nothing_new(tmp_path):
    replay = replay_of([2, 3])
    replay.save(tmp_path)
    replay.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_capacity_raises(tmp_path):
    state = replay_of([2] * 6, capacity=4).save(tmp_path)
    with pytest.raises(ValueError, match="held 4 of 6 games, but one with capacity=5 holds 5"):
        loaded(tmp_path, state, capacity=5)


def test_a_folder_that_lacks_games_raises(tmp_path):
    replay = replay_of([2, 2])
    replay.save(tmp_path)
    replay.add(made_up(2, 2))
    state = replay.save(tmp_path)
    next(tmp_path.glob("games-*2-*3.npz")).unlink()
    with pytest.raises(ValueError, match=r"expected the games up to 2 .* but 2 is missing"):
        loaded(tmp_path, state)
