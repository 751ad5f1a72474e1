"""What does FoX (Pro) cost in training, against a Transformer (LLaMA) of equal size?

Both models train in the same trainer on the same batches (Lightning, FoxLM, TextData), a few steps
each in turn, so that a busy machine slows both; the ratio is taken within each round.

    python benchmarks/training_throughput.py --seq-lens 256 1024 --rounds 7
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fox import FoxConfig
from fox.train.data import TextData
from fox.train.lm import FoxLM

RESULTS = Path(__file__).parent / "results"
TOKENS_PER_STEP = 4096
VOCAB_SIZE = 2048
SIZE = {"vocab_size": VOCAB_SIZE, "hidden_size": 256, "num_hidden_layers": 4, "num_heads": 4}
PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
# The output gate's matrix is paid for by the MLP: 5 C^2 + 3 C F = 4 C^2 + 3 C (F + C / 3).
CONFIGS = {
    "FoX (Pro)": FoxConfig(**SIZE, **PRO, intermediate_size=768),
    "Transformer (LLaMA)": FoxConfig(
        **SIZE, fgate_type="none", use_rope=True, intermediate_size=856
    ),
}


class StepTimes(Callback):
    """Seconds of every step but the first, which builds the optimiser's state."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Waits for the device, then looks at the clock."""
        float(outputs["loss"])
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """The median step."""
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


def tokens_per_second(config: FoxConfig, data: TextData, steps: int) -> float:
    """Trains a new model for a few steps."""
    times = StepTimes()
    trainer = Trainer(
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
    )
    trainer.fit(FoxLM(config, warmup_tokens=10 * TOKENS_PER_STEP), datamodule=data)
    return TOKENS_PER_STEP / times.seconds()


def compare(seq_len: int, folder: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both models in turn; medians over the rounds."""
    batch_size = TOKENS_PER_STEP // seq_len
    data = TextData(VOCAB_SIZE, seq_len, batch_size, folder=folder)
    speeds: dict[str, list[float]] = {name: [] for name in CONFIGS}
    for number in range(rounds):
        for name in list(CONFIGS) if number % 2 else reversed(CONFIGS):
            speeds[name].append(tokens_per_second(CONFIGS[name], data, steps))
    pairs = zip(*speeds.values(), strict=True)
    ratios = [fox / transformer for fox, transformer in pairs]
    result = {
        "seq_len": seq_len,
        "batch_size": batch_size,
        "tokens_per_second": {name: statistics.median(speed) for name, speed in speeds.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }
    print(
        f"{seq_len} tokens: "
        + ", ".join(f"{name} {speed:.0f}" for name, speed in result["tokens_per_second"].items())
        + f" tokens/s, ratio {result['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )
    return result


def machine() -> dict[str, str | int]:
    """Hardware, versions and commit: what a number needs beside it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    commit = ["git", "describe", "--always", "--dirty"]
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": subprocess.run(
            commit, capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Tokens per second by row length, the ratio above each pair of bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for i, name in enumerate(CONFIGS):
        heights = [result["tokens_per_second"][name] for result in results]
        axes.bar([x + 0.4 * i for x in range(len(results))], heights, width=0.38, label=name)
    for x, result in enumerate(results):
        top = max(result["tokens_per_second"].values())
        axes.text(x + 0.2, top, f"ratio {result['ratio']:.2f}", ha="center", va="bottom")
    axes.set_xticks([x + 0.2 for x in range(len(results))], [str(r["seq_len"]) for r in results])
    axes.set_xlabel("tokens per row (4096 per step)")
    axes.set_ylabel("training tokens per second")
    axes.margins(y=0.15)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    parameters = {}
    for name, config in CONFIGS.items():
        model = FoxLM(config)
        model.configure_model()
        parameters[name] = sum(parameter.numel() for parameter in model.parameters())
    print(", ".join(f"{name}: {count:,} parameters" for name, count in parameters.items()))
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(n, folder, args.rounds, args.steps) for n in args.seq_lens]
    RESULTS.mkdir(exist_ok=True)
    report = {"machine": machine(), "parameters": parameters, "results": results}
    path = RESULTS / "training_throughput.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
