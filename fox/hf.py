"""FoX models inside transformers: `import fox.hf` makes the Auto classes know the type "fox".

Legend: B batch, T time, C width, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from fox.cache import FoxCache
from fox.config import FoxConfig
from fox.layers import ForgettingAttention
from fox.model import Block, FoxModel

# transformers' names for attention, and ours; None lets the device decide.
BACKENDS = {
    "eager": "reference",
    "sdpa": None,
    "flash": "flash",
    "blocked": "blocked",
    "reference": "reference",
}
ASSISTED_ROLLBACK = 256  # tokens
_FIELDS = [field.name for field in dataclasses.fields(FoxConfig)]


def _is_loaded(weight: Tensor) -> bool:
    return getattr(weight, "_is_hf_initialized", False)  # transformers' mark


def _check_cache(cache: object) -> None:
    if not isinstance(cache, FoxHFCache | None):
        raise ValueError(
            "past_key_values must be a fox.hf.FoxHFCache, which keeps gates and shift states, "
            f"but got a {type(cache).__name__}"
        )


class FoxHFConfig(PreTrainedConfig):
    """The fields of FoxConfig, with what every model of transformers carries besides.

    Args:
        fields: those of FoxConfig, checked by it, and those of PreTrainedConfig.
    """

    model_type = "fox"
    attribute_map: ClassVar = {
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }

    def __init__(self, **fields: Any) -> None:
        fields = {self.attribute_map.get(name, name): value for name, value in fields.items()}
        known = {name: fields.pop(name) for name in _FIELDS if name in fields}
        for name, value in dataclasses.asdict(FoxConfig(**known)).items():
            setattr(self, name, value)
        super().__init__(**fields)

    @classmethod
    def from_fox(cls, config: FoxConfig) -> "FoxHFConfig":
        """The same model's config for transformers."""
        return cls(**dataclasses.asdict(config))

    def to_fox(self) -> FoxConfig:
        """The model's FoxConfig; raises ValueError where a changed field does not fit."""
        return FoxConfig(**{name: getattr(self, name) for name in _FIELDS})


class FoxHFCache(Cache):
    """What transformers' generation needs of a FoxCache: lengths in columns, padding included.

    It is empty until a model fills it. A FoxCache holds no padding, so rows of a padded batch have
    fewer tokens than the columns that they came in.

    Args:
        options: of FoxModel.new_cache: rollback, max_length, log_pruning_tolerance, logit_cap.

    Attributes:
        fox: the decode state; None before the first forward pass.
        columns: columns of ids that were read, padding included.
        mask: (B, columns so far), 0 at padding; None if nothing was masked.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(layers=[])
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.fox: FoxCache | None = None
        self.columns = 0
        self.mask: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first forward pass."""
        return -1 if self.fox is None else self.fox.batch_size

    @property
    def is_croppable(self) -> bool:
        """Tokens can be taken back."""
        return True

    def activate_past_recording(self) -> None:
        """Prepares for the crops of assisted generation, which may reject all that it drafts."""
        self.options = {"rollback": ASSISTED_ROLLBACK} | self.options

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read, the same in every layer."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    def extend(self, columns: int, mask: Tensor | None) -> None:
        """Notes that this many columns were read; mask (B, all columns), or None if none is new."""
        self.columns += columns
        if mask is None and self.mask is not None:
            mask = F.pad(self.mask, (0, columns), value=1)
        self.mask = mask

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last -tokens_to_remove columns, as many as FoxCache.crop can.

        Raises:
            ValueError: tokens_to_remove is positive, or FoxCache.crop cannot go back that far.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop expects minus the number of columns to take back, but got {tokens_to_remove}"
            )
        if tokens_to_remove == 0 or self.fox is None:
            return
        self.columns += tokens_to_remove
        lengths = self.fox.lengths
        if self.mask is None:
            kept = [length + tokens_to_remove for length in lengths]
        else:
            dropped = self.mask[:, self.columns :].sum(-1).tolist()
            kept = [length - drop for length, drop in zip(lengths, dropped, strict=True)]
            self.mask = self.mask[:, : self.columns]
        self.fox.crop(kept)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes old row beam_idx[b]."""
        if self.fox is not None:
            self.fox.reorder(beam_idx)
            self.mask = None if self.mask is None else self.mask[beam_idx]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        if self.fox is not None:
            self.fox = self.fox.select(indices)
            self.mask = None if self.mask is None else self.mask[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes that many equal rows."""
        if self.fox is not None:
            self.fox = self.fox.repeat_interleave(repeats)
            self.mask = None if self.mask is None else self.mask.repeat_interleave(repeats, 0)


class FoxHFPreTrainedModel(PreTrainedModel):
    """What both models share: the FoxModel inside, its initialisation and its attention."""

    config_class = FoxHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "embeddings"
    _no_split_modules = ["Block"]  # noqa: RUF012
    # accelerate would hand a block a copy of its LayerCache, moved to the block's device.
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": Block}  # noqa: RUF012

    def __init__(self, config: FoxHFConfig) -> None:
        super().__init__(config)
        self.model = FoxModel(config.to_fox())
        self._choose_backend()

    def set_attn_implementation(
        self, attn_implementation: str | dict[Any, Any], allow_all_kernels: bool = False
    ) -> None:
        """Chooses how attention is computed: one of BACKENDS."""
        super().set_attn_implementation(attn_implementation, allow_all_kernels)
        self._choose_backend()

    def _choose_backend(self) -> None:
        for module in self.modules():
            if isinstance(module, ForgettingAttention):
                module.backend = BACKENDS[self.config._attn_implementation]

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        name = attn_implementation or "sdpa"
        if name not in BACKENDS:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(BACKENDS)}, but got {name!r}: "
                "attention without forget gates cannot run a FoX model"
            )
        return name

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # As custom code, a module without weights of its own would count as initialised, and the
        # decay times of an attention layer's gates would be lost.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As FoxModel.reset_parameters, sparing what was loaded."""
        super()._init_weights(module)
        padding = self.config.pad_token_id
        if isinstance(module, ForgettingAttention) and module.fgate_type != "none":
            bias = module.fgate_proj.bias if module.fgate_type == "full" else module.fgate_bias
            if not _is_loaded(bias):
                module.reset_fgate_bias()
        elif module is self.model.embeddings and padding is not None:
            module.weight[padding] *= _is_loaded(module.weight)

    @capture_outputs
    def _features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FoxHFCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Token ids or embeddings to features.

        Args:
            input_ids: (B, T) int64; or
            inputs_embeds: (B, T, C).
            attention_mask: (B, past + T), 0 at padding, with one run of ones in each row of what
                is new.
            past_key_values: decode state; the input continues its text. Only without gradients.
            use_cache: begins a decode state if none is given.
            output_hidden_states: returns the inputs of all blocks, and the features.
            output_attentions: must be off.

        Returns:
            last_hidden_state: (B, T, C); past_key_values, hidden_states where asked for.

        Raises:
            ValueError: an argument is not as above.
        """
        if output_attentions or self.config.output_attentions:
            raise ValueError("FoX models return no attention weights: leave output_attentions off")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "expected input_ids or inputs_embeds, "
                f"but got {'neither' if input_ids is None else 'both'}"
            )
        if past_key_values is None and use_cache:
            past_key_values = FoxHFCache()
        _check_cache(past_key_values)
        inputs = inputs_embeds if input_ids is None else input_ids
        assert inputs is not None
        B, T = inputs.shape[:2]
        past = 0 if past_key_values is None else past_key_values.columns
        if attention_mask is not None and attention_mask.shape != (B, past + T):
            raise ValueError(
                f"attention_mask must have shape (B, past + T) = {(B, past + T)}, "
                f"but got {tuple(attention_mask.shape)}"
            )
        chunk_mask = None
        if attention_mask is not None and not bool(attention_mask[:, past:].all()):
            chunk_mask = attention_mask[:, past:]
            if (
                output_hidden_states
                and past_key_values is not None
                and not bool(chunk_mask[:, -1].all())
            ):
                raise ValueError(
                    "with a cache, blocks see tokens moved to the right: for output_hidden_states "
                    "pad on the left, or leave use_cache off"
                )
        if past_key_values is not None and past_key_values.fox is None:
            past_key_values.fox = self.model.new_cache(B, **past_key_values.options)
        features = self.model(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=chunk_mask,
            cache=None if past_key_values is None else past_key_values.fox,
        )
        if past_key_values is not None:
            past_key_values.extend(T, attention_mask)
        return BaseModelOutputWithPast(features, past_key_values=past_key_values)


class FoxHFModel(FoxHFPreTrainedModel):
    """FoxModel for AutoModel: features, without the projection to the vocabulary."""

    def __init__(self, config: FoxHFConfig) -> None:
        super().__init__(config)
        self.post_init()

    forward = FoxHFPreTrainedModel._features


class FoxHFForCausalLM(FoxHFPreTrainedModel, GenerationMixin):
    """FoxForCausalLM for AutoModelForCausalLM, with transformers' `generate` and Trainer.

    Example:
        >>> import fox.hf
        >>> model = AutoModelForCausalLM.from_pretrained(folder)  # of FoxForCausalLM, or of this
    """

    accepts_loss_kwargs = True  # for the Trainer: forward takes num_items_in_batch
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: FoxHFConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FoxHFCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **outputs: bool,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, and the loss if there are labels.

        Args:
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, outputs: as
                FoxHFModel.forward.
            labels: (B, T) int64, the ids themselves: they are shifted inside; -100 is not counted.
            logits_to_keep: only the last positions, or those of an index; 0 keeps all.
            num_items_in_batch: the loss is the sum over the counted positions, divided by this;
                their mean if None.

        Returns:
            logits: (B, T, V); loss, past_key_values, hidden_states where asked for.
        """
        outputs.pop("tokenizer", None)  # of stop_strings, which generate hands on to every step
        trunk = self._features(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **outputs,
        )
        logits = self.lm_head(slice_logits_to_keep(trunk.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Begins the decode state of a call of `generate`."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "a FoX model decodes through its own cache: leave cache_implementation out, "
                f"but got {generation_config.cache_implementation!r}"
            )
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                "a FoX model cannot draft with its own first layers: leave assistant_early_exit "
                "out, and give an assistant_model or prompt_lookup_num_tokens"
            )
        _check_cache(model_kwargs.get("past_key_values"))
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = FoxHFCache()
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: generate_batch decodes through pages of its own, which hold no gates."""
        raise ValueError(
            "a FoX model cannot run generate_batch, whose cache holds no forget gates: "
            "call generate, which takes prompts of different lengths with an attention_mask"
        )


AutoConfig.register("fox", FoxHFConfig)
AutoModel.register(FoxHFConfig, FoxHFModel)
AutoModelForCausalLM.register(FoxHFConfig, FoxHFForCausalLM)
# The Trainer's label smoothing shifts the labels of the classes in this list only.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["fox"] = FoxHFForCausalLM.__name__
