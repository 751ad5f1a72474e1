"""fox-realtime play shows a run as it plays, and as it would play otherwise."""

import json

import pytest

from fox.agents.realtime.cli import main
from fox.agents.realtime.config import RunConfig, ScheduleConfig
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.play import changed

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def test_play_writes_what_the_scheduler_counted_and_pictures_of_it(runs, tmp_path, capsys):
    run = str(runs / "staggered")
    main(["play", run, "--ticks", "60", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "play.json").read_text())
    assert (result["interaction"], result["clock"], result["run"]) == ("staggered", "virtual", run)
    counters = result["counters"]
    assert counters["sources"] | {"POLICY": 0, "BETA_RESET": 0} == dict.fromkeys(
        counters["sources"], 0
    )
    assert (counters["sources"]["POLICY"], counters["sources"]["BETA_RESET"]) == (54, 6)
    assert result["coverage"] == 1
    told = capsys.readouterr().out
    for words in ("staggered, workers: 7", "ticks, policy", "jobs, in flight", "100.0%"):
        assert words in told
    trace = json.loads((tmp_path / "trace.json").read_text())
    ticks = [event for event in trace["traceEvents"] if event.get("cat") == "tick"]
    assert [event["args"]["tick"] for event in ticks] == list(range(60))
    jobs = [event for event in trace["traceEvents"] if event.get("cat") == "inference"]
    assert [event["args"]["obs_tick"] for event in jobs] == list(range(60))
    assert (tmp_path / "timeline.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "play.gif").read_bytes()[:4] == b"GIF8"


def test_a_staggered_run_can_play_sequentially_and_with_another_delay(runs, tmp_path):
    run = str(runs / "staggered")
    sequential = ["--interaction", "sequential", "--delay_ticks", "8", "--ticks", "40"]
    main(["play", run, *sequential, "--output", str(tmp_path)])
    result = json.loads((tmp_path / "play.json").read_text())
    assert (result["workers"], result["delay_ticks"]) == (1, 8)
    assert result["counters"]["sources"]["POLICY"] == 6  # saw 0, 6, .. 30, when it was idle


def test_one_tick_can_be_played_and_its_files_go_into_the_run(runs):
    main(["play", str(runs / "sequential"), "--ticks", "1"])
    assert {path.name for path in (runs / "sequential" / "play").iterdir()} == {
        "play.json",
        "play.gif",
        "timeline.png",
        "trace.json",
    }


def test_what_is_not_given_stays_and_another_interaction_chooses_its_own_workers():
    config = RunConfig(EnvConfig("catch"), schedule=ScheduleConfig(workers=5, beta="repeat"))
    assert changed(config, {"interaction": None, "workers": None}, None) == config
    other = changed(config, {"interaction": "sequential", "workers": None}, 7)
    assert (other.schedule.interaction, other.schedule.workers) == ("sequential", None)
    same = changed(config, {"interaction": "staggered", "workers": None}, None)
    assert same.schedule.workers == 5
    assert (other.schedule.beta, other.run.seed) == ("repeat", 7)
    with pytest.raises(ValueError, match=r"schedule\.inference_seconds"):
        changed(config, {"clock": "virtual"}, None)


def test_play_says_what_is_missing(tmp_path, capsys):
    for arguments, words in (
        (["--ticks", "0"], "expected at least 1 tick to play, but got 0"),
        ([], f"expected a run of fox-realtime train in {tmp_path}"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["play", str(tmp_path), *arguments])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
