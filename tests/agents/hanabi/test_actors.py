"""Actors of every kind: the same games, each wave once, whatever becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rehearsals
import sessions
import torch
from episodes import same

from fox.agents.flat import flattened
from fox.agents.hanabi.actors import InlineActors, open_actors
from fox.agents.hanabi.config import ActorsConfig, EnvConfig, RunConfig
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.processes import ProcessActors
from fox.agents.hanabi.remote import RayActors

KINDS = ["inline", "process"]
AHEAD = 2
looks_into_proc = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="looks into /proc, on Linux"
)


@pytest.fixture
def opened(tmp_path):
    """Opens actors of a kind, for rehearsals."""
    with ExitStack() as stack:

        def open_rehearsal(kind, first_wave=0, workers=1, **fate):
            factory = partial(rehearsals.Fated, tmp_path, **fate)
            if kind == "inline":
                return InlineActors(factory, first_wave)
            actors = ProcessActors(factory, first_wave, workers=workers, ahead=AHEAD)
            return stack.enter_context(closing(actors))

        yield open_rehearsal


def weights_of(version):
    return np.full(1000, version, np.float32)


def take(actors, number):
    """The numbers of the waves that come next, their versions, and the processes."""
    waves = [actors.wave() for _ in range(number)]
    for one, two in waves:
        assert (one.number + 1, one.version) == (two.number, two.version)
        assert one.number % 2 == 0
    return (
        [wave[0].number // 2 for wave in waves],
        [wave[0].version for wave in waves],
        [wave[0].keep_score for wave in waves],
    )


def wait_for(folder, waves):
    """Returns when as many waves have begun."""
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < waves:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wave_comes_once_with_the_weights_that_are_the_newest_when_it_begins(kind, opened):
    actors = opened(kind, first_wave=3, workers=2)
    actors.publish(weights_of(5), 5)
    numbers, versions, processes = take(actors, 12)
    in_hand = 0 if kind == "inline" else 2 * AHEAD
    for version in (6, 7, 8):
        actors.publish(weights_of(version), version)
        came = take(actors, 6)
        assert came[1].count(version) >= 6 - in_hand
        for known, new in zip((numbers, versions, processes), came, strict=True):
            known += new
    assert len(set(numbers)) == 30
    assert numbers == sorted(numbers) or kind != "inline"
    assert 3 <= min(numbers) <= max(numbers) < 3 + 30 + in_hand
    for process in set(processes):
        of = [version for version, by in zip(versions, processes, strict=True) if by == process]
        assert of == sorted(of), "versions go back"
    assert (os.getpid() in processes) == (kind == "inline")
    assert actors.lost == 0


def test_a_killed_worker_is_replaced_and_no_wave_is_lost_or_doubled(opened):
    actors = opened("process", workers=2, dies=(4, 9), seconds=0.01)
    actors.publish(weights_of(1), 1)
    numbers, until = [], time.monotonic() + 60
    while not set(range(16)) <= set(numbers):  # one may be late, for it has to begin again
        assert time.monotonic() < until, numbers
        numbers += take(actors, 1)[0]
    assert len(set(numbers)) == len(numbers)
    assert actors.lost == 2
    actors.publish(weights_of(2), 2)
    assert 2 in take(actors, 1 + 2 * AHEAD)[1]


def test_a_worker_that_is_killed_while_it_tells_is_replaced(opened, tmp_path):
    actors = opened("process", factory=partial(rehearsals.Echo, 500_000))
    actors.publish(weights_of(1), 1)
    wait_for(tmp_path, AHEAD)
    time.sleep(0.2)  # a wave is more than a pipe takes, and nobody reads
    actors._children[0].process.kill()
    assert take(actors, 3)[0] == [0, 1, 2]
    assert actors.lost == 1


def test_an_exception_in_a_worker_reaches_the_learner_with_its_traceback(opened):
    actors = opened("process", raises=2)
    actors.publish(weights_of(1), 1)
    with pytest.raises(RuntimeError) as caught:
        take(actors, 3)
    for words in ("worker 0 raised", "in play", "ZeroDivisionError", "of this game"):
        assert words in str(caught.value)


def test_a_worker_that_cannot_be_made_is_an_error_and_not_a_loss(opened):
    actors = opened("process", factory=rehearsals.unready)
    actors.publish(weights_of(1), 1)
    with pytest.raises(RuntimeError, match=r"worker 0 raised(.|\n)*no such checkpoint"):
        actors.wave()
    assert actors.lost == 0


def test_a_wave_that_ends_every_worker_is_an_error(opened):
    actors = opened("process", dies=(1,), deaths=10)
    actors.publish(weights_of(1), 1)
    # Wave 0 is blamed where its games, played but not told yet, were lost with each worker.
    told = r"wave [01] has ended 3 workers, at last: .* exit code -9"
    with pytest.raises(RuntimeError, match=told):
        take(actors, 2)


def test_workers_wait_for_a_learner_that_is_slower(opened, tmp_path):
    actors = opened("process")
    actors.publish(weights_of(1), 1)
    assert take(actors, 1)[0] == [0]
    wait_for(tmp_path, 1 + AHEAD)  # the worker does not wait for us before that
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == 1 + AHEAD


def test_weights_are_published_even_where_dead_workers_hold_the_copies(opened):
    actors = opened("process", workers=2)
    actors.publish(weights_of(1), 1)
    for worker, child in actors._children.items():
        child.process.kill()
        child.process.join()
        actors._weights.newest(worker)  # as one that was killed while it copied
        actors.publish(weights_of(2 + worker), 2 + worker)
    actors.publish(weights_of(4), 4)
    assert 4 in take(actors, 1 + 2 * AHEAD)[1]
    assert actors.lost == 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_before_waves(kind, opened):
    with pytest.raises(AssertionError, match="publish"):
        opened(kind).wave()


@pytest.mark.parametrize(
    ("kind", "wanted"), [("inline", InlineActors), ("process", ProcessActors), ("ray", RayActors)]
)
def test_a_config_says_who_plays(kind, wanted):
    if kind == "ray":
        pytest.importorskip("ray")
    config = RunConfig(network=NetworkConfig(hidden_size=8), actors=ActorsConfig(kind))
    with open_actors(config, first_wave=0) as actors:
        assert type(actors) is wanted


def self_play(kind, waves):
    """Games of a run at fixed weights, by their numbers."""
    config = RunConfig(
        env=EnvConfig("2c2r", [2, 3]),
        network=NetworkConfig(hidden_size=16, num_heads=2),
        actors=ActorsConfig(kind, wave_games=6, workers=2, ahead=1),
    )
    torch.manual_seed(0)
    flat = flattened(HanabiNet(config.network)).numpy()
    with open_actors(config, first_wave=1) as actors:
        actors.publish(flat, 9)
        episodes = [episode for _ in range(waves) for episode in actors.wave()]
    return {episode.number: episode for episode in episodes}


@pytest.mark.usefixtures("engine")
def test_a_game_is_the_same_whoever_plays_it():
    ours = self_play("inline", 6)
    assert sorted(ours) == list(range(6, 42))
    assert any(episode.explored.any() for episode in ours.values())
    theirs = self_play("process", 4)
    common = ours.keys() & theirs.keys()
    assert len(common) >= 12
    assert all(same(ours[number], theirs[number]) for number in common)


@looks_into_proc
def test_closing_ends_all_workers_even_in_the_midst_of_a_wave(opened):
    actors = opened("process", workers=2, seconds=0.05)
    actors.publish(weights_of(1), 1)
    processes = set(take(actors, 6)[2])
    actors.close()
    actors.close()
    until = time.monotonic() + 10
    while any(sessions.mappings(process) for process in processes) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(sessions.mappings(process) for process in processes)


LEARNER = """
import sys, time
from functools import partial
from pathlib import Path
import numpy as np
sys.path.append(sys.argv[1])
from rehearsals import Fated
from fox.agents.hanabi.processes import ProcessActors
from fox.agents.signals import asked_to_stop

if __name__ == "__main__":
    folder, seconds = Path(sys.argv[2]), float(sys.argv[3])
    actors = ProcessActors(partial(Fated, folder, seconds=seconds), 0, workers=2, ahead=2)
    try:
        with asked_to_stop() as asked:
            actors.publish(np.ones(1000, np.float32), 1)
            while len(list(folder.iterdir())) < 2:
                time.sleep(0.01)
            print("both are in the midst of a wave", flush=True)
            actors.wave()
        print("asked" if asked.is_set() else "not asked", actors.lost)
    finally:
        actors.close()
"""


@looks_into_proc
@pytest.mark.parametrize("way", ["SIGKILL", "Ctrl-C"])
def test_no_process_and_no_memory_outlives_the_learner(way, tmp_path):
    script, waves = tmp_path / "learner.py", tmp_path / "waves"
    script.write_text(LEARNER)
    waves.mkdir()
    seconds = {"SIGKILL": "60", "Ctrl-C": "1"}[way]
    command = [sys.executable, str(script), str(Path(__file__).parent), str(waves), seconds]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as learner:
        try:
            assert learner.stdout.readline() == "both are in the midst of a wave\n"
            family = sessions.session(learner.pid)
            assert len(family) >= 4  # with two workers, and the server that they come from
            assert "/memfd:fox" in sessions.mappings(learner.pid)
            # Memory with a name would be a file in this folder.
            assert not any("/dev/shm/" in sessions.mappings(member) for member in family)
            if way == "Ctrl-C":
                os.killpg(learner.pid, signal.SIGINT)  # as a terminal does: to all of them
            else:
                learner.kill()
            told, errors = learner.communicate(timeout=20)
            until = time.monotonic() + 10
            while sessions.session(learner.pid) and time.monotonic() < until:
                time.sleep(0.02)
            assert sessions.session(learner.pid) == []
        finally:
            for left in sessions.session(learner.pid):
                os.kill(left, signal.SIGKILL)
    assert errors == ""
    # Ctrl-C asks the learner alone: the wave is played to its end.
    assert told == ("asked 0\n" if way == "Ctrl-C" else "")
