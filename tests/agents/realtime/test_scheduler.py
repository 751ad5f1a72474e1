"""The tick dispatcher: every invariant, over random histories of durations, losses and resets."""

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.agents.realtime.reference import variation
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Job, Outcome, Source, TickPlan


@dataclass
class Happening:
    """What happens before a tick, and how long the inference of its observation takes."""

    ticks: int = 1
    lose: int | None = None  # one of the live workers
    join: bool = False
    reset: bool = False
    d: int | None = None
    missed: bool = False


@dataclass
class World:
    """Drives a dispatcher through a history; reports arrive in a shuffled order."""

    dispatcher: TickDispatcher
    workers: set[int]
    shuffle: random.Random | None = None
    held: dict[int, Job] = field(default_factory=dict)
    finishing: dict[int, list[Job]] = field(default_factory=dict)
    plans: list[TickPlan] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    outcomes: Counter = field(default_factory=Counter)
    lost: list[Job] = field(default_factory=list)

    def tick(self, happening: Happening) -> TickPlan:
        k, dispatcher = len(self.plans), self.dispatcher
        done = self.finishing.pop(k, [])
        if self.shuffle:
            self.shuffle.shuffle(done)
        for job in done:
            if self.held.get(job.worker) is job:
                del self.held[job.worker]
                self.outcomes[dispatcher.on_done(job.worker, job.id, 0.5, version=7)] += 1
        if happening.lose is not None and self.workers:
            self.lose(sorted(self.workers)[happening.lose % len(self.workers)])
        if happening.join:
            newcomer = max(self.workers, default=-1) + 1
            self.workers.add(newcomer)
            dispatcher.on_joined(newcomer)
        if happening.reset and k:
            dispatcher.on_reset(k, dispatcher.episode + 1)
        if happening.d is not None:
            dispatcher.set_delay(happening.d)
        plan = dispatcher.on_tick(k, missed=happening.missed)
        for job in plan.killed:
            self.held.pop(job.worker)
            self.workers.remove(job.worker)
            self.lost.append(job)
        if plan.dispatch is not None:
            assert plan.dispatch.worker in self.workers, "a job for a lost worker"
            assert plan.dispatch.worker not in self.held, "a second job for one worker"
            self.held[plan.dispatch.worker] = plan.dispatch
            self.finishing.setdefault(k + happening.ticks, []).append(plan.dispatch)
        self.plans.append(plan)
        self.delays.append(dispatcher.d)
        self.episodes.append(dispatcher.episode)
        return plan

    def lose(self, worker: int) -> None:
        self.workers.remove(worker)
        job = self.dispatcher.on_lost(worker)
        assert job is self.held.pop(worker, None)
        if job is not None:
            self.lost.append(job)

    def sources(self) -> list[Source]:
        return [plan.source for plan in self.plans]


def played(history, *, workers=4, d=3, seed=None, **options) -> World:
    dispatcher = TickDispatcher(range(workers), d, **options)
    shuffle = None if seed is None else random.Random(seed)
    world = World(dispatcher, set(range(workers)), shuffle)
    for happening in history:
        world.tick(happening)
    return world


def steady(ticks, duration):
    return [Happening(duration) for _ in range(ticks)]


rarely = st.integers(0, 19).map(lambda n: n == 0)
happenings = st.builds(
    Happening,
    ticks=st.integers(1, 12),
    lose=st.one_of(*[st.none()] * 9, st.integers(0, 9)),
    join=rarely,
    reset=rarely,
    d=st.one_of(*[st.none()] * 9, st.integers(1, 8)),
    missed=rarely,
)
histories = st.lists(happenings, min_size=30, max_size=80)
worlds = st.fixed_dictionaries({"workers": st.integers(0, 8), "d": st.integers(1, 8)})
some = settings(max_examples=40, deadline=None)


@some
@given(histories, worlds, st.sampled_from(["drop", "newest"]), st.integers(1, 3))
def test_both_sums_hold_at_every_tick_whatever_happens(history, world, late, watchdog):
    world = played([], **world, late=late, watchdog=watchdog)
    for happening in history:
        world.tick(happening)
        c = world.dispatcher.counters
        assert c.ticks == sum(c.sources.values()) == c.dispatched + c.undispatched
        fates = (c.applied, c.waiting, c.late, c.lost, c.stale, c.superseded, c.in_flight)
        assert c.dispatched == sum(fates)
        assert min(fates) >= 0
        assert c.in_flight == len(world.held)
        assert c.lost == len(world.lost)
    assert c.sources == {source: world.sources().count(source) for source in Source}
    assert c.applied == c.sources[Source.POLICY]
    assert c.unknown == 0


@some
@given(histories, worlds, st.sampled_from(["drop", "newest"]))
def test_a_worker_never_holds_two_jobs(history, world, late):
    played(history, **world, late=late)  # World.tick asserts it


@some
@given(histories, worlds, st.sampled_from(["drop", "newest"]))
def test_no_result_is_executed_twice_and_no_tick_is_played_twice(history, world, late):
    plans = played(history, **world, late=late).plans
    applied = [plan.job.id for plan in plans if plan.job is not None]
    assert len(applied) == len(set(applied))
    assert [plan.tick for plan in plans] == list(range(len(history)))


@some
@given(histories, worlds)
def test_every_policy_action_has_the_delay_of_its_dispatch_and_the_episode_of_its_tick(
    history, world
):
    world = played(history, **world)
    for plan in world.plans:
        assert (plan.source is Source.POLICY) == (plan.job is not None)
        if plan.job is not None:
            job = plan.job
            assert plan.tick == job.due == job.obs_tick + world.delays[job.obs_tick]
            assert job.episode == world.episodes[plan.tick]


@some
@given(histories, worlds)
def test_an_observation_is_dispatched_at_its_own_tick_or_never(history, world):
    world = played(history, **world)
    jobs = [plan.dispatch for plan in world.plans if plan.dispatch is not None]
    assert all(plan.dispatch.obs_tick == plan.tick for plan in world.plans if plan.dispatch)
    assert [job.id for job in jobs] == list(range(len(jobs))), "a job was given out again"


@some
@given(histories, worlds)
def test_an_observation_is_dispatched_whenever_a_worker_is_idle(history, world):
    world = played([], **world)
    for happening in history:
        finished = sum(
            world.held.get(job.worker) is job for job in world.finishing.get(len(world.plans), [])
        )
        idle = len(world.workers) - len(world.held) + finished
        change = happening.lose is not None or happening.join
        plan = world.tick(happening)
        if not change and not happening.missed:
            assert (plan.dispatch is not None) == (idle > 0)


@some
@given(st.integers(1, 12), st.integers(0, 5), st.data())
def test_losing_a_worker_costs_exactly_the_due_tick_of_its_job(duration, spare_delay, data):
    losses = data.draw(st.lists(st.integers(30, 60), unique=True, max_size=4))
    history = steady(100, duration)
    for k in losses:
        history[k].lose = data.draw(st.integers(0, 20))
    world = played(history, workers=duration + len(losses), d=duration + spare_delay)
    costs = {plan.tick: plan.source for plan in world.plans if plan.source is not Source.POLICY}
    resets = dict.fromkeys(range(duration + spare_delay), Source.BETA_RESET)
    assert costs == resets | {job.due: Source.BETA_LOST for job in world.lost}


@some
@given(st.integers(2, 12), st.data())
def test_with_too_few_workers_coverage_falls_in_proportion_and_no_tick_stalls(duration, data):
    workers = data.draw(st.integers(1, duration - 1))
    world = played(steady(20 * duration, duration), workers=workers, d=duration)
    assert len(world.plans) == 20 * duration
    assert world.dispatcher.counters.coverage == pytest.approx(workers / duration)


def test_without_any_worker_every_tick_is_played_by_the_default_behaviour():
    world = played(steady(10, 1), workers=0, d=2)
    assert world.sources() == [Source.BETA_RESET] * 2 + [Source.BETA_UNDISPATCHED] * 8


@some
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_constant_durations_cover_every_tick_after_the_first_d(duration, spare, spare_workers):
    d = duration + spare
    world = played(steady(5 * d, duration), workers=duration + spare_workers, d=d)
    assert world.sources() == [Source.BETA_RESET] * d + [Source.POLICY] * 4 * d
    assert world.dispatcher.counters.coverage == 1
    assert variation(np.diff([plan.tick for plan in world.plans if plan.job])) == 0


@pytest.mark.parametrize("every", [20, 100])
def test_isolated_misses_of_share_m_give_a_variation_of_the_root_of_m(every):
    history = steady(6000, 3)
    for k in range(0, 6000, every):
        history[k].ticks = 5  # too late for d = 4, and the spare worker takes over
    world = played(history, workers=4, d=4)
    acted = [plan.tick for plan in world.plans if plan.job]
    m, cv = 1 / every, variation(np.diff(acted))
    assert world.dispatcher.counters.coverage == pytest.approx(1 - m, abs=1e-3)
    assert cv == pytest.approx((m * (1 - 2 * m)) ** 0.5, rel=0.01)
    assert cv == pytest.approx(m**0.5, rel=0.06)


@some
@given(histories, worlds, st.integers(0, 99))
def test_the_order_of_reports_within_a_tick_changes_worker_ids_only(history, world, seed):
    for happening in history:
        happening.lose = None  # losses name workers
    one, other = played(history, **world), played(history, **world, seed=seed)
    rows = [[row._replace(worker=0) for row in w.dispatcher.trace] for w in (one, other)]
    assert rows[0] == rows[1]
    assert one.dispatcher.counters == other.dispatcher.counters


@some
@given(histories, worlds)
def test_equal_histories_give_equal_traces(history, world):
    one, other = (played(history, **world, seed=3) for _ in range(2))
    assert one.dispatcher.trace == other.dispatcher.trace
    assert one.plans == other.plans


def test_the_trace_has_one_row_per_tick_that_says_whose_action_it_was():
    world = played(steady(5, 2), workers=2, d=3)
    rows = world.dispatcher.trace
    assert [row.tick for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2] == (2, Source.BETA_RESET, -1, -1, 0.0, -1, 3, 0)
    assert rows[4] == (4, Source.POLICY, 1, 1, 0.5, 7, 3, 0)


def test_a_result_at_its_due_tick_is_on_time_and_one_tick_later_is_dropped():
    history = steady(12, 3)
    history[1].ticks = 4
    world = played(history, workers=4, d=3)
    assert world.sources()[3:] == [Source.POLICY, Source.BETA_LATE] + [Source.POLICY] * 7
    assert world.outcomes[Outcome.LATE] == 1


def test_an_undispatched_observation_costs_its_due_tick():
    world = played(steady(6, 2), workers=1, d=2)
    assert world.sources()[2:] == [Source.POLICY, Source.BETA_UNDISPATCHED] * 2


@pytest.mark.parametrize("growth", [1, 3])
def test_a_longer_delay_leaves_one_hole_per_tick(growth):
    history = steady(40, 3)
    history[20].d = 3 + growth
    world = played(history, workers=3, d=3)
    holes = [plan.tick for plan in world.plans if plan.source is Source.BETA_HOLE]
    assert holes == list(range(23, 23 + growth))
    assert world.dispatcher.counters.sources[Source.POLICY] == 40 - 3 - growth


@pytest.mark.parametrize("shrinkage", [1, 3])
@pytest.mark.parametrize("duration", [1, 3])
def test_a_shorter_delay_makes_newer_observations_win(shrinkage, duration):
    history = steady(40, duration)
    history[20].d = 6 - shrinkage
    world = played(history, workers=3, d=6)
    assert world.dispatcher.counters.superseded == shrinkage
    assert world.dispatcher.counters.coverage == 1
    won = {plan.tick: plan.job.obs_tick for plan in world.plans if plan.job}
    assert all(won[k] == k - (6 if k < 26 - shrinkage else 6 - shrinkage) for k in won)


def test_the_outcome_of_a_job_that_a_newer_one_has_replaced_is_superseded():
    dispatcher = TickDispatcher(range(2), 3)
    older = dispatcher.on_tick(0).dispatch
    dispatcher.set_delay(2)
    newer = dispatcher.on_tick(1).dispatch
    assert older.due == newer.due == 3
    assert dispatcher.on_done(older.worker, older.id, 0.1) is Outcome.SUPERSEDED
    assert dispatcher.on_done(newer.worker, newer.id, 0.1) is Outcome.ON_TIME


def test_a_replaced_job_keeps_its_tick_if_the_newer_observation_finds_no_worker():
    dispatcher = TickDispatcher([0], 3)
    older = dispatcher.on_tick(0).dispatch
    dispatcher.set_delay(2)
    assert dispatcher.on_tick(1).dispatch is None
    assert dispatcher.on_done(0, older.id, 0.1) is Outcome.ON_TIME
    dispatcher.on_tick(2)
    assert dispatcher.on_tick(3).job is older


def test_a_reset_makes_all_earlier_jobs_stale_and_costs_d_ticks():
    history = steady(20, 3)
    history[10].reset = True
    world = played(history, workers=3, d=4)
    assert world.sources()[10:] == [Source.BETA_RESET] * 4 + [Source.POLICY] * 6
    assert world.outcomes[Outcome.STALE_EPISODE] == 2  # were in flight
    assert world.dispatcher.counters.stale == 2 + 2  # and two waited for their due ticks
    assert world.dispatcher.trace[10].episode == 1
    assert world.dispatcher.counters.coverage == 1, "ticks that nothing can reach count apart"


def test_the_watchdog_gives_up_jobs_older_than_its_number_of_delays():
    history = steady(30, 2)
    history[5].ticks = 1000
    world = played(history, workers=3, d=2, watchdog=4)
    killed = {plan.tick: plan.killed for plan in world.plans if plan.killed}
    assert list(killed) == [5 + 4 * 2 + 1]
    assert [job.obs_tick for job in killed[14]] == [5]
    assert world.dispatcher.counters.killed == world.dispatcher.counters.lost == 1
    assert world.dispatcher.counters.coverage == pytest.approx(27 / 28)


def test_a_report_about_a_job_that_was_given_up_changes_nothing():
    dispatcher = TickDispatcher([0], 1, watchdog=1)
    job = dispatcher.on_tick(0).dispatch
    dispatcher.on_tick(1)
    assert dispatcher.on_tick(2).killed == (job,)
    assert dispatcher.on_done(0, job.id, 0.1) is Outcome.UNKNOWN
    assert dispatcher.on_lost(0) is None
    assert dispatcher.on_tick(3).dispatch is None
    dispatcher.on_joined(0)
    second = dispatcher.on_tick(4).dispatch
    assert dispatcher.on_done(0, job.id, 0.1) is Outcome.UNKNOWN
    assert dispatcher.on_done(0, second.id, 0.1) is Outcome.ON_TIME
    assert dispatcher.counters.unknown == 2


def test_late_newest_executes_a_late_result_where_beta_would_have_acted():
    history = steady(12, 2)
    history[4].ticks = 5
    drop, newest = (played(history, workers=1, d=2, late=late) for late in ("drop", "newest"))
    late = [plan for plan in newest.plans if plan.job and plan.job.due < plan.tick]
    assert [(plan.tick, plan.job.obs_tick) for plan in late] == [(9, 4)]
    assert drop.plans[9].source is Source.BETA_UNDISPATCHED
    assert newest.dispatcher.counters.overdue == 1
    assert newest.dispatcher.counters.coverage == drop.dispatcher.counters.coverage


def test_late_newest_forgets_late_results_of_an_earlier_episode():
    dispatcher = TickDispatcher([0], 1, late="newest")
    job = dispatcher.on_tick(0).dispatch
    dispatcher.on_tick(1)
    assert dispatcher.on_done(0, job.id, 0.1) is Outcome.LATE
    dispatcher.on_reset(2, 1)
    assert dispatcher.on_tick(2).source is Source.BETA_RESET
    assert (dispatcher.counters.stale, dispatcher.counters.late) == (1, 0)


@some
@given(histories, worlds)
def test_late_newest_never_goes_back_behind_a_newer_action(history, world):
    world = played(history, **world, late="newest")
    acted = -1
    for plan in world.plans:
        if plan.job is not None and plan.job.due < plan.tick:
            assert plan.job.obs_tick > acted
        if plan.job is not None:
            acted = max(acted, plan.job.obs_tick)


def test_a_missed_tick_executes_nothing_and_dispatches_nothing():
    history = steady(12, 2)
    history[5].missed = True
    world = played(history, workers=2, d=2)
    assert world.plans[5].source is Source.BETA_LATE
    assert world.plans[5].dispatch is None
    assert world.plans[7].source is Source.BETA_UNDISPATCHED
    assert world.dispatcher.counters.late == 1
    assert world.sources().count(Source.POLICY) == 12 - 2 - 2


def test_a_run_may_begin_at_any_tick_and_episode():
    dispatcher = TickDispatcher([0], 1)
    dispatcher.on_reset(500, 7)
    assert dispatcher.on_tick(500).source is Source.BETA_RESET
    assert dispatcher.trace[0].episode == 7


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the delay must be at least 1 tick, but got 0"):
        TickDispatcher([0], 0)
    with pytest.raises(ValueError, match="late must be 'drop' or 'newest', but got 'keep'"):
        TickDispatcher([0], 1, late="keep")
    with pytest.raises(ValueError, match=r"watchdog must be at least 1 .*, but got 0"):
        TickDispatcher([0], 1, watchdog=0)
    with pytest.raises(ValueError, match="worker 3 is there already"):
        TickDispatcher([3, 3], 1)
    dispatcher = TickDispatcher([0], 1)
    dispatcher.on_tick(0)
    with pytest.raises(ValueError, match="expected tick 1 after the last one, but got 2"):
        dispatcher.on_tick(2)
    with pytest.raises(ValueError, match=r"a reset at the next tick, 1, .*, but got tick 1, epis"):
        dispatcher.on_reset(1, 0)
    with pytest.raises(ValueError, match=r"above 0, but got tick 5, episode 1"):
        dispatcher.on_reset(5, 1)
