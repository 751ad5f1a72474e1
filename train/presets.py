"""The paper's runs, out of one table: every model at every size, with its own learning rate."""

import dataclasses
from typing import Any

from fox.config import FoxConfig

MODELS = ("fox-pro", "fox-llama", "transformer-pro", "transformer-llama")
SEQ_LEN, BATCH_SIZE = 2**14, 32
WARMUP_TOKENS = 2**28
# By size and tokens: steps, the peak learning rates of MODELS, and the tokens of one pass (ours; by
# estimate, for devices of 80 GB).
RUNS: dict[str, tuple[int, tuple[float, ...], int]] = {
    "125m-2.7b": (5_120, (2e-3, 2e-3, 2e-3, 2e-3), 2 * SEQ_LEN),
    "360m-7.5b": (14_336, (2e-3, 2e-3, 2e-3, 2e-3), SEQ_LEN),
    "760m-16b": (30_720, (1e-3, 1e-3, 1e-3, 1e-3), 2 * SEQ_LEN),
    "760m-48b": (92_160, (2e-3, 1e-3, 1e-3, 5e-4), 2 * SEQ_LEN),
}


def paper_runs() -> list[str]:
    """Their names, such as "fox-pro-760m-48b"."""
    return [f"{model}-{run}" for model in MODELS for run in RUNS]


def paper_run(name: str) -> dict[str, Any]:
    """The settings of one of the paper's runs, for fox-train; the text is left to choose.

    Source: Lin et al., Forgetting Transformer, ICLR 2025, and the official experiment configs.
    """
    model, size, tokens = name.rsplit("-", 2)
    steps, learning_rates, pass_tokens = RUNS[f"{size}-{tokens}"]
    config = dataclasses.asdict(FoxConfig.preset(f"{model}-{size}"))
    vocab_size = config.pop("vocab_size")  # the data's, to which the model's is linked
    return {
        "model": {
            "config": config,
            "learning_rate": learning_rates[MODELS.index(model)],
            "warmup_tokens": WARMUP_TOKENS,
            "min_learning_rate": 0.0,
            "weight_decay": 0.1,
            "micro_batch_tokens": pass_tokens,
            "activation_checkpointing": size == "760m",
        },
        "data": {"vocab_size": vocab_size, "seq_len": SEQ_LEN, "batch_size": BATCH_SIZE},
        "trainer": {
            "default_root_dir": f"runs/{name}",
            "max_steps": steps,
            "val_check_interval": 1024,  # divides the steps of every run: the end is validated
            "precision": "bf16-mixed",
        },
    }
