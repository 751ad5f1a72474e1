"""FoX and Transformer language models, LLaMA and Pro.

Legend: B batch, T time, C width, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fox.cache import FoxCache, LayerCache
from fox.config import FoxConfig
from fox.generation import beam_search, generate, stream
from fox.kernels import ContextSplit
from fox.layers import ForgettingAttention, HeadRMSNorm, RMSNorm, SwiGLU
from fox.loss import IGNORED, linear_cross_entropy


@dataclass
class CausalLMOutput:
    """What FoxForCausalLM returns.

    Attributes:
        logits: (B, T, V), of the next token; None with return_logits=False.
        loss: scalar, or (B, T) unreduced; float32; None without labels.
        token_losses: (B, T) float32 without gradient, 0 where not counted; None without labels.
        cache: the cache that was passed in, updated; None without.
    """

    logits: Tensor | None
    loss: Tensor | None = None
    token_losses: Tensor | None = None
    cache: FoxCache | None = None


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = ForgettingAttention(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            fgate_type=config.fgate_type,
            decay_time_min=config.decay_time_min,
            decay_time_max=config.decay_time_max,
            use_rope=config.use_rope,
            rope_base=config.rope_base,
            use_k_shift=config.use_k_shift,
            use_v_shift=config.use_v_shift,
            qk_norm=config.qk_norm,
            qk_norm_share_param_across_head=config.qk_norm_share_param_across_head,
            use_output_norm=config.use_output_norm,
            use_output_gate=config.use_output_gate,
            ogate_act=config.ogate_act,
            norm_eps=config.norm_eps,
            log_pruning_tolerance=config.log_pruning_tolerance,
            qkv_bias=config.qkv_bias,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_dim, config.hidden_act)

    def forward(
        self,
        x: Tensor,
        *,
        seq_start: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: LayerCache | None = None,
        context: ContextSplit | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); the arguments are ForgettingAttention's."""
        x = x + self.attn(
            self.attn_norm(x),
            seq_start=seq_start,
            document_starts=document_starts,
            cache=cache,
            context=context,
        )
        return x + self.mlp(self.mlp_norm(x))


class FoxModel(nn.Module):
    """Token ids to features: embedding, blocks and the last norm.

    Attributes:
        gradient_checkpointing: in training, keep only the input of each block, and compute what is
            inside again for the gradients; False when made.
    """

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every matrix from N(0, initializer_range); norms 1, biases by the decay times."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm | HeadRMSNorm):
                nn.init.ones_(module.weight)
        for module in self.modules():  # after the projections, whose biases are now 0
            if isinstance(module, ForgettingAttention):
                module.reset_fgate_bias()
        if self.config.pad_token_id is not None:
            with torch.no_grad():
                self.embeddings.weight[self.config.pad_token_id] = 0

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_starts: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: FoxCache | None = None,
        context: ContextSplit | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, C) features.

        Args:
            input_ids: (B, T) int64.
            inputs_embeds: (B, T, C), in the place of input_ids and their embeddings.
            attention_mask: (B, T), 1 for tokens and 0 for padding, which may stand on both sides of
                a row; with a cache it is the mask of this chunk, and rows may have no token.
                Outputs at padding are arbitrary.
            document_starts: (B, T) bool, True at the first token of each packed document: attention
                and token shift do not reach across.
            cu_seqlens: (S + 1,) int, for one flat row (1, T): where documents begin, and T.
            cache: decode state from `new_cache`; the tokens continue its text, and it is updated in
                place. Only without gradients.
            context: the sequences are split over the ranks of a process group, which call together:
                input_ids and document_starts hold what context.part gives this rank. The sum of
                the ranks' gradients is that of one process. Without mask, cu_seqlens and cache.

        Raises:
            ValueError: shapes do not fit, the padding has holes, or the cache is another model's
                or one that a call has left half way by raising.
        """
        if cache is not None:
            cache.check(len(self.layers))
        x = self._embedded(input_ids, inputs_embeds)
        B, T, _ = x.shape
        if cu_seqlens is not None:
            if context is not None:
                raise ValueError(
                    "sequences that are split over ranks mark their documents by document_starts, "
                    "split like the tokens, but got cu_seqlens"
                )
            if document_starts is not None or B != 1:
                raise ValueError(
                    "cu_seqlens is for one flat row (1, T) and instead of document_starts, "
                    f"but got B = {B}"
                )
            document_starts = torch.zeros(1, T + 1, dtype=torch.bool, device=x.device)
            document_starts[0, cu_seqlens[:-1].long()] = True
            document_starts = document_starts[:, :T]  # an empty last document begins at T
        if document_starts is not None and document_starts.shape != (B, T):
            raise ValueError(
                f"document_starts must have the shape of the tokens, {(B, T)}, "
                f"but got {tuple(document_starts.shape)}"
            )
        seq_start = back = None
        if attention_mask is not None:
            seq_start, end = padding_borders(attention_mask, (B, T))
            if cache is not None:
                # A cache counts tokens from the end of a chunk: padding goes to the left.
                x, document_starts, back = aligned_right(x, document_starts, end)
                seq_start = seq_start + T - end
        for i, layer in enumerate(self.layers):
            block = partial(
                layer,
                seq_start=seq_start,
                document_starts=document_starts,
                cache=None if cache is None else cache.layers[i],
                context=context,
            )
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if back is not None:
            x = x.gather(1, back.unsqueeze(-1).expand_as(x))
        return self.norm(x)

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is None and inputs_embeds is not None:
            if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != self.config.hidden_size:
                raise ValueError(
                    f"inputs_embeds must have shape (B, T, C = {self.config.hidden_size}), "
                    f"but got {tuple(inputs_embeds.shape)}"
                )
            return inputs_embeds
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("expected either input_ids or inputs_embeds")
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "input_ids must be whole numbers of shape (B, T), "
                f"but got {input_ids.dtype} of shape {tuple(input_ids.shape)}"
            )
        return self.embeddings(input_ids)

    def new_cache(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        *,
        max_length: int | None = None,
        rollback: int = 32,
        log_pruning_tolerance: float | None = None,
        logit_cap: float | None = None,
    ) -> FoxCache:
        """An empty decode state.

        Where keys are forgotten by a log_pruning_tolerance and the logits are bounded, the cache
        evicts: keys that can weigh no more in any later text leave it, head by head, and no row
        loses more than exp(log_pruning_tolerance) of its attention. QK-norm bounds the logits by
        its scales as they are now; without it `logit_cap` does. Otherwise every key stays.

        Args:
            batch_size: rows.
            dtype: of keys and values; the weights' if None; under autocast pass its dtype.
            max_length: tokens that a row may get at most. Memory for them is taken at once where
                every key stays; more tokens raise. None grows by doubling without limit.
            rollback: tokens that a crop can take back where there is a token shift or eviction.
            log_pruning_tolerance: in the place of the model's, if not None.
            logit_cap: for models without QK-norm, the caller's word that no query and key have
                |q| |k| / sqrt(D) above it; checked for every token, and a breach raises.

        Raises:
            ValueError: log_pruning_tolerance is given, but nothing bounds the logits or nothing is
                forgotten.
        """
        options: dict[str, Any] = {"max_length": max_length, "rollback": rollback}
        options |= {"log_pruning_tolerance": log_pruning_tolerance, "logit_cap": logit_cap}
        layers = [x for x in self.modules() if isinstance(x, ForgettingAttention)]
        return FoxCache([layer.new_cache(batch_size, dtype, **options) for layer in layers])


class FoxForCausalLM(nn.Module):
    """FoxModel and the projection to the vocabulary.

    Args:
        config: the model's shape and parts.

    Example:
        >>> model = FoxForCausalLM(FoxConfig.preset("fox-pro-125m"))
        >>> loss = model(input_ids, labels=input_ids).loss
    """

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.config = config
        self.model = FoxModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes the output matrix the embedding where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_starts: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: FoxCache | None = None,
        *,
        context: ContextSplit | None = None,
        shift_labels: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
        return_logits: bool = True,
    ) -> CausalLMOutput:
        """Logits of the next token, and the loss if there are labels.

        Args:
            input_ids, attention_mask, document_starts, cu_seqlens, cache, context: as
                FoxModel.forward. With a context labels are shifted before they are split, and the
                loss is that of this rank's tokens.
            labels: (B, T) int64; -100 is not counted.
            shift_labels: labels[t] is the id at t and is predicted from t - 1 (labels=input_ids);
                False: labels[t] is what position t shall predict.
            reduction: "mean" or "sum" over the counted positions, or "none": (B, T), where entry t
                belongs to the prediction made at t and is 0 if not counted.
            return_logits: False never holds (B, T, V) numbers: the loss comes from
                linear_cross_entropy, and `logits` is None.
        """
        features = self.model(
            input_ids,
            attention_mask=attention_mask,
            document_starts=document_starts,
            cu_seqlens=cu_seqlens,
            cache=cache,
            context=context,
        )
        logits = self.lm_head(features) if return_logits else None
        if labels is None:
            return CausalLMOutput(logits, cache=cache)
        if labels.shape != input_ids.shape:
            raise ValueError(
                f"labels must have the shape of input_ids, {tuple(input_ids.shape)}, "
                f"but got {tuple(labels.shape)}"
            )
        if shift_labels and context is not None:
            raise ValueError(
                "the label of a chunk's last token stands in the next chunk: shift labels before "
                "they are split, and pass shift_labels=False"
            )
        if shift_labels:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if logits is None:
            weight = self.lm_head.weight
            loss, losses = linear_cross_entropy(features, weight, labels, reduction)
            return CausalLMOutput(None, loss, losses, cache)
        flat = logits.float().flatten(0, 1)
        losses = F.cross_entropy(flat, labels.flatten(), reduction="none").view(labels.shape)
        loss = losses if reduction == "none" else losses.sum()
        if reduction == "mean":
            loss = loss / (labels != IGNORED).sum()
        return CausalLMOutput(logits, loss, losses.detach(), cache)

    def new_cache(
        self, batch_size: int, dtype: torch.dtype | None = None, **options: Any
    ) -> FoxCache:
        """An empty decode state; see FoxModel.new_cache."""
        return self.model.new_cache(batch_size, dtype, **options)

    # Functions whose first argument is a model: their documentation is in fox.generation.
    generate = generate
    stream = stream
    beam_search = beam_search

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "FoxForCausalLM":
        """Reads config.json and model.safetensors, ours or the official repository's."""
        from fox.checkpoints import read_folder  # checkpoints builds models, so it imports us

        return read_folder(Path(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        from fox.checkpoints import write_folder

        write_folder(self, Path(folder))


def padding_borders(attention_mask: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B,) int64 each: where the run of ones of each row of a mask begins, and where it ends."""
    if attention_mask.shape != shape:
        raise ValueError(
            f"attention_mask must have the shape of the tokens, {shape}, "
            f"but got {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    start = mask.int().argmax(-1) if shape[1] else mask.sum(-1)
    start = torch.where(mask.any(-1), start, shape[1])
    end = start + mask.sum(-1)
    position = torch.arange(shape[1], device=mask.device)
    if not torch.equal(mask, (position >= start[:, None]) & (position < end[:, None])):
        raise ValueError("attention_mask must be one run of ones in each row, but it has holes")
    return start, end


def aligned_right(
    x: Tensor, document_starts: Tensor | None, end: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows (B, T, C) rolled so that token end[b] - 1 is last, and the places (B, T) to undo it."""
    T = x.shape[1]
    position = torch.arange(T, device=x.device)
    place = (position + end[:, None]) % max(T, 1)
    if document_starts is not None:
        document_starts = document_starts.gather(1, place)
    x = x.gather(1, place.unsqueeze(-1).expand_as(x))
    return x, document_starts, (position - end[:, None]) % max(T, 1)
