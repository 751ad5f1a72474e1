"""fox-realtime bench measures, and says how many workers follow from it."""

import csv
import json
import math
import os

import pytest

from fox.agents.realtime import bench
from fox.agents.realtime.cli import main
from fox.agents.realtime.timing import TrunkTimes

M = 1 / 64


def test_bench_measures_every_part_and_says_whether_this_machine_can_carry_the_workers(
    tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    parts = ["--policies", '["impala-1"]', "--transports", '["thread"]']
    main(["bench", "--output", str(tmp_path), *parts])
    result = json.loads((tmp_path / "bench.json").read_text())
    assert list(result["costs"]) == [
        "environment, catch",
        "dispatcher",
        "head",
        "transport, thread",
    ]
    assert all(x > 0 for values in result["costs"].values() for x in values.values())
    assert result["costs"]["environment, catch"]["seconds"] < 0.03 * M
    assert (result["fps"], result["machine"]["cores"]) == (60, os.cpu_count())
    (row,) = result["policies"]
    assert (row["policy"], row["cache"]) == ("impala-1", "frame")
    assert row["workers"] == math.ceil(row["seconds"] * 60)
    with (tmp_path / "policies.csv").open() as file:
        assert [line["workers"] for line in csv.DictReader(file)] == [str(row["workers"])]
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr().out
    assert "transport, thread" in told
    assert f"on {os.cpu_count()} cores" in told


def test_the_workers_follow_from_the_measured_times(monkeypatch):
    measured = TrunkTimes(1000, window=2.5 * M, token=0.5 * M, chunk=1.5 * M, per_token=0.5 * M)
    monkeypatch.setattr(bench, "time_trunk", lambda config, window, context: measured)
    rows = {row["cache"]: row for row in bench.time_policy("fox-1M", M, 64, 1024)}
    assert {cache: row["workers"] for cache, row in rows.items()} == {
        "window": 3,
        "catchup": 3,  # a chunk of 3 ticks takes 1.5 M + 3 * 0.5 M
        "wavefront": 1,
    }
    assert rows["catchup"]["seconds"] == 3 * M


def test_caches_that_cannot_keep_up_have_no_number_of_workers(monkeypatch, capsys):
    measured = TrunkTimes(1000, window=2.5 * M, token=1.2 * M, chunk=1.5 * M, per_token=1.1 * M)
    monkeypatch.setattr(bench, "time_trunk", lambda config, window, context: measured)
    rows = {row["cache"]: row for row in bench.time_policy("fox-1M", M, 64, 1024)}
    assert (rows["catchup"]["workers"], rows["catchup"]["seconds"]) == (None, None)
    bench.report({}, list(rows.values()), M, cores=4)
    lines = capsys.readouterr().out.splitlines()
    assert any("catchup" in line and "none" in line for line in lines)
    assert any("window" in line and "yes" in line for line in lines)
    bench.report({}, list(rows.values()), M, cores=3)
    lines = capsys.readouterr().out.splitlines()
    assert any("window" in line and "2.50" in line and " no " in line for line in lines)


def test_bench_knows_its_policies(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--output", str(tmp_path), "--policies", '["fox-7B"]'])
    assert stop.value.code == 2
    assert "policies are fox-1M, fox-11M, fox-25M" in capsys.readouterr().err
