"""FoxLM: a FoX or Transformer language model as a LightningModule.

Legend: B rows of a batch, T tokens of a row.
"""

import dataclasses
import math
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fox.config import FoxConfig
from fox.model import FoxForCausalLM
from fox.train.data import TextData
from fox.train.optim import adamw, warmup_cosine
from fox.train.rows import IGNORED, Batch


class FoxLM(LightningModule):
    """Next-token prediction on the batches of TextData.

    The learning rate rises from 0 over warmup_tokens and falls along a cosine to
    min_learning_rate at the run's last token (trainer.max_steps).

    Args:
        config: the network; a checkpoint gives it as a dict of the same fields.
        learning_rate: at the peak.
        warmup_tokens: tokens until the peak; the paper has 2**28.
        min_learning_rate: at the end; the paper has 0.
        weight_decay: of matrices and the embedding.
    """

    net: FoxForCausalLM | None

    def __init__(
        self,
        config: FoxConfig,
        learning_rate: float = 2e-3,
        warmup_tokens: int = 2**28,
        min_learning_rate: float = 0.0,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__()
        self.config = FoxConfig(**config) if isinstance(config, dict) else config
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.warmup_tokens, self.weight_decay = warmup_tokens, weight_decay
        # Plain values only: a checkpoint must load with weights_only=True.
        self.save_hyperparameters(
            {
                "config": dataclasses.asdict(self.config),
                "learning_rate": learning_rate,
                "warmup_tokens": warmup_tokens,
                "min_learning_rate": min_learning_rate,
                "weight_decay": weight_decay,
            }
        )
        self.net = None

    def configure_model(self) -> None:
        """Builds the network; Lightning calls this before every fit, validate and test."""
        if self.net is None:
            self.net = FoxForCausalLM(self.config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule by tokens."""
        optimizer = adamw(self.network, self.learning_rate, self.weight_decay)
        total_tokens = self.trainer.max_steps * self.tokens_per_step
        floor = self.min_learning_rate / self.learning_rate

        def factor(step: int) -> float:
            tokens = step * self.tokens_per_step
            return warmup_cosine(tokens, self.warmup_tokens, total_tokens, floor)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    @property
    def network(self) -> FoxForCausalLM:
        """The network; there after configure_model."""
        assert self.net is not None, "call configure_model() first"
        return self.net

    @property
    def data(self) -> TextData:
        """The trainer's data."""
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, TextData), "FoxLM trains and validates on TextData"
        return data

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, over all devices."""
        return self.data.tokens_per_batch * self.trainer.accumulate_grad_batches

    def flops_per_token(self) -> float:
        """Of a forward and backward pass: 6 per weight, and attention over half the row.

        6 N + 6 L C T, N the parameters without the input embedding (a tied one is the head).
        """
        embedding = 0 if self.config.tie_word_embeddings else self.network.model.embeddings
        weights = sum(parameter.numel() for parameter in self.network.parameters())
        weights -= embedding.weight.numel() if isinstance(embedding, nn.Embedding) else 0
        attention = self.config.num_hidden_layers * self.config.hidden_size * self.data.seq_len
        return 6.0 * (weights + attention)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss over the predicted tokens of all devices' rows."""
        loss = self.network(**batch).loss
        if self.trainer.world_size > 1:
            # Gradients are averaged over devices, whose rows may hold unequal numbers of targets.
            count = _num_targets(batch).float()
            loss = loss * count / self.trainer.strategy.reduce(count.clone(), reduce_op="mean")
        self.log("train_loss", loss.detach(), sync_dist=True)
        self.log("learning_rate", self._optimizer().param_groups[0]["lr"])
        self.log("tokens", float((self.global_step + 1) * self.tokens_per_step))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the global norm, and logs it as it was before."""
        limit = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        self.log("gradient_norm", norm)

    def on_validation_epoch_start(self) -> None:
        """Empties the sums over the validation part."""
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.num_targets = torch.zeros((), dtype=torch.int64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the losses of the predicted tokens."""
        self.loss_sum += self.network(**batch, reduction="none").loss.double().sum().cpu()
        self.num_targets += _num_targets(batch).cpu()

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over tokens, exactly, and what follows from it."""
        sums = torch.stack([self.loss_sum, self.num_targets.double()])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        loss = float(sums[0] / sums[1])
        # Equal on all devices by now; sync_dist only keeps Lightning from warning.
        self.log("val_loss", loss, sync_dist=True)
        self.log("val_perplexity", math.exp(loss), sync_dist=True)
        self.log(
            "val_bits_per_byte", loss / math.log(2) / self.data.bytes_per_token, sync_dist=True
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the tokenizer in: a checkpoint can be used without the run's folder."""
        checkpoint["tokenizer"] = self.data.tokenizer.to_str()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network or another tokenizer.

        Raises:
            ValueError: naming what differs.
        """
        theirs = FoxConfig(**checkpoint["hyper_parameters"]["config"])
        for field in dataclasses.fields(FoxConfig):
            expected, got = getattr(theirs, field.name), getattr(self.config, field.name)
            if expected != got and field.name != "log_pruning_tolerance":
                raise ValueError(
                    f"expected the checkpoint's model.config.{field.name} = {expected}, "
                    f"but got {got}: a resumed run keeps its network"
                )
        if self._trainer is not None and checkpoint["tokenizer"] != self.data.tokenizer.to_str():
            raise ValueError(
                "expected the tokenizer that the checkpoint was trained with, but the data has "
                "another one: pass --data.tokenizer, the tokenizer.json of the checkpoint's run"
            )

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer


def _num_targets(batch: Batch) -> Tensor:
    return (batch["labels"][:, 1:] != IGNORED).sum()
