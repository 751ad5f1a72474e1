"""The presets of the paper's runs: its steps, tokens, learning rates and parameter counts."""

from io import StringIO

import pytest
import torch
import yaml

from fox import FoxConfig, FoxForCausalLM
from fox.train.cli import main
from fox.train.presets import paper_run, paper_runs

# LightningCLI calls what jsonargparse has renamed.
pytestmark = [
    pytest.mark.filterwarnings(rf"ignore:\s*{start}")
    for start in ("By default only one Jsonarg", "``instantiate_classes``", "skip_none parameter")
]
TOKENS = {
    "2.7b": 2_684_354_560,
    "7.5b": 7_516_192_768,
    "16b": 16_106_127_360,
    "48b": 48_318_382_080,
}
MILLIONS = {  # of parameters
    "fox-llama-125m": 162.3,
    "fox-pro-125m": 162.5,
    "transformer-llama-125m": 162.1,
    "transformer-pro-125m": 162.4,
    "fox-llama-360m": 411.7,
    "fox-pro-360m": 418.8,
    "transformer-llama-360m": 411.3,
    "transformer-pro-360m": 418.4,
    "fox-llama-760m": 834.8,
    "fox-pro-760m": 836.7,
    "transformer-llama-760m": 833.9,
    "transformer-pro-760m": 834.9,
}
LARGE = {  # the peak learning rates at 48 B tokens, where they differ
    "fox-pro": 2e-3,
    "fox-llama": 1e-3,
    "transformer-pro": 1e-3,
    "transformer-llama": 5e-4,
}


def test_every_model_has_a_run_of_every_size():
    assert len(set(paper_runs())) == 16


@pytest.mark.parametrize("name", paper_runs())
def test_a_run_has_the_papers_model_tokens_and_learning_rate(name):
    run = paper_run(name)
    model, size, tokens = name.rsplit("-", 2)
    config = FoxConfig(**run["model"]["config"], vocab_size=run["data"]["vocab_size"])
    with torch.device("meta"):
        parameters = sum(p.numel() for p in FoxForCausalLM(config).parameters())
    assert round(parameters / 1e6, 1) == MILLIONS[f"{model}-{size}"]
    assert config.vocab_size == 50_257
    tokens_per_step = run["data"]["seq_len"] * run["data"]["batch_size"]
    assert tokens_per_step == 524_288
    assert run["trainer"]["max_steps"] * tokens_per_step == TOKENS[tokens]
    assert run["trainer"]["max_steps"] % run["trainer"]["val_check_interval"] == 0
    assert run["model"]["warmup_tokens"] == 512 * tokens_per_step
    rates = {"125m": 2e-3, "360m": 2e-3, "760m": 1e-3}
    assert run["model"]["learning_rate"] == (LARGE[model] if tokens == "48b" else rates[size])
    assert run["model"]["activation_checkpointing"] == (size == "760m")
    assert run["trainer"]["precision"] == "bf16-mixed"


def test_a_preset_composes_and_the_command_line_wins(capsys):
    changes = ["--model.micro_batch_tokens", "16384", "--data.tokenizer", "gpt2.json"]
    changes += ["--trainer.strategy", "fsdp2", "--print_config"]
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", "preset:transformer-pro-760m-16b", *changes])
    assert not exit_info.value.code
    config = yaml.safe_load(StringIO(capsys.readouterr().out))
    expected = paper_run("transformer-pro-760m-16b")
    expected["model"]["micro_batch_tokens"] = 16384
    for part in ("model", "data", "trainer"):
        assert config[part].items() >= expected[part].items()
    assert config["trainer"]["strategy"] == "fsdp2"
    assert config["data"]["tokenizer"] == "gpt2.json"
