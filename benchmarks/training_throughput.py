"""What does FoX cost in training on this machine, against transformers' Llama of equal size?

All models have the same number of parameters within 1 % and train in the same trainer on the same
batches with the same optimiser (Lightning, FoxLM, TextData, AdamW), a few steps each in turn, so
that a busy machine slows all; ratios are taken within each round, and medians are over rounds.
Rows are read as one text, without document starts, as a plain Transformer reads them.

FoX runs exactly, and with log_pruning_tolerance = -10. Both depend on the gates, as weights that
vanish in float32 are skipped without any tolerance, too:
  mixed    time constants from 2 to 8192 tokens, log-spaced over the heads: 2, 32, 512, 8192
  initial  as FoxConfig starts them: every head forgets within a few tokens, so nearly all of a
           long row is skipped; speeds of the first steps of a run, not of a trained model

    python benchmarks/training_throughput.py --seq-lens 512 4096 --rounds 5

A row length that the output file holds already, from the same machine and commit, is not repeated.
"""

import argparse
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
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fox import FoxConfig
from fox.files import read_json, whole_file, write_json
from fox.model import CausalLMOutput
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.rows import Batch

RESULTS = Path(__file__).parent / "results"
TOKENS_PER_STEP = 4096
LEARNING_RATE = 1e-4  # so low that gates stay what they are
SIZE = {"vocab_size": 2048, "hidden_size": 256, "num_hidden_layers": 4, "num_heads": 4}
PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
    # The output gate's matrix is paid for by the MLP: 5 C^2 + 3 C F = 4 C^2 + 3 C (F + C / 3).
    "intermediate_size": 768,
}
LLAMA = {"intermediate_size": 856}
PRUNED: dict[str, Any] = {"log_pruning_tolerance": -10.0}
MIXED: dict[str, Any] = {"decay_time_min": 2.0, "decay_time_max": 8192.0}
PEER = "transformers Llama"
MODELS: dict[str, FoxConfig] = {
    PEER: FoxConfig(**SIZE, **LLAMA, fgate_type="none", use_rope=True),
    "Transformer (LLaMA)": FoxConfig(**SIZE, **LLAMA, fgate_type="none", use_rope=True),
}
for block, parts in (("LLaMA", LLAMA), ("Pro", PRO)):
    for gates, times in (("mixed", MIXED), ("initial", {})):
        config = FoxConfig(**SIZE, **parts, **times)
        MODELS[f"FoX ({block}), {gates} gates"] = config
        MODELS[f"FoX ({block}), {gates} gates, pruned"] = config.replace(**PRUNED)


class UnmarkedLM(FoxLM):
    """Reads packed documents as one text, which lets a Transformer use plain causal attention."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Without document starts."""
        kept = {name: value for name, value in batch.items() if name != "document_starts"}
        return super().training_step(kept, batch_idx)


class Llama(nn.Module):
    """transformers' Llama with the sum of its losses, as transformers computes them."""

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_heads,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            )
        )

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        context: None,
        shift_labels: bool,
        reduction: str,
        return_logits: bool,
    ) -> CausalLMOutput:
        """What FoxForCausalLM returns for the options that FoxLM passes."""
        assert (context, shift_labels, reduction, return_logits) == (None, False, "sum", False)
        logits = self.llama(input_ids, use_cache=False).logits.float()
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        )
        return CausalLMOutput(None, losses.sum(), token_losses=losses.detach().view(labels.shape))


class LlamaLM(UnmarkedLM):
    """The peer in our trainer."""

    def configure_model(self) -> None:
        """Builds it."""
        if self.net is None:
            self.net = Llama(self.config)  # type: ignore[assignment]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """FoxLM's AdamW; its parameter groups know only our norms."""
        weights = list(self.network.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True
        )


def new_model(name: str) -> FoxLM:
    kind = LlamaLM if name == PEER else UnmarkedLM
    return kind(MODELS[name], LEARNING_RATE, warmup_tokens=TOKENS_PER_STEP)


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
    trainer.fit(new_model(name), datamodule=data)
    return TOKENS_PER_STEP / times.seconds()


def compare(seq_len: int, folder: str, rounds: int, steps: int) -> dict[str, Any]:
    """All models in turn; medians over the rounds, and their speed over the peer's."""
    batch_size = max(1, TOKENS_PER_STEP // seq_len)
    data = TextData(SIZE["vocab_size"], seq_len, batch_size, folder=folder)
    speeds: dict[str, list[float]] = {name: [] for name in MODELS}
    for number in range(rounds):
        for name in list(MODELS) if number % 2 else reversed(MODELS):
            speeds[name].append(tokens_per_second(name, data, steps))
        print(f"{seq_len} tokens: round {number + 1} of {rounds}", flush=True)
    rows = []
    for name, speed in speeds.items():
        ratios = [a / b for a, b in zip(speed, speeds[PEER], strict=True)]
        rows.append(
            {
                "model": name,
                "tokens_per_second": statistics.median(speed),
                "over_peer": statistics.median(ratios),
                "over_peer_of_rounds": ratios,
            }
        )
        print(
            f"{seq_len} tokens: {name}: {statistics.median(speed):.0f} tokens/s, "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )
    return {"seq_len": seq_len, "batch_size": batch_size, "rounds": rounds, "rows": rows}


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


def parameters() -> dict[str, int]:
    """How many each model has."""
    counts = {}
    for name in MODELS:
        model = new_model(name)
        model.configure_model()
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) <= 1.01 * min(counts.values())
    return counts


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """A panel per row length: each model's speed over the peer's, beside it its tokens/s."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1,
        len(results),
        figsize=(2.6 + 3.2 * len(results), 4.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, result in zip(panels[0], results, strict=True):
        rows = result["rows"]
        bars = axes.barh(
            [row["model"] for row in rows],
            [row["over_peer"] for row in rows],
            color=["0.6" if "FoX" not in row["model"] else "C0" for row in rows],
        )
        told = [f"{row['over_peer']:.2f}  ({row['tokens_per_second']:,.0f}/s)" for row in rows]
        axes.bar_label(bars, told, padding=3, fontsize=8)
        axes.axvline(1, color="0.3", linewidth=0.8)
        axes.margins(x=0.45)
        axes.set_title(f"rows of {result['seq_len']:,} tokens", fontsize=10)
    panels[0, 0].invert_yaxis()
    figure.supxlabel("training speed over transformers' Llama's (tokens/s)", fontsize=9)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "training_throughput.json")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    report = {"machine": machine(), "parameters": parameters()}
    known = read_json(args.output) if args.output.is_file() else {}
    done = known["results"] if report.items() <= known.items() else []
    with tempfile.TemporaryDirectory() as folder:
        for seq_len in args.seq_lens:
            if all(result["seq_len"] != seq_len for result in done):
                done = [*done, compare(seq_len, folder, args.rounds, args.steps)]
                write_json(args.output, report | {"results": done})
    plot(done, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
