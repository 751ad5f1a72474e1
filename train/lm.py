"""FoxLM: a FoX or Transformer language model as a LightningModule.

Legend: B rows of a batch, T tokens of a row.
"""

import dataclasses
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fox.config import FoxConfig
from fox.kernels import ContextSplit
from fox.kernels.checks import without_autocast
from fox.loss import IGNORED
from fox.model import FoxForCausalLM
from fox.train.data import TextData
from fox.train.optim import adamw, parameter_groups, renamed_state, warmup_cosine
from fox.train.rows import Batch
from fox.train.sharding import sharded
from fox.train.start import start_weights


class FoxLM(LightningModule):
    """Next-token prediction on the batches of TextData.

    The learning rate rises from 0 over warmup_tokens and falls along a cosine to
    min_learning_rate at the run's last token (trainer.max_steps).

    A batch is a whole optimiser step. Its rows on a device go through the network in passes of
    micro_batch_tokens, so that the number of passes follows from the number of devices; the loss is
    the mean over all the step's predicted tokens, however they are divided.

    Args:
        config: the network; a checkpoint gives it as a dict of the same fields.
        learning_rate: at the peak.
        warmup_tokens: tokens until the peak; the paper has 2**28.
        min_learning_rate: at the end; the paper has 0.
        weight_decay: of matrices and the embedding.
        micro_batch_tokens: of one pass on a device, which decides the memory for activations; one
            row at least. None: all rows in one pass.
        activation_checkpointing: keep only the input of each block, and compute the rest again for
            the gradients: less memory for a quarter more time.
        compile_blocks: torch.compile every block.
        init_from: a checkpoint folder or file whose weights the run begins with; None draws them.
        context_parallel: devices that share every row, each with a part of its tokens, for rows
            that are too long for one; their number divides that of all devices.
    """

    net: FoxForCausalLM | None

    def __init__(
        self,
        config: FoxConfig,
        learning_rate: float = 2e-3,
        warmup_tokens: int = 2**28,
        min_learning_rate: float = 0.0,
        weight_decay: float = 0.1,
        micro_batch_tokens: int | None = None,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
        context_parallel: int = 1,
    ) -> None:
        super().__init__()
        self.config = FoxConfig(**config) if isinstance(config, dict) else config
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.warmup_tokens, self.weight_decay = warmup_tokens, weight_decay
        self.micro_batch_tokens = micro_batch_tokens
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.init_from = init_from
        self.context_parallel = context_parallel
        self.context: ContextSplit | None = None
        # Plain values only: a checkpoint must load with weights_only=True.
        self.save_hyperparameters(
            {
                "config": dataclasses.asdict(self.config),
                "learning_rate": learning_rate,
                "warmup_tokens": warmup_tokens,
                "min_learning_rate": min_learning_rate,
                "weight_decay": weight_decay,
                "micro_batch_tokens": micro_batch_tokens,
                "activation_checkpointing": activation_checkpointing,
                "compile_blocks": compile_blocks,
                "init_from": init_from,
            }
        )
        self.net = None

    def setup(self, stage: str) -> None:
        """Refuses what we do in another way; groups the devices that share rows.

        Raises:
            ValueError: a setting of the trainer is of no effect here, the strategy would write a
                checkpoint in parts, or devices or tokens cannot be divided by context_parallel.
        """
        for name, allowed, why in (
            (
                "accumulate_grad_batches",
                (1,),
                "data.batch_size counts the rows of a whole step, and model.micro_batch_tokens "
                "divides them into passes",
            ),
            ("gradient_clip_algorithm", ("norm", None), "the global norm is what is clipped"),
            (
                "precision",
                ("bf16-mixed", "bf16-true", "32-true", "64-true"),
                "float16 needs scaled gradients, which would be clipped as if they were not",
            ),
        ):
            value = getattr(self.trainer, name)
            if value not in allowed:
                raise ValueError(f"expected trainer.{name} = {allowed[0]}, but got {value}: {why}")
        if getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            raise ValueError(
                "expected a strategy that writes one whole checkpoint, but got "
                "ModelParallelStrategy(save_distributed_checkpoint=True): pass "
                "--trainer.strategy fsdp2"
            )
        W, devices, T = self.context_parallel, self.trainer.world_size, self.data.seq_len
        if W < 1 or devices % W or (W > 1 and T % (2 * W)):
            raise ValueError(
                f"expected model.context_parallel to divide the number of devices, {devices}, and "
                f"its double to divide data.seq_len, {T}, as each device takes two equal parts of "
                f"a row, but got {W}"
            )
        if W > 1:
            group, _ = dist.new_subgroups(W)
            self.context = ContextSplit(group)

    def configure_model(self) -> None:
        """Builds the network; Lightning calls this before every fit, validate and test."""
        if self.net is not None:
            return
        strategy = self._trainer.strategy if self._trainer is not None else None
        if isinstance(strategy, ModelParallelStrategy):
            self.net = sharded(self.config, strategy.root_device)
        else:
            self.net = FoxForCausalLM(self.config)
        self.net.model.gradient_checkpointing = self.activation_checkpointing
        if self.compile_blocks:
            for block in self.net.model.layers:
                block.compile()  # in place: torch.compile(block) would rename the parameters

    def on_fit_start(self) -> None:
        """Takes the weights to begin with; a run that goes on has its own by now."""
        if self.init_from is not None and self.trainer.ckpt_path is None:
            start_weights(self.network, self.config, self.data.tokenizer, self.init_from)

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

    def on_train_start(self) -> None:
        """Gives a run that goes on the rates of its own settings, instead of the checkpoint's."""
        if self.trainer.ckpt_path is None:
            return
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [self.learning_rate for _ in schedule.base_lrs]
        rate = self.learning_rate * schedule.lr_lambdas[0](self.global_step)
        weight_decays = (self.weight_decay, 0.0)  # of parameter_groups
        for group, decay in zip(schedule.optimizer.param_groups, weight_decays, strict=True):
            group["lr"], group["weight_decay"] = rate, decay

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
        return self.data.tokens_per_batch

    def flops_per_token(self) -> float:
        """Of a forward and backward pass: 6 per weight, and attention over half the row.

        6 N + 6 L C T, N the parameters without the input embedding (a tied one is the head).
        """
        embedding = 0 if self.config.tie_word_embeddings else self.network.model.embeddings
        weights = sum(parameter.numel() for parameter in self.network.parameters())
        weights -= embedding.weight.numel() if isinstance(embedding, nn.Embedding) else 0
        attention = self.config.num_hidden_layers * self.config.hidden_size * self.data.seq_len
        return 6.0 * (weights + attention)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The gradients of the mean loss over the predicted tokens of all devices' rows.

        Returns:
            loss: the last pass's part, for Lightning's backward; the other passes had theirs.
            token_losses: (B, T) float32, of this device's rows, 0 where nothing is predicted;
                devices that share rows have the same.
        """
        batch = self._own(batch)
        num_targets = self._sum_over_devices(_num_targets(batch))
        # Gradients are averaged over devices: each gives its share of the mean times their number.
        scale = self.trainer.world_size / num_targets
        self._optimizer().zero_grad()
        losses, passes = [], self._passes(batch)
        for number, part in enumerate(passes, 1):
            loss, token_losses = self._losses(part)
            losses.append(token_losses)
            loss = loss * scale
            if number < len(passes):
                with without_autocast(self.device):
                    self.trainer.strategy.backward(loss, None)
        token_losses = torch.cat(losses)
        loss_sum = self._sum_over_devices(token_losses.sum())
        self.log("train_loss", loss_sum / num_targets)
        self.log("learning_rate", self._optimizer().param_groups[0]["lr"])
        self.log("tokens", float((self.global_step + 1) * self.tokens_per_step))
        return {"loss": loss, "token_losses": self._whole_rows(token_losses)}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: training_step does, before the first pass."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the global norm, and logs it as it was before."""
        limit = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.log("gradient_norm", norm)

    def on_validation_epoch_start(self) -> None:
        """Empties the sums over the validation part."""
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.num_targets = torch.zeros((), dtype=torch.int64)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds the losses of the predicted tokens.

        Returns:
            token_losses: (B, T) as in training_step.
        """
        batch = self._own(batch)
        token_losses = torch.cat([self._losses(part)[1] for part in self._passes(batch)])
        self.loss_sum += token_losses.double().sum().cpu()
        self.num_targets += _num_targets(batch).cpu()
        return {"token_losses": self._whole_rows(token_losses)}

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over tokens, exactly, and what follows from it."""
        sums = torch.stack([self.loss_sum, self.num_targets.double()])
        sums = self._sum_over_devices(sums.to(self.device))
        loss = float(sums[0] / sums[1])
        # Equal on all devices by now; sync_dist only keeps Lightning from warning.
        self.log("val_loss", loss, sync_dist=True)
        self.log("val_perplexity", math.exp(loss), sync_dist=True)
        self.log(
            "val_bits_per_byte", loss / math.log(2) / self.data.bytes_per_token, sync_dist=True
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the tokenizer in, to need no run's folder, and names the optimiser's states.

        Lightning numbers them in two ways, by strategy; by their names any strategy can go on.
        """
        checkpoint["tokenizer"] = self.data.tokenizer.to_str()
        if not self.trainer.is_global_zero:  # which alone writes
            return
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            names = [name for name, _ in self.named_parameters()]
        else:
            names = self._optimized()
        states = checkpoint["optimizer_states"]
        checkpoint["optimizer_states"] = [renamed_state(x, dict(enumerate(names))) for x in states]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network or tokenizer; numbers the optimiser's states.

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
        if self._trainer is None:
            return
        if checkpoint["tokenizer"] != self.data.tokenizer.to_str():
            raise ValueError(
                "expected the tokenizer that the checkpoint was trained with, but the data has "
                "another one: pass --data.tokenizer, the tokenizer.json of the checkpoint's run"
            )
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):  # which knows the names
            numbers = {name: number for number, name in enumerate(self._optimized())}
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [renamed_state(x, numbers) for x in states]

    def _optimized(self) -> list[str]:
        """The names of the parameters in the order of the optimiser's groups."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        groups = parameter_groups(self.network, self.weight_decay)
        return [names[id(parameter)] for group in groups for parameter in group["params"]]

    def _own(self, batch: Batch) -> Batch:
        """This device's tokens, with labels that belong to the position which predicts them."""
        batch = batch | {"labels": F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)}
        if self.context is None:
            return batch
        return {name: self.context.part(x) for name, x in batch.items()}

    def _losses(self, part: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses of one pass, and what it sums, (B, T) without gradient."""
        out = self.network(
            **part, context=self.context, shift_labels=False, reduction="sum", return_logits=False
        )
        return out.loss, out.token_losses

    def _passes(self, batch: Batch) -> list[Batch]:
        """The rows in groups of at most micro_batch_tokens."""
        rows, T = batch["input_ids"].shape
        size = rows if self.micro_batch_tokens is None else max(1, self.micro_batch_tokens // T)
        groups = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, group, strict=True)) for group in groups]

    def _whole_rows(self, x: Tensor) -> Tensor:
        return x if self.context is None else self.context.whole(x)

    def _sum_over_devices(self, tensor: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return tensor
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer


def _num_targets(aligned: Batch) -> Tensor:
    return (aligned["labels"] != IGNORED).sum()
