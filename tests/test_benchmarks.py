"""The benchmarks of GPUs, rehearsed on a CPU so that they are ready when a GPU is."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fox import FoxForCausalLM

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "attention_gpu.py"
WRONG = "wrong in the check"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("attention_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["attention_gpu"]


def rehearse(output, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--rehearse", "--commit=any", "--output", output, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_stopped_run_goes_on_and_times_nothing_that_was_wrong(tmp_path):
    pytest.importorskip("triton")
    pytest.importorskip("matplotlib")
    output = tmp_path / "results" / "attention_gpu.json"

    stopped = rehearse(output, "--seconds", "0")
    assert stopped.returncode == 0, stopped.stderr
    first = json.loads(output.read_text())
    assert len(first["cases"]) == 1
    assert len(first["missing"]) == 5
    assert first["missing"][-1] in stopped.stdout
    [check] = first["cases"].values()
    assert check["check"]
    ours = [row for row in check["rows"] if row["way"].startswith("ours")]
    assert {row["gates"] for row in ours} == {"remember", "mixed"}
    for row in ours:
        assert row["right"]
        assert set(row["errors"]) == {"out", "dq", "dk", "dv", "dlog_f"}
        assert 0 < max(row["errors"].values()) < 2e-3
        # As if the kernel had been wrong here:
        row["right"] = row["way"] != "ours-pruned"
    output.write_text(json.dumps(first))

    done = rehearse(output)
    assert done.returncode == 1, done.stderr
    results = json.loads(output.read_text())
    assert results["rehearsal"] is True
    assert results["missing"] == []
    assert dict(list(results["cases"].items())[:1]) == first["cases"]
    assert {"gpu", "driver", "cuda", "torch", "triton", "fla", "commit"} <= set(results["machine"])
    assert output.with_suffix(".png").stat().st_size > 10_000

    whats = ("forward+backward", "forward", "decode")
    times = {what: {} for what in whats}
    for case in results["cases"].values():
        for row in case["rows"]:
            assert case["check"] or "failed" in row or row["milliseconds"] > 0
            if not case["check"] and "launch" not in row:
                times[case["what"]][row["way"]] = row
    for what in whats:
        assert {"sdpa-flash", "sdpa-cudnn", "ours", "ours-bounded"} <= set(times[what])
        row = times[what]["ours"]
        assert row["runs"] >= 1
        assert row["share"] == 1
        assert row["time_over"]["sdpa-flash"] > 0
    assert times["forward+backward"]["ours-pruned"]["failed"] == WRONG
    assert "milliseconds" in times["forward"]["ours-pruned"]
    assert times["decode"]["ours-append"]["bytes"] == 2 * 64 * (2 * 16 * 2 + 2 * 8)
    # Peers that cannot run are listed with the reason: here no backward pass on a CPU.
    assert "CPU" in times["forward+backward"]["flex"]["failed"]
    assert "fla" in times["forward"]


def test_errors_of_nan_or_of_a_lost_term_are_wrong(script):
    want = [torch.randn(50) for _ in range(5)]
    assert script.errors(want, want)["right"]
    for i in range(5):
        for spoilt in (1.1 * want[i], torch.full((50,), math.nan)):
            assert not script.errors([*want[:i], spoilt, *want[i + 1 :]], want)["right"]


def test_results_of_other_code_are_not_continued(script, tmp_path):
    path = tmp_path / "attention_gpu.json"
    keys = ("gpu", "torch", "triton", "fla", "commit", "tiles", "dtype")
    here = dict.fromkeys(keys, "one")
    path.write_text(json.dumps(script.begun(path, here, rehearse=False)))
    assert script.begun(path, here, rehearse=False)["machine"] == here
    with pytest.raises(SystemExit, match="another commit"):
        script.begun(path, {**here, "commit": "two"}, rehearse=False)


def test_a_slow_run_drops_out_and_the_others_go_on(script):
    waits = {"slow": 0.05, "fast": 0.0}
    runs = {way: lambda s=s: script.time.sleep(s) for way, s in waits.items()}
    times = script.timed(runs, script.REHEARSAL._replace(rounds=5), seconds=0.12)
    assert [len(times[way]) for way in waits] == [1, 5]


def test_mixed_gates_are_mostly_local_and_forget_at_the_rate_they_should(script):
    case = script.Case("forward", D=64, T=4096, B=1, H=16, H_kv=16)
    rates = -script.draw_gates("mixed", case, script.REHEARSAL).mean((0, 1))
    constants = 1 / rates
    assert (constants[::8] > 8e3).all()
    local = constants[torch.arange(16) % 8 > 0]
    assert ((local > 2) & (local < 350)).all()
    assert (local.diff() > 0).all()


def test_the_checks_come_first_and_then_the_middle_length(script):
    cases = script.cases(script.FULL)
    checks = [case for case in cases if case.check]
    assert cases[: len(checks)] == checks
    assert cases[len(checks)].T == 16384
    assert len({case.name for case in cases}) == len(cases)
    timed = {(c.what, c.D, c.H // c.H_kv) for c in cases if not c.check}
    assert timed == {(c.what, c.D, c.H // c.H_kv) for c in checks}


def test_decoding_is_measured_beside_transformers(tmp_path):
    pytest.importorskip("transformers")
    script, output = SCRIPT.with_name("decode_cpu.py"), tmp_path / "decode.json"
    sizes = ["--contexts", "512", "--rounds", "2", "--steps", "2", "--output", output]
    done = subprocess.run([sys.executable, script, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(output.read_text())["rows"]}
    assert output.with_suffix(".png").stat().st_size > 10_000
    sizes = [row["parameters"] for row in rows.values()]
    assert max(sizes) <= 1.01 * min(sizes)
    evicting, exact = rows["fox evicting, mixed gates"], rows["fox"]
    assert evicting["share_of_keys_kept"] < exact["share_of_keys_kept"] == 1
    assert evicting["cache_mebibytes"] < exact["cache_mebibytes"]
    for row in rows.values():
        assert row["tokens_per_second"] > 0
        assert len(row["seconds_of_rounds"]) == 2


@pytest.fixture(scope="module")
def training():
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location(
        "training_throughput", SCRIPT.with_name("training_throughput.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_is_measured_on_models_of_equal_size_and_loss(training, tmp_path):
    sizes = training.parameters().values()
    assert max(sizes) <= 1.01 * min(sizes)
    llama = training.new_model(training.PEER)
    llama.configure_model()
    llama.net.llama.save_pretrained(tmp_path)
    ours = FoxForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(2048, (2, 40))
    expected = ours(input_ids=ids, labels=ids, shift_labels=False, reduction="sum")
    loss, token_losses = llama._losses({"input_ids": ids, "labels": ids})  # as FoxLM trains it
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(token_losses, expected.token_losses)


def test_row_lengths_that_were_measured_are_not_measured_again(training, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    output, measured = tmp_path / "training.json", []

    def compare(seq_len, *_):
        measured.append(seq_len)
        row = {"model": training.PEER, "tokens_per_second": 9.0, "over_peer": 1.0}
        return {"seq_len": seq_len, "rows": [row]}

    monkeypatch.setattr(training, "compare", compare)
    monkeypatch.setattr(training, "parameters", lambda: {training.PEER: 3})
    for lengths in (["512"], ["512", "4096"]):
        arguments = ["training", "--output", str(output), "--seq-lens", *lengths]
        monkeypatch.setattr(sys, "argv", arguments)
        training.main()
    assert measured == [512, 4096]
    assert output.with_suffix(".png").stat().st_size > 5_000
    monkeypatch.setattr(training, "machine", lambda: {"commit": "another"})
    training.main()
    assert measured == [512, 4096, 512, 4096]
