"""Timelines, films and Chrome traces tell what the scheduler did."""

import builtins
import json

import numpy as np
import pytest

from fox.agents.realtime.behaviour import beta
from fox.agents.realtime.clock import VirtualClock
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.loop import Interaction
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Source, token_dtype
from fox.agents.realtime.timeline import Film, Recorder, draw_timeline, write_chrome_trace
from fox.agents.realtime.transport import VirtualTransport

M = 0.0625  # seconds of a step; exact in binary
D, WORKERS, TICKS = 3, 4, 40
LATE, KILLED = 10, 20  # the observations whose job comes too late, and whose worker is killed


class Blind:
    """A worker that looks at nothing."""

    def __init__(self, worker):
        pass

    def infer(self, job, rows):
        return np.zeros(1, np.float32), 7


class Still:
    """A head that does nothing."""

    def act(self, features, committed, observation):
        return 0


def play(late="drop", usual=2.5):
    """A recorder after some ticks of inferences of `usual` ticks, and the dispatcher."""
    env = CatchRT()
    ring = ObservationRing(token_dtype(env.features()), D, 1, shared=False)
    seconds = {LATE: 4.5 * M, KILLED: 100 * M}
    recorder = Recorder(
        VirtualTransport(Blind, ring, lambda job: seconds.get(job.obs_tick, usual * M))
    )
    recorder.start(range(WORKERS))
    behaviour = beta("noop", n_actions=3, noop=0, seed=0)
    dispatcher, clock = TickDispatcher(range(WORKERS), D, late=late), VirtualClock(M)
    interaction = Interaction(env, Still(), dispatcher, clock, recorder, ring, behaviour=behaviour)
    for _ in range(TICKS):
        step = interaction.tick()
        recorder.add_tick(step, clock.now())
    return recorder, dispatcher


@pytest.fixture(scope="module")
def played():
    return play()


def test_each_job_is_one_inference_with_its_fate(played):
    recorder, dispatcher = played
    inferences = recorder.inferences()
    assert [inference.job.obs_tick for inference in inferences] == list(range(TICKS))
    fates = {inference.job.obs_tick: inference.fate for inference in inferences}
    assert fates.pop(LATE) == "dropped"
    assert fates.pop(KILLED) == "lost"
    assert [fate for _, fate in sorted(fates.items())] == [
        *["executed"] * (TICKS - D - 2),
        *["running"] * D,
    ]
    counters = dispatcher.counters
    assert (counters.late, counters.lost) == (1, 1)
    assert counters.applied == list(fates.values()).count("executed")


def test_a_late_inference_leads_to_the_tick_that_executed_it_after_all():
    inferences = play("newest", usual=4.5)[0].inferences()
    late = [(job.job.obs_tick, job.tick) for job in inferences if job.fate == "executed"]
    assert len(late) > 10
    assert all(tick == obs_tick + 5 for obs_tick, tick in late)


def test_an_inference_lasts_from_its_tick_for_its_duration_and_a_lost_one_until_its_loss(played):
    recorder, _ = played
    for inference in recorder.inferences()[:-D]:
        length = {LATE: 4.5 * M, KILLED: (3 * D + 1) * M}.get(inference.job.obs_tick, 2.5 * M)
        assert inference.start == inference.job.obs_tick * M
        assert inference.end - inference.start == length


def test_the_chrome_trace_has_a_row_per_worker_and_arrows_to_the_ticks(played, tmp_path):
    recorder, _ = played
    write_chrome_trace(tmp_path / "trace.json", recorder, M)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert rows == ["ticks", *(f"worker {worker}" for worker in range(WORKERS))]
    ticks = [event for event in events if event.get("cat") == "tick"]
    assert [event["ts"] for event in ticks] == [62_500 * tick for tick in range(TICKS)]
    assert [event["name"] for event in ticks[:D]] == ["beta: episode begins"] * D
    assert ticks[LATE + D]["name"] == "beta: too late"
    arrows = {kind: [e for e in events if e["ph"] == kind] for kind in "sf"}
    assert len(arrows["s"]) == TICKS - D - 2
    for tail, point in zip(arrows["s"], arrows["f"], strict=True):
        assert tail["id"] == point["id"]
        assert tail["tid"] == 1 + tail["args"]["worker"]
        assert point["tid"] == 0
        assert point["ts"] == 62_500 * tail["args"]["due"] == tail["ts"] + 0.5 * 62_500
    drops = [(e["name"], e["args"]["obs_tick"]) for e in events if e["ph"] == "i"]
    assert drops == [("dropped", LATE), ("lost", KILLED)]


def test_the_timeline_is_a_picture(played, tmp_path):
    pytest.importorskip("matplotlib")
    draw_timeline(tmp_path / "timeline.png", played[0], M, 5, 30)
    assert (tmp_path / "timeline.png").read_bytes()[:4] == b"\x89PNG"


def test_a_film_lasts_as_long_as_the_play_and_shows_the_world_and_the_sources(played, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    world, film = CatchRT().render84(), Film(1 / 60)
    for step in played[0].steps:
        film.add(step, lambda: world)
    film.save(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        lengths = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            lengths.append(gif.info["duration"])
        assert sum(lengths) == pytest.approx(1000 * TICKS / 60, abs=50)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
    assert abs(pixels[:336:4, :336:4, 0] - world).max() < 8
    strip = pixels[338, 2 : 4 * TICKS : 4]
    policy = [step.source is Source.POLICY for step in played[0].steps]
    orange = strip[:, 0] - strip[:, 2] > 100
    assert orange.tolist() == policy


def test_a_film_without_pillow_says_what_to_install(monkeypatch, tmp_path):
    original = builtins.__import__

    def without_pillow(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ModuleNotFoundError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ModuleNotFoundError, match=r"films need pillow: pip install 'fox-tr"):
        Film(1 / 60).save(tmp_path / "film.gif")
