"""Interaction on worlds whose observation is their tick, so that every misalignment shows."""

import numpy as np
import pytest

from fox.agents.realtime.behaviour import Exploration, beta
from fox.agents.realtime.clock import VirtualClock, WallClock
from fox.agents.realtime.delay import DelayController
from fox.agents.realtime.loop import Interaction
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Source, token_dtype
from fox.agents.realtime.transport import InlineTransport, VirtualTransport

M = 0.0625  # seconds of a step; exact in binary


class TickWorld:
    """Observes [episode, tick of the episode]; the reward of a tick names it and its action."""

    fps, n_actions, noop, action_names = 1 / M, 1000, 0, ("noop",)

    def __init__(self, length=None, terminates=True):
        self.length, self.terminates, self.episode = length, terminates, -1

    def reset(self, seed):
        self.episode, self.t = self.episode + 1, 0
        self.seeds = [*getattr(self, "seeds", []), seed]
        return np.array([self.episode, 0], np.float32)

    def step(self, action):
        reward = self.t + action / 1000
        self.t += 1
        over = self.t == self.length
        observation = np.array([self.episode, self.t], np.float32)
        return observation, reward, over and self.terminates, over and not self.terminates, {}


class Reader:
    """A worker whose features are the newest token it may know: what it saw, and after what."""

    def __init__(self, worker):
        self.worker = worker

    def infer(self, job, rows):
        row = rows.read(job.obs_tick, job.obs_tick)[0]
        values = [*row["obs"], row["action"], row["reward"], row["source"], row["start"]]
        return np.array([*values, row["tick"], row["episode"]], np.float32), job.obs_tick // 10


class Spy:
    """A head that remembers what it was given; its action is 1 + the ticks since the features."""

    def __init__(self):
        self.calls = []

    def act(self, features, committed, observation):
        self.calls.append((features.copy(), committed.copy(), observation.copy()))
        return 1 + len(committed)


class Rows:
    """A replay that keeps all rows in lists."""

    def __init__(self):
        self.rows = []

    def append(self, token, *row):
        self.rows.append((token.copy(), *row))


def play(ticks, *, d=3, workers=8, world=None, seconds=lambda job: 2.5 * M, kind="noop", **parts):
    """The interaction after so many ticks in virtual time, and its steps."""
    world = world or TickWorld()
    ring = ObservationRing(token_dtype(np.zeros(2, np.float32)), 8, 1, shared=False)
    transport = VirtualTransport(Reader, ring, seconds)
    transport.start(range(workers))
    interaction = Interaction(
        world,
        Spy(),
        TickDispatcher(range(workers), d),
        VirtualClock(M),
        transport,
        ring,
        behaviour=beta(kind, n_actions=world.n_actions, noop=world.noop, seed=0),
        **parts,
    )
    return interaction, [interaction.tick() for _ in range(ticks)]


def test_each_action_comes_from_the_observation_d_ticks_before_it():
    interaction, steps = play(50)
    assert [step.source for step in steps] == [Source.BETA_RESET] * 3 + [Source.POLICY] * 47
    for step, (features, committed, observation) in zip(
        steps[3:], interaction.head.calls, strict=True
    ):
        assert step.obs_tick == step.tick - 3 == features[1]
        assert step.delay == len(committed) == 3
        assert step.action == 4
        assert observation[1] == step.tick


def test_the_head_gets_the_actions_that_were_executed_since_the_observation_beta_included():
    late = {4, 9}  # their inference comes after its tick
    seconds = lambda job: (3.5 if job.obs_tick in late else 2.5) * M  # noqa: E731
    interaction, steps = play(20, seconds=seconds, kind="repeat")
    assert [step.tick for step in steps if step.source is Source.BETA_LATE] == [7, 12]
    actions = [step.action for step in steps]
    assert actions[7] == actions[6]
    policy = [step for step in steps if step.source is Source.POLICY]
    for step, (_, committed, _) in zip(policy, interaction.head.calls, strict=True):
        assert committed.tolist() == actions[step.tick - 3 : step.tick]


def test_a_token_tells_the_action_and_the_reward_of_the_tick_before_it():
    interaction, steps = play(30)
    for features, _, _ in interaction.head.calls:
        tick = int(features[6])
        if tick == 0:
            assert features[2:6].tolist() == [0, 0, Source.BETA_RESET, 1]
            continue
        before = steps[tick - 1]
        assert features[2] == before.action
        assert features[3] == pytest.approx(before.reward) == tick - 1 + before.action / 1000
        assert features[4:6].tolist() == [before.source, 0]


def test_replay_rows_join_what_was_seen_done_and_earned_at_one_tick():
    replay = Rows()
    _, steps = play(30, replay=replay, world=TickWorld(length=7))
    assert len(replay.rows) == 30
    for step, (token, action, source, reward, terminated, truncated, d, obs_tick, version) in zip(
        steps, replay.rows, strict=True
    ):
        in_episode = step.tick % 7
        assert (int(token["tick"]), int(token["episode"])) == (step.tick, step.tick // 7)
        assert token["obs"].tolist() == [step.tick // 7, in_episode]
        assert token["start"] == (in_episode == 0)
        assert reward == in_episode + action / 1000
        assert (terminated, truncated) == (in_episode == 6, False)
        assert (source, d, obs_tick) == (step.source, step.delay, step.obs_tick)
        assert version == (obs_tick // 10 if obs_tick >= 0 else -1)


def test_what_was_inferred_in_an_episode_is_not_executed_in_the_next():
    world = TickWorld(length=7, terminates=False)
    interaction, steps = play(70, world=world, seed=5)
    assert world.seeds == list(range(5, 16))
    for step in steps:
        reset = step.tick % 7 < 3
        assert step.source is (Source.BETA_RESET if reset else Source.POLICY)
        assert step.truncated == (step.tick % 7 == 6)
    assert all(features[0] == observed[0] for features, _, observed in interaction.head.calls)
    counters = interaction.dispatcher.counters
    assert counters.stale == 3 * 10 - counters.in_flight
    assert counters.coverage == 1


def test_the_default_behaviour_begins_an_episode_with_noop_not_with_the_last_action_before():
    _, steps = play(20, kind="repeat", world=TickWorld(length=7))
    assert [step.action for step in steps[6:11]] == [4, 0, 0, 0, 4]


def test_a_random_action_takes_the_policys_place_at_its_due_tick_with_the_same_delay():
    explore = Exploration(n_actions=1000, seed=3, first=0.5, last=0.5)
    interaction, steps = play(200, exploration=explore)
    drawn = [explore(step.tick) for step in steps]
    assert [step.action for step in steps[:3]] == [0, 0, 0]  # no policy acts: nothing is explored
    for step in steps[3:]:
        assert step.action == (4 if drawn[step.tick] is None else drawn[step.tick])
        assert (step.source, step.delay) == (Source.POLICY, 3)
    assert len(interaction.head.calls) == sum(action is None for action in drawn[3:])


def test_sequential_play_decides_again_when_its_action_has_landed():
    _, steps = play(30, workers=1, d=3, seconds=lambda job: 3 * M)
    assert [step.tick for step in steps if step.source is Source.POLICY] == list(range(3, 30, 3))
    assert [step.obs_tick for step in steps if step.obs_tick >= 0] == list(range(0, 27, 3))


def test_a_late_result_acts_at_the_next_tick_if_late_ones_are_wanted():
    seconds = lambda job: 4.5 * M  # noqa: E731 (always 2 ticks late at d = 3)
    assert all(step.source is not Source.POLICY for step in play(30, seconds=seconds)[1])
    ring = ObservationRing(token_dtype(np.zeros(2, np.float32)), 8, 1, shared=False)
    transport = VirtualTransport(Reader, ring, seconds)
    transport.start(range(8))
    interaction = Interaction(
        TickWorld(),
        Spy(),
        TickDispatcher(range(8), 3, late="newest"),
        VirtualClock(M),
        transport,
        ring,
        behaviour=lambda token: 0,
    )
    steps = [interaction.tick() for _ in range(30)]
    for step, (features, committed, _) in zip(steps[5:], interaction.head.calls, strict=True):
        assert step.delay == len(committed) == 5
        assert features[1] == step.tick - 5


def test_the_delay_follows_the_durations():
    delay = DelayController(3, M, d_max=8)
    slow = lambda job: (2.5 if job.obs_tick < 100 else 4.5) * M  # noqa: E731
    interaction, steps = play(600, seconds=slow, delay=delay)
    assert interaction.dispatcher.d == 5
    assert {step.delay for step in steps if step.source is Source.POLICY} == {3, 5}
    assert steps[-1].source is Source.POLICY
    assert interaction.dispatcher.counters.sources[Source.BETA_HOLE] == 2


def test_the_delay_grows_even_where_the_watchdog_ends_every_inference():
    delay = DelayController(1, M, d_max=8)
    slow = lambda job: (0.5 if job.obs_tick < 50 else 5.5) * M  # noqa: E731
    interaction, steps = play(2000, d=1, seconds=slow, delay=delay)
    assert interaction.dispatcher.counters.killed > 0
    assert interaction.dispatcher.d > 1
    assert {step.source for step in steps[-100:]} == {Source.POLICY}


class Pins:
    """Weights of which only the pins matter."""

    def __init__(self):
        self.released = []

    def release(self, worker):
        self.released.append(worker)


def test_a_worker_that_hangs_is_replaced_and_costs_one_tick():
    pins = Pins()
    seconds = lambda job: (1000 if job.obs_tick == 4 else 2.5) * M  # noqa: E731
    interaction, steps = play(60, seconds=seconds, weights=pins)
    assert [step.tick for step in steps if step.source is not Source.POLICY] == [0, 1, 2, 7]
    assert steps[7].source is Source.BETA_LATE
    assert interaction.dispatcher.counters.killed == interaction.dispatcher.counters.lost == 1
    assert pins.released == [4]  # whose turn it was at tick 4
    assert interaction.transport.counters["Joined"] == 1


class Hasty(VirtualClock):
    """A clock that says of two ticks that the world did not wait for them."""

    def wait(self, k):
        return super().wait(k) or k in (10, 11)


def test_a_tick_that_was_missed_runs_the_default_behaviour_and_is_seen_by_no_worker():
    interaction, _ = play(0)
    interaction.clock = Hasty(M)
    steps = [interaction.tick() for _ in range(30)]
    assert [step.tick for step in steps[3:] if step.source is not Source.POLICY] == [10, 11, 13, 14]
    assert [steps[k].source for k in (13, 14)] == [Source.BETA_UNDISPATCHED] * 2
    for step, (_, committed, _) in zip(
        [step for step in steps if step.source is Source.POLICY],
        interaction.head.calls,
        strict=True,
    ):
        assert committed.tolist() == [step.action for step in steps[step.tick - 3 : step.tick]]


def test_runs_of_equal_seeds_are_equal_and_others_are_not():
    def trace(seed):
        explore = Exploration(n_actions=1000, seed=seed, first=0.5, last=0.5)
        jitter = lambda job: (2 + (job.id * 7919 % 13) / 8) * M  # noqa: E731
        interaction, steps = play(
            300, kind="random", exploration=explore, seconds=jitter, world=TickWorld(length=50)
        )
        return steps, interaction.dispatcher.trace

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_a_wall_clock_plays_the_same_ticks_at_its_own_time():
    ring = ObservationRing(token_dtype(np.zeros(2, np.float32)), 8, 1, shared=False)
    clock = WallClock(0.005)
    transport = InlineTransport(Reader, ring, clock)
    transport.start(range(2))
    interaction = Interaction(
        TickWorld(), Spy(), TickDispatcher(range(2), 1), clock, transport, ring,
        behaviour=lambda token: 0,
    )  # fmt: skip
    before = clock.now()
    steps = [interaction.tick() for _ in range(40)]
    assert clock.now() - before >= 39 * 0.005 - 0.001
    assert [step.action for step in steps] == [0] + [2] * 39
