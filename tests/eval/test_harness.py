"""The harness gives lm-eval's own numbers for any model, task by task."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from matplotlib.figure import Figure

from fox.eval import harness as module
from fox.eval.harness import AVERAGES, averages, bars, harness, is_share, language_model
from fox.eval.models import load_model
from fox.files import read_json

TASKS = Path(__file__).parents[1] / "fox" / "tasks"


def test_a_model_answers_lm_eval_as_lm_evals_own_wrapper_does(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = load_model(llama)
    monkeypatch.setattr(model, "bos", None)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 60)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{llama}/tokenizer.json", eos_token="<|endoftext|>"
    )
    theirs: Any = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(llama),
        tokenizer=tokenizer, backend="causal", max_length=24, batch_size=1,
    )  # fmt: skip
    ours = language_model(model, 24)

    def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, arguments, 0) for arguments in arguments]  # type: ignore[arg-type]

    pairs = requests(
        "loglikelihood",
        ("def carry_river(", "stone, naïve)"),
        ("a much longer text that must lose its beginning to fit in " * 3, "the window"),
        ("", "return forest"),
    )
    for (own, greedy), (expected, likeliest) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert own == pytest.approx(expected, rel=1e-5)
        assert greedy == likeliest
    texts = requests("loglikelihood_rolling", ("forget the river and remember",), ("cloud " * 50,))
    expected = theirs.loglikelihood_rolling(texts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)
    options = {"until": ["return", "x"], "max_gen_toks": 8}
    questions = requests("generate_until", ("def measure_cloud(", options), ("a " * 60, options))
    assert ours.generate_until(questions) == theirs.generate_until(questions)
    with pytest.raises(ValueError, match="room for a prompt beside 24 new tokens, but got 24"):
        ours.generate_until(requests("generate_until", ("def", {"max_gen_toks": 24})))


@pytest.mark.parametrize(
    ("limit", "max_length", "message"),
    [
        (0, 9, "limit must be at least 1, but got 0"),
        (None, 1, "max_length must be at least 2, but got 1"),
    ],
)
def test_too_small_numbers_are_refused(limit: int | None, max_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        harness(["nowhere"], "nowhere", limit=limit, max_length=max_length)


def test_tasks_run_once_and_what_is_missing_is_named(
    checkpoint: str,
    llama: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(TASKS)  # the task files name their data by relative paths
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    record = {"context": "the river", "input": "what?", "answers": ["stone"], "all_classes": None}
    (tmp_path / "qasper.jsonl").write_text(json.dumps(record))

    def run(output: str, models: list[str], tasks: list[str]) -> dict[str, Any]:
        folder = tmp_path / output
        harness(
            models, str(folder), tasks=tasks, task_folder=str(TASKS), data=str(tmp_path),
            max_length=160,
        )  # fmt: skip
        return read_json(folder / "harness.json")

    wanted = ["fox_choice", "fox_text", "longbench_qasper", "longbench_trec", "martian"]
    result = run("a", [checkpoint], wanted)
    rows = result["models"][0]["tasks"]
    found = {(row["task"], row["metric"]): row for row in rows}
    assert list(found) == [
        ("fox_choice", "acc"), ("fox_text", "word_perplexity"), ("longbench_qasper", "question_f1")
    ]  # fmt: skip
    share = found["fox_choice", "acc"]
    assert share["samples"] == 3
    assert share["standard_error"] == pytest.approx(
        (share["value"] * (1 - share["value"]) / 2) ** 0.5
    )
    missing = tmp_path / "trec.jsonl"
    told = f"[Errno 2] No such file or directory: '{missing}'"
    assert result["missing"]["longbench_trec"] == told
    assert "martian" in result["missing"]["martian"]
    printed = capsys.readouterr().out
    assert "longbench_trec: left out" in printed
    assert "fox_choice" in printed
    assert len((tmp_path / "a" / "harness.csv").read_text().splitlines()) == 1 + 3
    assert (tmp_path / "a" / "harness.png").stat().st_size > 10_000
    asked = []
    real = module.run_lm_eval

    def counting(loaded: Any, model: Any, *options: Any) -> list[dict[str, Any]]:
        asked.append((model.path, *loaded["tasks"]))
        return real(loaded, model, *options)

    monkeypatch.setattr(module, "run_lm_eval", counting)
    again = run("a", [checkpoint, llama], wanted[:2])
    assert asked == [(llama, "fox_choice"), (llama, "fox_text")]
    assert again["models"][0]["tasks"] == rows[:2]
    (tmp_path / "qasper.jsonl").write_text(2 * (json.dumps(record) + "\n"))
    (changed,) = run("a", [checkpoint], ["longbench_qasper"])["models"][0]["tasks"]
    assert (rows[2]["samples"], changed["samples"]) == (1, 2)
    with pytest.raises(ValueError, match="none of the tasks could run: martian"):
        run("b", [checkpoint], ["martian"])


def test_a_bar_is_labelled_with_its_value_in_full() -> None:
    axes = Figure().subplots()
    metrics = {"acc": 0.25, "word_perplexity": 82237.9}
    rows = [
        {"task": name, "metric": name, "value": value, "standard_error": None, "model": 0}
        for name, value in metrics.items()
    ]
    bars(axes, rows, ["a"])
    assert [text.get_text() for text in axes.texts] == [" 25.0%", " 82,237.90"]


def test_an_average_needs_all_its_tasks() -> None:
    tasks = AVERAGES["paper's average"]
    assert len(tasks) == 10
    rows = [{"task": task, "value": number / 10, "main": True} for number, task in enumerate(tasks)]
    assert averages(rows) == {"paper's average": pytest.approx(0.45)}
    assert averages(rows[1:]) == {}


def test_a_share_of_right_answers_is_one_behind_any_filter() -> None:
    assert is_share({"task": "gsm8k", "metric": "exact_match,strict-match"})
    assert not is_share({"task": "wikitext", "metric": "word_perplexity"})


def test_without_lm_eval_the_extra_is_named(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fox-transformer\[lm-eval\]'"):
        harness([checkpoint], str(tmp_path))
