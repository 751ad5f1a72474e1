"""fox-data: the same shards whoever encodes them, after whatever happened."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fox.train.writer
from fox.train.folders import open_folder
from fox.train.prepare import histogram, main

FOLDER = Path("prepared")
PREPARE = ("prepare", "--folder", str(FOLDER), "--num_workers=1", "--files", "corpus/*.txt")
TRAIN_TOKENIZER = ("--vocab_size", "280")
# Small shards, so that a small corpus has many; spawned processes read this file, too.
SLOW = """
import sys, time
import fox.train.writer as writer
from fox.train.prepare import main
writer.SHARD_CHARACTERS, writer.JOB_CHARACTERS = 200, 100
pieces_of = writer.pieces_of
def slow(*args):
    time.sleep(0.005)
    return pieces_of(*args)
writer.pieces_of = slow
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@pytest.fixture
def small_shards(experiment, monkeypatch):
    """45 documents make about 20 shards."""
    monkeypatch.setattr(fox.train.writer, "SHARD_CHARACTERS", 200)
    monkeypatch.setattr(fox.train.writer, "JOB_CHARACTERS", 100)


def contents(folder=FOLDER):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def index(folder=FOLDER):
    return json.loads((folder / "meta.json").read_text())


def error_of(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fox-data: error: ")
    return line


def test_shards_are_the_same_from_processes_that_were_killed_and_from_one_that_was_not(
    small_shards,
):
    main([*PREPARE, *TRAIN_TOKENIZER])
    expected, whole = contents(), index()
    assert len(whole["shards"]) > 10
    Path("slow.py").write_text(SLOW)
    command = [sys.executable, "slow.py", "prepare", "--folder", "killed", "--num_workers=2"]
    command += ["--files", "corpus/*.txt", "--tokenizer", "prepared/tokenizer.json"]
    folder = Path("killed")
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    while len(list(folder.glob("shards/*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    # The output ends when its workers have noticed, too.
    process.communicate(timeout=90)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.json")}
    assert 0 < len(kept) < len(whole["shards"])
    assert not (folder / "meta.json").exists()
    (folder / "shards" / ".123-train-00099.bin").write_bytes(b"scratch of the killed process")
    main([*command[2:], "--num_workers=1"])
    assert contents(folder) == expected
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    for part in ("train", "validation"):
        assert index(folder)[part] == whole[part]


@pytest.mark.parametrize("damage", ["cut", "missing", "changed"])
def test_a_damaged_shard_is_found_and_it_alone_is_made_again(small_shards, capsys, damage):
    main([*PREPARE, *TRAIN_TOKENIZER])
    expected = contents()
    times = {path: path.stat().st_mtime_ns for path in FOLDER.glob("shards/*.json")}
    victim = FOLDER / "shards" / "train-00003.bin"
    if damage == "cut":
        os.truncate(victim, 10)
        found = "train-00003.bin has 10 bytes instead of"
    elif damage == "missing":
        victim.unlink()
        found = "train-00003.bin is missing or empty"
    else:
        victim.write_bytes(bytes([victim.read_bytes()[0] ^ 1]) + victim.read_bytes()[1:])
        found = "train-00003.bin or its .len file does not have the contents"
    if damage != "changed":  # sizes are always compared
        with pytest.raises(ValueError, match=r"expected whole shards in prepared, but .*00003"):
            open_folder(FOLDER)
    assert "1 files are not: repeat the fox-data prepare" in error_of(
        capsys, "verify", "--folder", "prepared"
    )
    main([*PREPARE, *TRAIN_TOKENIZER])
    assert f"made again: {FOLDER / 'shards' / found}" in capsys.readouterr().out
    assert contents() == expected
    again = [path.name for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert again == ["00003.json"]
    main(["verify", "--folder", "prepared"])
    assert "shards are as they were written" in capsys.readouterr().out


def test_a_longer_corpus_makes_only_the_new_shards_and_a_shorter_one_leaves_none_behind(
    small_shards,
):
    limited = (*PREPARE, "--max_tokens", "300", "--tokenizer", "tokenizer.json")
    main([*PREPARE, *TRAIN_TOKENIZER])
    (FOLDER / "tokenizer.json").rename("tokenizer.json")
    everything = contents()
    (FOLDER / "meta.json").unlink()
    main(limited)
    counts = index()
    assert contents().items() < everything.items()
    assert 300 <= counts["train"]["tokens"] < 340
    assert counts["validation"]["documents"] > 0
    shards = open_folder(FOLDER)
    assert len(shards.train.tokens) == shards.train.bounds[-1] == counts["train"]["tokens"]
    ends = shards.train.tokens[:][shards.train.bounds[1:] - 1]
    assert set(ends.tolist()) == {shards.meta["end_of_text"]}


def test_the_summary_counts_what_is_there(small_shards, capsys):
    main([*PREPARE, *TRAIN_TOKENIZER, "--held_out_one_in", "5"])
    out = capsys.readouterr().out
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert f"{summary['shards']} shards in prepared" in out
    assert f"{summary['train']['tokens']:,}" in out
    assert summary["train"]["documents"] + summary["validation"]["documents"] == 45
    assert 5 <= summary["validation"]["documents"] <= 14
    text = sum(path.stat().st_size for path in Path("corpus").iterdir())
    assert summary["train"]["bytes"] + summary["validation"]["bytes"] == text
    lengths = summary["train"]["lengths"]
    for name in ("documents", "tokens"):
        assert sum(row[name] for row in lengths) == summary["train"][name]
    assert (FOLDER / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_are_counted_between_powers_of_two():
    assert histogram([1, 4, 7, 8]) == [
        {"from_tokens": 1, "documents": 1, "tokens": 1},
        {"from_tokens": 2, "documents": 0, "tokens": 0},
        {"from_tokens": 4, "documents": 2, "tokens": 11},
        {"from_tokens": 8, "documents": 1, "tokens": 8},
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("verify", "--folder", "nothing"), "a prepared folder with shards, but got nothing"),
        (PREPARE, "expected either --tokenizer, a file, or --vocab_size, to train one"),
        ((*PREPARE, *TRAIN_TOKENIZER, "--max_tokens", "0"), "--max_tokens must be at least 1"),
        ((*PREPARE, *TRAIN_TOKENIZER, "--vocab", "1"), "see fox-data --help"),
        (("prepare", "--folder", "x", "--files", "no/*.txt", *TRAIN_TOKENIZER), "match 'no/*.txt'"),
        ((*PREPARE, "--tokenizer", "no.json"), "there is no file no.json"),
    ],
)
def test_a_mistake_is_one_line(experiment, capsys, args, message):
    assert message in error_of(capsys, *args)


def test_a_prepared_folder_is_not_replaced_by_another_text(experiment, capsys):
    main([*PREPARE, *TRAIN_TOKENIZER])
    before = contents()
    error = error_of(capsys, *PREPARE, "--vocab_size", "270")
    assert "prepared was prepared from other text or with other settings" in error
    assert contents() == before


def test_without_matplotlib_the_corpus_is_there_and_the_extra_is_named(
    experiment, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = error_of(capsys, *PREPARE, *TRAIN_TOKENIZER)
    assert "plots need matplotlib: pip install 'fox-transformer[plots]'" in error
    assert (FOLDER / "summary.json").is_file()
    open_folder(FOLDER)
