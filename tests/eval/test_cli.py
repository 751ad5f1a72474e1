"""fox-eval: one end-to-end run per command, and one line per mistake."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from fox.eval.cli import COMMANDS, joined_lists, main
from fox.files import read_json
from fox.model import FoxForCausalLM


@pytest.fixture
def lightning_checkpoint(model: FoxForCausalLM, tokenizer: Tokenizer, tmp_path: Path) -> str:
    path = tmp_path / "last.ckpt"
    torch.save(
        {
            "state_dict": {f"net.{name}": value for name, value in model.state_dict().items()},
            "hyper_parameters": {"config": dataclasses.asdict(model.config)},
            "tokenizer": tokenizer.to_str(),
        },
        path,
    )
    return str(path)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_per_token_loss_compares_a_folder_and_a_lightning_checkpoint(
    checkpoint: str, lightning_checkpoint: str, corpus: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "results")
    checkpoints = ["--model", checkpoint, lightning_checkpoint]
    text = ["--files", corpus, "--split", "all", "--length", "100"]
    main(["per-token-loss", *checkpoints, "--output", output, *text])
    result = read_json(tmp_path / "results" / "per_token_loss.json")
    folder, file = result["models"]
    assert file["name"].endswith("/last.ckpt")
    assert folder["bins"] == file["bins"]
    assert folder["training_length"] == 64
    assert result["documents"] == 5
    assert result["rows"] > 5
    lines = (tmp_path / "results" / "per_token_loss.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 100
    assert (tmp_path / "results" / "per_token_loss.png").stat().st_size > 10_000


def test_needle_fills_its_grid_and_goes_on_where_it_stopped(
    checkpoint: str, llama: str, corpus: str, tmp_path: Path
) -> None:
    text = ["--files", corpus, "--split", "all", "--modes", "assignment", "--seeds", "2"]
    call = ["needle", "--model", checkpoint, llama, "--output", str(tmp_path), *text]
    main([*call, "--lengths", "64", "100", "--depths", "0", "0.5"])
    first = (tmp_path / "needle.jsonl").read_text()
    assert len(first.splitlines()) == 2 * 2 * 2 * 2 * 2
    main([*call, "--lengths", "64", "100", "--depths", "0", "0.5", "1"])
    second = (tmp_path / "needle.jsonl").read_text()
    assert second.startswith(first)
    assert len(second.splitlines()) == 2 * 2 * 3 * 2 * 2
    ours, other = read_json(tmp_path / "needle.json")["models"]
    assert len(ours["modes"]["assignment"]["cells"]) == 6
    assert other["modes"]["assignment"]["chance"]["chosen"] == 1 / 16
    assert len((tmp_path / "needle.csv").read_text().splitlines()) == 1 + 2 * 6
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    assert not (tmp_path / "needle_probability.png").exists()


def test_a_needle_of_ones_own_is_asked_of_any_model(
    checkpoint: str, llama: str, corpus: str, tmp_path: Path
) -> None:
    text = ["--files", corpus, "--split", "all", "--lengths", "200", "--new_tokens", "3"]
    words = ["--needle", "The river is silver.", "--question", "Why?", "--cue", "The river is"]
    call = ["needle", "--model", checkpoint, llama, "--output", str(tmp_path), *text, *words]
    main([*call, "--depths", "0", "1", "--modes", "standard", "easy", "assignment"])
    result = read_json(tmp_path / "needle.json")
    assert result["cue"] == "The river is"
    for model in result["models"]:
        for mode in ("standard", "easy"):
            assert model["modes"][mode]["mean"]["match"] == 0
            assert 0 < model["modes"][mode]["mean"]["probability"] < 0.1
    assert len((tmp_path / "needle.csv").read_text().splitlines()) == 1 + 2 * 3 * 2
    assert (tmp_path / "needle_probability.png").stat().st_size > 10_000


def test_ruler_fills_its_table_and_goes_on_where_it_stopped(
    checkpoint: str, llama: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--files", corpus, "--split", "all", "--lengths", "400", "500", "--new_tokens", "2"]
    call = ["ruler", "--model", checkpoint, llama, "--output", str(tmp_path), *text]
    main([*call, "--tasks", "single-1", "--samples", "1"])
    first = (tmp_path / "ruler.jsonl").read_text()
    main([*call, "--tasks", "single-1", "multivalue", "--samples", "2"])
    assert "multivalue" in capsys.readouterr().out
    second = (tmp_path / "ruler.jsonl").read_text()
    assert second.startswith(first)
    assert (len(first.splitlines()), len(second.splitlines())) == (2 * 2 * 2, 2 * 2 * 2 * 2 * 2)
    for model in read_json(tmp_path / "ruler.json")["models"]:
        assert [cell["length"] for cell in model["tasks"]["multivalue"]["cells"]] == [400, 500]
        depths = [cell["depth"] for cell in model["tasks"]["single-1"]["depth_cells"]]
        assert depths == [0.0, 0.25, 0.0, 0.25]
    assert len((tmp_path / "ruler.csv").read_text().splitlines()) == 1 + 2 * 2 * 2
    for name in ("ruler", "ruler_probability", "ruler_depths"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_samples_are_printed_and_written(
    checkpoint: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--files", corpus, "--split", "all", "--new_tokens", "5"]
    main(["samples", "--model", checkpoint, "--output", str(tmp_path), *text])
    samples = read_json(tmp_path / "samples.json")["samples"]
    assert len(samples) == 3
    assert samples[0]["document"] in capsys.readouterr().out


def test_summary_prints_what_the_other_commands_wrote(
    checkpoint: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--files", corpus, "--split", "all", "--length", "64"]
    main(["per-token-loss", "--model", checkpoint, "--output", str(tmp_path), *text])
    main(["summary", str(tmp_path)])
    assert "perplexity of the first 64" in capsys.readouterr().out


def test_the_installed_command_lists_its_subcommands_without_matplotlib() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from fox.eval.cli import main\n"
        "main(['--help'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in run.stdout for name in COMMANDS)


def test_a_plot_without_matplotlib_names_the_extra_and_leaves_the_numbers(
    checkpoint: str,
    corpus: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = ["--files", corpus, "--split", "all", "--length", "64"]
    call = ["per-token-loss", "--model", checkpoint, "--output", str(tmp_path), *text]
    assert "pip install 'fox-transformer[plots]'" in error_of(call, capsys)
    assert (tmp_path / "per_token_loss.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'expected "command" to be one of'),
        (["neddle"], "(did you mean needle?); see fox-eval --help"),
        (["needle", "--output", "x"], "required: --model"),
        (["recall", "--output", "x", "--stesp", "3"], "--stesp 3 (did you mean --steps?)"),
        (["needle", "--output", "x", "--seeds", "many"], "\"seeds\": Expected a <class 'int'>"),
        (["needle", "--output", "x", "--split", "some"], "Expected a typing.Literal"),
        (["summary", "nowhere"], "in nowhere, but found none"),
        (["samples", "--model", "./nowhere", "--output", "x"], "no checkpoint at ./nowhere"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(arguments, capsys)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("ruler", ["--samples", "0"], "task, length and sample, but got 9, 5 and 0"),
        ("ruler", ["--lengths", "99"], "longer than needles and questions"),
        ("needle", ["--seeds", "0"], "mode, length, depth and seed, but got 2, 11, 11 and 0"),
        ("needle", ["--lengths", "9999999"], "expected at least 9,999,999 tokens of text"),
    ],
)
def test_prompts_that_cannot_be_made_are_one_line(
    command: str,
    options: list[str],
    message: str,
    checkpoint: str,
    corpus: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = [command, "--model", checkpoint, "--output", str(tmp_path), "--files", corpus]
    assert message in error_of([*call, *options], capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "100000"], "expected a document of more than 100000 tokens"),
        (["--length", "0"], "length must be at least 1, but got 0"),
        (["--max_rows", "0"], "max_rows must be at least 1, but got 0"),
        (["--files", "nowhere/*.txt"], "expected files that match 'nowhere/*.txt'"),
    ],
)
def test_a_question_that_the_text_cannot_answer_is_one_line(
    options: list[str],
    message: str,
    checkpoint: str,
    corpus: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ["--files", corpus, "--split", "all"]
    call = ["per-token-loss", "--model", checkpoint, "--output", str(tmp_path), *text]
    assert message in error_of([*call, *options], capsys)


def test_a_checkpoint_without_config_or_tokenizer_is_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    call = ["per-token-loss", "--model", str(folder), "--output", str(tmp_path)]
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer: put the tokenizer.json" in error_of(call, capsys)
    (folder / "config.json").unlink()
    assert "config.json is missing" in error_of(call, capsys)


def test_models_with_different_tokenizers_are_not_drawn_together(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    both = ["--model", checkpoint, str(folder)]
    line = error_of(["per-token-loss", *both, "--output", str(tmp_path)], capsys)
    assert "losses per token compare only under one tokenizer" in line


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: str) -> None:
        """Stops.

        Args:
            run: any.
        """
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "summary", interrupted)
    assert "stopped" in error_of(["summary", str(tmp_path)], capsys)


def test_an_option_takes_several_values_until_the_next_one() -> None:
    given = ["needle", "--lengths", "64", "128", "--files", "a b.txt", "*.txt", "--seeds", "2"]
    joined = ["needle", "--lengths", "[64, 128]", "--files", '["a b.txt", "*.txt"]', "--seeds", "2"]
    assert joined_lists(given) == joined
    assert joined_lists(["needle", "--depths", "0", "-h"]) == ["needle", "--depths", "[0]", "-h"]
