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
from torch import Tensor

from fox import FoxConfig
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.rows import Batch

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
FOX = FoxConfig(**SIZE, **PRO, intermediate_size=768)
TRANSFORMER = FoxConfig(**SIZE, fgate_type="none", use_rope=True, intermediate_size=856)


class UnmarkedLM(FoxLM):
    """Reads packed documents as one text, which lets a Transformer use plain causal attention."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Without document starts."""
        return super().training_step(batch | {"document_starts": None}, batch_idx)


MODELS: dict[str, tuple[type[FoxLM], FoxConfig]] = {
    "FoX (Pro)": (FoxLM, FOX),
    "Transformer (LLaMA)": (UnmarkedLM, TRANSFORMER),
    "Transformer (LLaMA), document starts": (FoxLM, TRANSFORMER),
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


def tokens_per_second(name: str, data: TextData, steps: int) -> float:
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
    kind, config = MODELS[name]
    trainer.fit(kind(config, warmup_tokens=10 * TOKENS_PER_STEP), datamodule=data)
    return TOKENS_PER_STEP / times.seconds()


def compare(seq_len: int, folder: str, rounds: int, steps: int) -> dict[str, Any]:
    """All models in turn; medians over the rounds, and FoX's speed over each other's."""
    batch_size = TOKENS_PER_STEP // seq_len
    data = TextData(VOCAB_SIZE, seq_len, batch_size, folder=folder)
    speeds: dict[str, list[float]] = {name: [] for name in MODELS}
    for number in range(rounds):
        for name in list(MODELS) if number % 2 else reversed(MODELS):
            speeds[name].append(tokens_per_second(name, data, steps))
    fox, *others = MODELS
    ratios = {
        name: [a / b for a, b in zip(speeds[fox], speeds[name], strict=True)] for name in others
    }
    for name, values in ratios.items():
        print(
            f"{seq_len} tokens: {fox} {statistics.median(speeds[fox]):.0f} tokens/s, {name} "
            f"{statistics.median(speeds[name]):.0f}, ratio {statistics.median(values):.3f} "
            f"({min(values):.3f} to {max(values):.3f})",
            flush=True,
        )
    return {
        "seq_len": seq_len,
        "batch_size": batch_size,
        "tokens_per_second": {name: statistics.median(speed) for name, speed in speeds.items()},
        "ratio_of_fox": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios_of_rounds": ratios,
    }


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
    """Tokens per second by row length, and FoX's speed over the others' above their bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for i, name in enumerate(MODELS):
        places = [x + (i - 1) * 0.27 for x in range(len(results))]
        heights = [result["tokens_per_second"][name] for result in results]
        axes.bar(places, heights, width=0.25, label=name)
        for place, height, result in zip(places, heights, results, strict=True):
            if name in result["ratio_of_fox"]:
                ratio = f"{result['ratio_of_fox'][name]:.2f}"
                axes.text(place, height, ratio, ha="center", va="bottom")
    axes.set_xticks(range(len(results)), [str(result["seq_len"]) for result in results])
    axes.set_xlabel("tokens per row (4096 per step)")
    axes.set_ylabel("training tokens per second")
    axes.margins(y=0.15)
    axes.set_title("FoX (Pro)'s speed over the Transformer's is above each bar", fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(MODELS), fontsize=8)
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
    for name, (kind, config) in MODELS.items():
        model = kind(config)
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
