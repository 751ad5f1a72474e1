"""The log of ticks: every index against a slow oracle, on rows whose number is what they hold."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.agents.realtime.replay import Replay
from fox.agents.realtime.ticks import Source, token_dtype

KIND = token_dtype(np.zeros(1, np.float64))


@dataclass(frozen=True)
class Row:
    """One tick of a log that a test makes up; its number is its action, and part of all else."""

    tick: int
    number: int
    begin: int  # number of the first row of its episode
    source: Source
    d: int
    terminated: bool = False
    truncated: bool = False

    def token(self):
        token = np.zeros((), KIND)
        start = self.number == self.begin
        token["tick"], token["episode"], token["obs"] = self.tick, self.begin, self.number
        token["action"] = 0 if start else self.number - 1
        token["reward"] = 0 if start else self.number - 1 + 0.5
        token["source"], token["start"] = Source.BETA_RESET, start
        return token

    def append_to(self, replay):
        policy = self.source is Source.POLICY
        replay.append(
            self.token(),
            self.number,
            self.source,
            self.number + 0.5,
            self.terminated,
            self.truncated,
            self.d,
            self.tick - self.d if policy else -1,
            10 * self.number if policy else -1,
        )


def made_up(episodes, delays, betas=()):
    """Rows of episodes [(length, end)], end one of "terminated", "truncated", "killed"; `delays`
    gives d from each row number on, `betas` the numbers of rows without an action in time.
    """
    rows, tick, d = [], 0, 0
    for length, end in episodes:
        begin = len(rows)
        for i in range(length):
            number = len(rows)
            d = delays.get(number, d)
            source = Source.BETA_LATE if number in betas else Source.POLICY
            source = source if i >= d else Source.BETA_RESET
            over = {end: True} if i == length - 1 and end != "killed" else {}
            rows.append(Row(tick, number, begin, source, d, **over))
            tick += 1
        tick += 7 * (end == "killed")  # whatever the resumed run counts from
    return rows


def filled(folder, rows, capacity=1000):
    replay = Replay.create(folder, KIND, capacity)
    for row in rows:
        row.append_to(replay)
    return replay


def sample(replay, seed=0, **changes):
    options = {"batch_size": 4, "burn_in": 2, "train": 4, "n_step": 1}
    options |= {"learn_from_beta": False, "fresh": False}
    return replay.sample(np.random.default_rng(seed), **(options | changes))


def decision(rows, o, d, n, learn_from_beta, fresh):
    """What is to be learnt from the decision that saw row o and was due d ticks later; None if
    nothing: the definition, one row after the other.
    """
    t = o + d
    if t >= len(rows):
        return None
    if rows[t].begin > o:  # the delay reaches back into another episode
        return None
    if rows[t].source is not Source.POLICY and not learn_from_beta:
        return None
    rewards, goes_on, m = [], True, 0
    while goes_on and m < n:
        if rows[t + m].d != d or t + m + 1 == len(rows):
            return None
        rewards.append(rows[t + m].number + 0.5)
        goes_on = rows[t + m + 1].begin <= t
        m += 1
    if goes_on and rows[t + m].d != d:
        return None
    terminated = rows[t + m - 1].terminated
    if not goes_on and not terminated and (d == 0 or fresh):
        return None
    state = [rows[i].number for i in range(o, t)]
    successor = [rows[i].number for i in range(o + m, t + m)]
    return {
        "action_t": rows[t].number,
        "rewards": rewards,
        "terminated_tpm": terminated,
        "committed_t": state,
        "committed_tpm": successor,
        "o_tpm": o + m,
        "obs": (t, t + m if goes_on else None),
    }


def check(sequences, rows, burn_in, n, learn_from_beta, fresh):
    B, P = sequences.trainable.shape
    for b in range(B):
        first = int(sequences.tokens["obs"][b, 0, 0])
        T = burn_in + P + n
        for i in range(T):
            token = rows[first + i].token()
            for name in KIND.names:
                np.testing.assert_array_equal(sequences.tokens[name][b, i], token[name])
        d = rows[first + burn_in].d
        for p in range(P):
            wanted = decision(rows, first + burn_in + p, d, n, learn_from_beta, fresh)
            assert sequences.trainable[b, p] == (wanted is not None)
            if wanted is None:
                continue
            m = sequences.steps[b, p]
            assert sequences.action_t[b, p] == wanted["action_t"]
            assert sequences.reward_t[b, p, :m].tolist() == wanted["rewards"]
            assert sequences.terminated_tpm[b, p] == wanted["terminated_tpm"]
            for name in ("committed_t", "committed_tpm"):
                got = getattr(sequences, name)[b, p].tolist()
                assert got == wanted[name] + [-1] * (len(got) - d)
            if not wanted["terminated_tpm"] and d:
                assert sequences.tokens["obs"][b, burn_in + p + m, 0] == wanted["o_tpm"]
            if fresh:
                t, tpm = wanted["obs"]
                assert sequences.obs_t[b, p, 0] == t
                assert tpm is None or sequences.obs_tpm[b, p, 0] == tpm


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_index_is_that_of_the_slow_oracle(data, tmp_path_factory):
    draw = data.draw
    d = st.integers(0, 30)
    ends = st.sampled_from(["terminated", "truncated", "killed"])
    episodes = draw(st.lists(st.tuples(st.integers(1, 30), ends), min_size=1, max_size=8))
    changes = draw(st.dictionaries(st.integers(0, 100), st.integers(0, 6), max_size=3))
    betas = draw(st.sets(st.integers(0, 100), max_size=20))
    episodes.append((draw(st.integers(50, 70)), "killed"))
    rows = made_up(episodes, {0: draw(d)} | changes, betas)
    burn_in, P, n = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    learn_from_beta, fresh = draw(st.booleans()), draw(st.booleans())
    capacity = draw(st.sampled_from([80, 101, 1000]))
    replay = filled(tmp_path_factory.mktemp("replay"), rows, capacity)
    options = {"batch_size": 8, "burn_in": burn_in, "train": P, "n_step": n}
    options |= {"learn_from_beta": learn_from_beta, "fresh": fresh}
    sequences = sample(replay, draw(st.integers(0, 99)), **options)
    assert sequences.tokens["obs"].min() >= max(0, len(rows) - capacity + 1)
    check(sequences, rows, burn_in, n, learn_from_beta, fresh)


def test_delays_from_0_to_128_are_aligned(tmp_path):
    for d in (0, 1, 2, 25, 127, 128):
        rows = made_up([(400, "killed")], {0: d})
        replay = filled(tmp_path / str(d), rows)
        sequences = sample(replay, batch_size=6, train=40, n_step=3)
        check(sequences, rows, 2, 3, False, False)
        assert sequences.trainable.mean() > 0.5


def test_state_action_reward_and_successor_of_a_small_log_by_hand(tmp_path):
    # d = 2, n = 1: the decision that saw row 3 was executed at row 5 after the actions 3 and 4, and
    # led to the state that saw row 4 and knows the actions 4 and 5.
    replay = filled(tmp_path, made_up([(12, "killed")], {0: 2}))
    sequences = sample(replay, batch_size=64, burn_in=1, train=1)
    b = sequences.tokens["obs"][:, 1, 0].tolist().index(3)
    assert sequences.committed_t[b, 0].tolist() == [3, 4]
    assert sequences.action_t[b, 0] == 5
    assert sequences.reward_t[b, 0].tolist() == [5.5]
    assert sequences.tokens["obs"][b, 1 + sequences.steps[b, 0], 0] == 4
    assert sequences.committed_tpm[b, 0].tolist() == [4, 5]
    assert sequences.trainable[b, 0]


def test_the_successor_is_as_delayed_as_the_state(tmp_path):
    sequences = sample(filled(tmp_path, made_up([(60, "killed")], {0: 5})), n_step=2)
    saw = sequences.tokens["obs"][..., 0][:, 2:]
    for p in range(4):
        assert (sequences.action_t[:, p] - saw[:, p] == 5).all()
        newest_committed = sequences.committed_tpm[:, p].max(-1)
        assert (newest_committed - saw[:, p + 2] == 5 - 1).all()


def test_an_actions_reward_is_its_own_and_none_is_lost(tmp_path):
    rows = made_up([(30, "killed")], {0: 3}, betas={9, 10, 15})
    sequences = sample(filled(tmp_path, rows), n_step=4, learn_from_beta=True)
    np.testing.assert_array_equal(sequences.reward_t[..., 0], sequences.action_t + 0.5)
    np.testing.assert_array_equal(
        sequences.reward_t.sum(-1), 4 * (sequences.action_t + 0.5) + (1 + 2 + 3)
    )


def test_rewards_beside_an_image_keep_sign_and_fraction(tmp_path):
    kind = token_dtype(np.zeros((84, 84), np.uint8))
    replay = Replay.create(tmp_path, kind, 50)
    token = np.zeros((), kind)
    for k in range(40):
        token["tick"], token["start"], token["obs"] = k, k == 0, k
        replay.append(token, 0, Source.POLICY, -0.37 * k, False, False, 1, k - 1, 0)
    sequences = sample(replay)
    t = sequences.tokens["tick"][:, 2:6] + 1
    np.testing.assert_array_equal(sequences.reward_t[..., 0], np.float32(-0.37 * t))
    assert (sequences.tokens["obs"] == sequences.tokens["tick"][..., None, None]).all()


def test_returns_stop_at_an_episodes_end(tmp_path):
    rows = made_up([(20, "terminated"), (40, "killed")], {0: 2})
    sequences = sample(filled(tmp_path, rows), batch_size=64, n_step=5)
    at = (sequences.action_t == 17) & sequences.trainable
    assert at.any()
    assert (sequences.steps[at] == 3).all()  # the ticks 17, 18 and 19


@pytest.mark.parametrize("end", ["terminated", "truncated", "killed"])
def test_only_termination_ends_the_value(tmp_path, end):
    rows = made_up([(20, end), (40, "killed")], {0: 2})
    sequences = sample(filled(tmp_path, rows), batch_size=64)
    last = (sequences.action_t == 19) & sequences.trainable
    assert last.any()
    assert (sequences.terminated_tpm[last] == (end == "terminated")).all()
    assert (sequences.committed_tpm[last] == [18, 19]).all()
    assert not sequences.terminated_tpm[sequences.action_t == 18].any()


@pytest.mark.parametrize(("d", "fresh"), [(0, False), (2, True)])
def test_a_cut_episode_is_not_continued_by_the_next_ones_observation(tmp_path, d, fresh):
    rows = made_up([(20, "truncated"), (40, "killed")], {0: d})
    sequences = sample(filled(tmp_path, rows), batch_size=64, fresh=fresh)
    assert not sequences.trainable[sequences.action_t == 19].any()
    assert sequences.trainable[sequences.action_t == 18].any()


def test_actions_of_beta_are_committed_but_not_trained_unless_asked(tmp_path):
    rows = made_up([(60, "killed")], {0: 4}, betas={30, 31})
    replay = filled(tmp_path, rows)
    for asked in (False, True):
        sequences = sample(replay, batch_size=64, learn_from_beta=asked)
        by_beta = np.isin(sequences.action_t, [30, 31])
        assert (sequences.trainable[by_beta] == asked).all()
        assert (sequences.committed_t == 30).any()
        np.testing.assert_array_equal(
            sequences.committed_t, sequences.action_t[..., None] - np.arange(4, 0, -1)
        )


def test_noop_is_an_action_and_minus_one_is_none(tmp_path):
    kind, d = token_dtype(np.zeros(1, np.float32)), {False: 3, True: 2}
    replay = Replay.create(tmp_path, kind, 100)
    token = np.zeros((), kind)
    for k in range(80):
        token["tick"], token["start"] = k, k == 0
        replay.append(token, 0, Source.BETA_LATE, 0, False, False, d[k >= 40], -1, -1)
    sequences = sample(replay, batch_size=64, learn_from_beta=True)
    kinds = {tuple(row) for row in sequences.committed_t.reshape(-1, 3).tolist()}
    assert kinds == {(0, 0, 0), (0, 0, -1)}


def test_the_first_d_ticks_of_an_episode_are_never_trained(tmp_path):
    rows = made_up([(30, "terminated"), (40, "killed")], {0: 4})
    sequences = sample(filled(tmp_path, rows), batch_size=64, learn_from_beta=True)
    assert not sequences.trainable[np.isin(sequences.action_t, range(30, 34))].any()
    assert sequences.trainable[sequences.action_t == 34].any()


def test_a_change_of_delay_is_not_crossed(tmp_path):
    rows = made_up([(80, "killed")], {0: 4, 40: 6})
    sequences = sample(filled(tmp_path, rows), batch_size=128, n_step=3)
    trained = set(sequences.action_t[sequences.trainable].tolist())
    assert {36, 46} <= trained
    assert not trained & {37, 38, 39}  # their returns would end in states of another delay


def test_after_a_shrunken_delay_no_row_is_read_that_is_not_written(tmp_path):
    rows = made_up([(40, "killed")], {0: 9, 36: 2})
    sequences = sample(filled(tmp_path, rows), batch_size=64, n_step=2)
    check(sequences, rows, 2, 2, False, False)
    assert sequences.trainable.any()


def test_sequences_cross_the_start_of_an_episode_with_its_flag(tmp_path):
    rows = made_up([(30, "terminated"), (40, "killed")], {0: 1})
    sequences = sample(filled(tmp_path, rows), batch_size=64)
    crossing = (sequences.tokens["obs"][..., 0] == 30) & ~sequences.tokens["start"]
    assert not crossing.any()
    inner = sequences.tokens["start"][:, 2:5].any(1)
    assert sequences.trainable[inner].any()


def test_equal_generators_draw_equal_sequences(tmp_path):
    replay = filled(tmp_path, made_up([(60, "killed")], {0: 2}))
    one, same, other = (sample(replay, seed).tokens["tick"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_ring_overwrites_its_oldest_row_and_does_not_sample_the_next_to_go(tmp_path):
    rows = made_up([(200, "killed")], {0: 0})
    replay = filled(tmp_path, rows, capacity=16)
    assert (replay.count, len(replay)) == (200, 15)
    seen = sample(replay, batch_size=500, burn_in=0, train=1).tokens["tick"]
    assert set(seen.ravel().tolist()) == set(range(185, 200))


class Overtaking:
    """A generator during whose draw the writer goes on; it draws the oldest row."""

    def __init__(self, replay, rows):
        self.replay, self.rows, self.draws = replay, rows, []

    def integers(self, low, high, size):
        if self.rows:
            self.rows.pop(0).append_to(self.replay)
        self.draws.append(low)
        return np.full(size, low)


def test_rows_that_the_writer_came_to_while_they_were_read_are_drawn_again(tmp_path):
    rows = made_up([(60, "killed")], {0: 2})
    replay = filled(tmp_path, rows[:50], capacity=20)
    generator = Overtaking(replay, rows[50:52])
    options = {"batch_size": 2, "burn_in": 0, "train": 1, "n_step": 1}
    sequences = replay.sample(generator, **options, learn_from_beta=False, fresh=False)
    assert generator.draws == [31, 32, 33]
    assert (sequences.tokens["tick"][:, 0] == 33).all()


class Dies(BaseException):
    """Stands for kill -9 between two stores."""


class Mortal:
    """A column whose writer dies when it comes to it."""

    def __init__(self, column):
        self.column = column

    def __getitem__(self, rows):
        return self.column[rows]

    def __setitem__(self, slot, value):
        raise Dies


@pytest.mark.parametrize("column", ["tick", "obs", "action_t", "d", "version"])
def test_a_writer_killed_within_a_row_leaves_no_torn_row(tmp_path, column):
    rows = made_up([(60, "killed")], {0: 2})
    replay = filled(tmp_path, rows[:50], capacity=20)
    replay._columns[column] = Mortal(replay._columns[column])
    with pytest.raises(Dies):
        rows[50].append_to(replay)
    replay.close()
    reader = Replay.open(tmp_path)
    assert reader.count == 50
    check(sample(reader, batch_size=100, n_step=2), rows[:50], 2, 2, False, False)
    resumed = Replay.open(tmp_path, write=True)
    for row in rows[50:]:
        row.append_to(resumed)
    check(sample(reader, batch_size=100, n_step=2), rows, 2, 2, False, False)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.ticks import Source
replay = Replay.open(Path(sys.argv[1]), write=True)
token = np.zeros((), replay.dtype)
for k in range(10**9):
    token["tick"], token["start"] = k, k == 0
    token["obs"] = token["reward"] = k % 1000
    replay.append(token, k % 1000, Source.POLICY, k % 1000, False, False, 2, k - 2, k)
"""


def test_rows_are_whole_while_another_process_writes_and_after_it_was_killed(tmp_path):
    Replay.create(tmp_path, token_dtype(np.zeros(64)), 300).close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    reader = Replay.open(tmp_path)
    until = time.monotonic() + 60
    while reader.count < 1000 and time.monotonic() < until:
        time.sleep(0.01)

    def check_whole(seed):
        sequences = sample(reader, seed, train=20)
        tokens = sequences.tokens
        assert (tokens["obs"] == tokens["tick"][..., None] % 1000).all()
        assert (tokens["reward"] == tokens["tick"] % 1000).all()
        assert (np.diff(tokens["tick"]) == 1).all()
        assert (sequences.action_t == (tokens["tick"][:, 2:-1] + 2) % 1000).all()

    try:
        with pytest.raises(ValueError, match="has a writer already"):
            Replay.open(tmp_path, write=True)
        for seed in range(200):
            check_whole(seed)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    count = reader.count
    assert count > 1000
    for seed in range(20):
        check_whole(seed)
    resumed = Replay.open(tmp_path, write=True)  # the lock died with its holder
    assert resumed.count == count


def test_a_killed_creation_leaves_nothing_that_opens(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.lib.format.write_array_header_1_0", full)
        with pytest.raises(OSError, match="No space left"):
            Replay.create(tmp_path, KIND, 100)
    with pytest.raises(ValueError, match=r"expected a replay in .*, but there is no count\.npy"):
        Replay.open(tmp_path)
    Replay.create(tmp_path, KIND, 100)


def test_the_columns_are_plain_npy_files_that_take_their_place_at_once(tmp_path):
    filled(tmp_path, made_up([(5, "killed")], {0: 0}), capacity=4000)
    assert np.load(tmp_path / "action_t.npy")[:6].tolist() == [0, 1, 2, 3, 4, 0]
    on_disk = (tmp_path / "obs.npy").stat()
    assert 512 * on_disk.st_blocks >= 4000 * 8


def test_errors_name_what_was_expected_and_what_came(tmp_path):
    row = Row(5, 0, 0, Source.POLICY, 2)
    replay = Replay.create(tmp_path / "log", KIND, 50)
    with pytest.raises(ValueError, match="capacity of at least 2 rows, but got 1"):
        Replay.create(tmp_path / "small", KIND, 1)
    with pytest.raises(ValueError, match=r"there is a replay in .* already"):
        Replay.create(tmp_path / "log", KIND, 50)
    with pytest.raises(ValueError, match=r"at least 7 rows .* but there are 0 of at most 49"):
        sample(replay)
    with pytest.raises(ValueError, match="5 came after nothing: a token"):
        replace(row, begin=-1).append_to(replay)
    row.append_to(replay)
    with pytest.raises(ValueError, match=r"7 came after .*5.*: a token behind a gap or an end"):
        Row(7, 1, 0, Source.POLICY, 2).append_to(replay)
    Row(9, 1, 1, Source.POLICY, 2, truncated=True).append_to(replay)
    with pytest.raises(ValueError, match=r"10 came after .*'truncated_t': 1.* or an end must be"):
        Row(10, 2, 1, Source.POLICY, 2).append_to(replay)
    with pytest.raises(ValueError, match=r"at tick 6 with delay 2 was decided at 4, .* obs_tick 3"):
        replay.append(
            Row(6, 1, 1, Source.POLICY, 2).token(), 0, Source.POLICY, 0, False, False, 2, 3, 0
        )
    with pytest.raises(ValueError, match="expected a token of"):
        replay.append(np.zeros((), token_dtype(np.zeros(2))), 0, 1, 0, False, False, 2, -1, -1)
    with pytest.raises(ValueError, match="is not open for writing"):
        row.append_to(Replay.open(tmp_path / "log"))
    replay.close()
    replay.close()
    with pytest.raises(ValueError, match="is not open for writing"):
        row.append_to(replay)


def test_a_column_has_every_row_until_rows_are_overwritten(tmp_path):
    rows = made_up([(12, "killed")], {0: 2})
    replay = filled(tmp_path / "whole", rows, capacity=12)
    assert replay.column("obs_tick").tolist() == [-1, -1, *range(10)]
    overwritten = filled(tmp_path / "newest", rows, capacity=11)
    with pytest.raises(ValueError, match=r"only the newest 11 of 12 ticks: run with a larger run"):
        overwritten.column("obs_tick")
