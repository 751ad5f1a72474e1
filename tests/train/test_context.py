"""Training with rows that are split over devices: 4 gloo processes, each pair with its own rows.

The file is a test module and the script of a rank, as tests/kernels/test_context.py.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from fox import FoxConfig
from fox.train.data import TextData
from fox.train.lm import FoxLM

CONFIG = FoxConfig(
    vocab_size=280,
    hidden_size=16,
    num_hidden_layers=2,
    num_heads=2,
    intermediate_size=32,
    use_k_shift=True,
    use_v_shift=True,
    use_rope=True,
)


class Record(Callback):
    """What the metrics are after every step, and the losses of single tokens."""

    def __init__(self):
        self.losses, self.norms, self.counted = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.norms.append(float(trainer.callback_metrics["gradient_norm"]))
        predicted = outputs["token_losses"][:, :-1] != 0
        self.counted.append(torch.equal(predicted, batch["labels"][:, 1:] != -100))


def run(devices, strategy, **settings):
    """Three steps and two validations."""
    seed_everything(0, verbose=False)
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=3,
        max_epochs=-1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    model = FoxLM(CONFIG, learning_rate=0.01, warmup_tokens=96, **settings)
    data = TextData(280, seq_len=24, batch_size=4, files="corpus/*.txt", folder="tokens")
    trainer.fit(model, data)
    validation = float(trainer.callback_metrics["val_loss"])
    return {"found": [*record.losses, *record.norms, validation], "counted": all(record.counted)}


def refusal(**settings):
    try:
        run(1, "auto", **settings)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def runs(rank, folder):
    found = {}
    if rank == 0:
        from conftest import write_corpus  # the script's folder is on its path

        write_corpus(folder / "corpus")
        found = {"alone": run(1, "auto"), "refusal": refusal(context_parallel=2)}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            (folder / "free").write_text(str(free.getsockname()[1]))
        (folder / "free").rename(folder / "port")
    while not (folder / "port").exists():
        time.sleep(0.05)
    # Lightning then knows that its processes were started by somebody else.
    port = (folder / "port").read_text()
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    found["ddp"] = run(4, "ddp", context_parallel=2)
    found["fsdp2"] = run(
        4, "fsdp2", context_parallel=2, micro_batch_tokens=12, activation_checkpointing=True
    )
    return found


@pytest.fixture(scope="module")
def ranks(run_ranks):
    """What every rank found."""
    return run_ranks(__file__, 4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_losses_and_gradient_norms_equal_those_of_one_process(ranks, strategy):
    alone = ranks[0]["alone"]["found"]
    assert alone[2] < alone[0]
    for found in ranks:
        assert found[strategy]["found"] == pytest.approx(alone, abs=2e-5)


def test_every_device_has_the_losses_of_its_whole_rows(ranks):
    assert all(found[strategy]["counted"] for found in ranks for strategy in ("ddp", "fsdp2"))


def test_devices_that_cannot_be_grouped_are_refused(ranks):
    words = "expected model.context_parallel to divide the number of devices, 1, and its double"
    assert words in ranks[0]["refusal"]


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.chdir(folder)
    (folder / f"{rank}.json").write_text(json.dumps(runs(rank, folder)))
