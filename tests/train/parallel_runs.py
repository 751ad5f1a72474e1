"""One of two processes that train the same tiny models in several ways; see test_parallel.py.

    python parallel_runs.py RANK PORT     in a folder with corpus/*.txt; writes runs.json

Process 0 also trains alone, as the standard that the others are compared with.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything

from fox import FoxConfig
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.sharding import gathered

CONFIG = FoxConfig(
    vocab_size=280,
    hidden_size=16,
    num_hidden_layers=2,
    num_heads=2,
    intermediate_size=32,
    use_k_shift=True,
    use_v_shift=True,
    qk_norm=True,
    decay_time_min=4.0,
    decay_time_max=64.0,
)
TIED = CONFIG.replace(tie_word_embeddings=True, fgate_type="fixed")


class Record(Callback):
    """What a run finds at every step, and a checkpoint after the second."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: dict[str, list[float]] = {"loss": [], "norm": [], "validation": []}

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        """The gradients of every pass are computed outside of autocast."""
        assert not torch.is_autocast_enabled("cpu")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss and the norm; the losses of single tokens must be those of the batch."""
        counted = batch["labels"][:, 1:] != -100
        assert torch.equal(outputs["token_losses"][:, :-1] != 0, counted)
        self.found["loss"].append(float(trainer.callback_metrics["train_loss"]))
        self.found["norm"].append(float(trainer.callback_metrics["gradient_norm"]))
        if trainer.global_step == 2:
            trainer.save_checkpoint(f"{self.name}.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keeps the loss."""
        self.found["validation"].append(float(trainer.callback_metrics["val_loss"]))


def run(
    name: str,
    config: FoxConfig = CONFIG,
    strategy: str = "auto",
    precision: Any = "32-true",
    resume: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Four steps: losses, gradient norms and validations, and the weights at the end."""
    seed_everything(0, verbose=False)
    record = Record(name)
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        precision=precision,
        max_steps=4,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    model = FoxLM(config, learning_rate=0.01, warmup_tokens=96, **settings)
    data = TextData(280, seq_len=16, batch_size=12, files="corpus/*.txt", folder="tokens")
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    weights = {}
    network = gathered(model.network)
    if trainer.is_global_zero:
        weights = {key: value.tolist() for key, value in network.state_dict().items()}
    return record.found | {"weights": weights}


def alone() -> dict[str, Any]:
    """What one process finds."""
    return {
        "one": run("one"),
        "passes": run("passes", micro_batch_tokens=5 * 16),  # 5 + 5 + 2 rows
        "checkpointed": run("checkpointed", activation_checkpointing=True),
        "tied": run("tied", TIED),
        "16 bit": run("16 bit", precision="bf16-mixed"),
        "16 bit passes": run("16 bit passes", precision="bf16-mixed", micro_batch_tokens=5 * 16),
    }


def together() -> dict[str, Any]:
    """What two processes find."""
    passes = {"micro_batch_tokens": 4 * 16}
    return {
        "ddp": run("ddp", strategy="ddp"),
        "ddp passes": run("ddp passes", strategy="ddp", **passes),
        "ddp resumed": run("ddp resumed", strategy="ddp", resume="one.ckpt"),
        "fsdp2": run("fsdp2", strategy="fsdp2"),
        "fsdp2 passes": run(
            "fsdp2 passes", strategy="fsdp2", activation_checkpointing=True, **passes
        ),
        "fsdp2 tied": run("fsdp2 tied", TIED, "fsdp2"),
        "fsdp2 16 bit": run("fsdp2 16 bit", strategy="fsdp2", precision="bf16-mixed"),
        "fsdp2 resumed": run("fsdp2 resumed", strategy="fsdp2", resume="fsdp2.ckpt"),
        "fsdp2 from one": run("fsdp2 from one", strategy="fsdp2", resume="one.ckpt"),
    }


if __name__ == "__main__":
    rank, port = sys.argv[1:]
    torch.set_num_threads(1)
    found = alone() if rank == "0" else {}
    # Lightning then knows that its processes were started by somebody else.
    os.environ |= {"LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    found |= together()
    if rank == "0":
        Path("runs.json").write_text(json.dumps(found))
