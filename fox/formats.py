"""Formats of a checkpoint folder: what the options and tensors of FoX are called in each.

Ours ("fox") has the names of the official repository; "official" is that repository's own
config.json, "fla" is flash-linear-attention's, "llama" is the Llama of transformers.

Source: zhixuan-lin/forgetting-transformer at 883f260; flash-linear-attention 0.6.0;
transformers 4.0 to 5.23.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fox.config import FoxConfig

FormatName = Literal["fox", "official", "fla"]

# What the transformers library writes into any config.json; none of it changes our results.
_GENERIC = """
_attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id id2label is_decoder is_encoder_decoder label2id
length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type
pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
use_cache
"""
GENERIC = frozenset(_GENERIC.split())


@dataclass(frozen=True)
class Format:
    """How one library writes the options and the tensors of a model.

    Attributes:
        model_type: as in its config.json.
        architecture: the class that its config.json names; None if it names none.
        defaults: our fields that it has too, each with what it means when left out;
            dataclasses.MISSING if it may not be left out.
        fixed: our fields that it lacks, where they are not our defaults.
        only: keys of which one value is supported: that value, and why no other.
        ignored: keys that never change results.
        names: our name of a tensor -> its names; several are stacked by rows to ours.
        derived: how names of tensors end that its files may hold, but that follow from the config.
        renamed: its config.json -> the same with our names of the fields that are ours too; raises
            ValueError for what our models do not offer.
    """

    model_type: str
    architecture: str | None
    defaults: dict[str, Any]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    only: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    names: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    derived: tuple[str, ...] = ()
    renamed: Callable[[dict[str, Any]], dict[str, Any]] = dict


def _fla_names(name: str) -> tuple[str, ...]:
    if name.endswith(".mlp.gate_proj.weight"):
        return name, name.replace(".gate_proj.", ".up_proj.")
    return (name.replace(".fgate_proj.", ".f_proj.").replace(".ogate_proj.", ".g_proj."),)


_LLAMA_FIELDS = {
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_base",
}
_LLAMA_TENSORS = {
    "model.embeddings.": "model.embed_tokens.",
    ".attn_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attn.": ".self_attn.",
}


def _llama_names(name: str) -> tuple[str, ...]:
    for ours, theirs in _LLAMA_TENSORS.items():
        name = name.replace(ours, theirs)
    return _fla_names(name)


def _llama_renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """Takes the base out of the settings of RoPE; they were rope_theta and rope_scaling before."""
    fields = dict(fields)
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope |= fields.pop(name, None) or {}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    fields |= {name: rope.pop(name) for name in ("rope_theta",) if name in rope}
    if kind != "default" or rope:
        rest = "".join(f", {name} = {value!r}" for name, value in rope.items())
        raise ValueError(
            f"rope_type = {kind!r}{rest} is not supported, only 'default' with its rope_theta, "
            "since our RoPE turns every pair of channels by its plain angle"
        )
    head_dim = fields.pop("head_dim", None)
    fields = {_LLAMA_FIELDS.get(name, name): value for name, value in fields.items()}
    sizes = LLAMA.defaults | fields
    if head_dim is not None and head_dim * sizes["num_heads"] != sizes["hidden_size"]:
        raise ValueError(
            f"head_dim = {head_dim} is not supported, only hidden_size / num_attention_heads = "
            f"{sizes['hidden_size']} / {sizes['num_heads']}, since our heads share the width"
        )
    return fields


_OURS = {field.name: field.default for field in dataclasses.fields(FoxConfig)}
_COMMON = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_heads": 32,
    "num_kv_heads": None,
    "hidden_ratio": 4.0,
    "intermediate_size": None,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_PLAIN_NORM = {"elementwise_affine": (True, "every norm of our models has scales")}
_OFFICIAL_ONLY = _PLAIN_NORM | {
    "window_size": (None, "our models attend to all earlier tokens"),
    "attention_bias": (False, "the official attention has no biases"),
}
_SWIGLU = {"hidden_act": ("swish", "this model class knows no other MLP of ours")}

FOX = Format("fox", None, _OURS)
OFFICIAL_TRANSFORMER = Format(
    "transformer-project_fox",
    "TransformerForCausalLM",
    _COMMON | {"max_position_embeddings": 2048, "rope_base": 500000.0, "use_rope": True},
    fixed={"fgate_type": "none"},
    only=_OFFICIAL_ONLY | _SWIGLU | {"qk_norm": (False, "the official Transformer has none")},
    ignored=frozenset({"fuse_norm", "fuse_cross_entropy"}),
)
OFFICIAL_FOX = Format(
    "forgetting_transformer-project_fox",
    "ForgettingTransformerForCausalLM",
    _COMMON
    | {
        "max_position_embeddings": 2048,
        "rope_base": 500000.0,
        "use_rope": False,
        "fgate_type": "full",
        "decay_time_min": None,
        "decay_time_max": None,
        "use_k_shift": False,
        "use_v_shift": False,
        "qk_norm": False,
        "qk_norm_share_param_across_head": False,
        "use_output_norm": False,
        "use_output_gate": False,
        "ogate_act": "sigmoid",
        "log_pruning_tolerance": None,
    },
    only=_OFFICIAL_ONLY | {"num_kv_heads": (None, "the official FoX has no grouped heads")},
    ignored=frozenset({"fgate_bias_init", "fuse_norm", "fuse_cross_entropy"}),
)
FLA = Format(
    "forgetting_transformer",
    "ForgettingTransformerForCausalLM",
    _COMMON
    | {
        "qkv_bias": False,
        "qk_norm": False,
        "use_output_gate": False,
        "max_position_embeddings": None,  # not an option there, but kept as any further key is
    },
    only=_PLAIN_NORM
    | _SWIGLU
    | {
        "window_size": (
            None,
            "its window reaches the decode cache but not the attention, so the model has no "
            "single meaning; set it to null for the model as it was trained",
        ),
        "attnres_block_size": (None, "our blocks add to one residual stream"),
    },
    ignored=frozenset(
        {
            "fuse_norm",
            "fuse_swiglu",
            "fuse_cross_entropy",
            "fuse_linear_cross_entropy",
            "use_l2warp",
        }
    ),
    names=_fla_names,
)
LLAMA = Format(
    "llama",
    "LlamaForCausalLM",
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_heads": 32,
        "num_kv_heads": None,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "norm_eps": 1e-6,
        "rope_base": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    },
    fixed={"fgate_type": "none", "use_rope": True},
    only={
        "hidden_act": ("silu", "our MLP has this activation under the name 'swish'"),
        "attention_bias": (False, "our output projection has no bias"),
        "mlp_bias": (False, "our MLP has no biases"),
        "attention_dropout": (0.0, "our models have no dropout; where none is wanted, set it to 0"),
    },
    ignored=frozenset({"pretraining_tp"}),  # cuts products into parts with the same sum
    names=_llama_names,
    derived=(".rotary_emb.inv_freq",),
    renamed=_llama_renamed,
)
_READABLE = {
    layout.model_type: layout for layout in (FOX, OFFICIAL_FOX, OFFICIAL_TRANSFORMER, FLA, LLAMA)
}
_WRITABLE: dict[FormatName, tuple[Format, ...]] = {
    "fox": (FOX,),
    "official": (OFFICIAL_TRANSFORMER, OFFICIAL_FOX),
    "fla": (FLA,),
}


def format_of(fields: dict[str, Any]) -> Format:
    """The format of a config.json.

    Raises:
        ValueError: its model_type is none of those that can be read.
    """
    model_type = fields.get("model_type")
    if model_type not in _READABLE:
        known = ", ".join(map(repr, _READABLE))
        raise ValueError(f"model_type {model_type!r} is unknown; expected one of {known}")
    return _READABLE[model_type]


def read_config(fields: dict[str, Any]) -> FoxConfig:
    """A config.json of any of the formats as FoxConfig.

    Raises:
        ValueError: the model type or a field is unknown, a field is missing, or one has a value
            that our models do not offer.
    """
    layout = format_of(fields)
    fields = layout.renamed(fields)
    unknown = fields.keys() - {*layout.defaults, *layout.only, *layout.ignored, *GENERIC}
    if unknown:
        raise ValueError(f"unknown fields in config.json: {', '.join(sorted(unknown))}")
    for name, (only, why) in layout.only.items():
        if fields.get(name, only) != only:
            raise ValueError(
                f"{name} = {fields[name]!r} is not supported, only {only!r}, since {why}"
            )
    options = layout.fixed | layout.defaults
    options |= {name: fields[name] for name in layout.defaults.keys() & fields.keys()}
    missing = [name for name, value in options.items() if value is dataclasses.MISSING]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    if options.get("hidden_ratio") is None:  # in both libraries
        options["hidden_ratio"] = 4.0
    if layout is OFFICIAL_FOX and not fields.get("fgate_bias_init"):
        options |= {"decay_time_min": None, "decay_time_max": None}
    return FoxConfig(**options)


def choose_format(config: FoxConfig, name: FormatName) -> Format:
    """The format of this name, in the variant that can express the model.

    Raises:
        ValueError: it cannot: every field is named with the value that it would need.
    """
    if name not in _WRITABLE:
        raise ValueError(f"format must be one of {', '.join(_WRITABLE)}, but got {name!r}")
    for layout in _WRITABLE[name]:
        wrong = _inexpressible(config, layout)
        if not wrong:
            return layout
    raise ValueError(f"the format {name!r} cannot express this model: {'; '.join(wrong)}")


def write_config(config: FoxConfig, layout: Format) -> dict[str, Any]:
    """What read_config reads back as the same config, for a format that can express it."""
    fields: dict[str, Any] = {"model_type": layout.model_type}
    if layout.architecture is not None:
        fields["architectures"] = [layout.architecture]
    fields |= {name: getattr(config, name) for name in layout.defaults}
    if layout is OFFICIAL_FOX:
        fields["fgate_bias_init"] = config.decay_time_min is not None
    return fields


def _inexpressible(config: FoxConfig, layout: Format) -> list[str]:
    wrong = []
    for name, value in dataclasses.asdict(config).items():
        if name in layout.only:
            needed = layout.only[name][0]
        elif name in layout.defaults:
            continue
        else:
            needed = layout.fixed.get(name, _OURS[name])
        if value != needed:
            wrong.append(f"{name} must be {needed!r}, but is {value!r}")
    if layout is OFFICIAL_FOX:
        if config.decay_time_min is not None and config.fgate_type in ("full", "none"):
            wrong.append(f"it has no decay times with fgate_type {config.fgate_type!r}")
        if config.use_output_norm and config.use_output_gate and config.ogate_act != "sigmoid":
            wrong.append(
                f"behind its output norm, ogate_act is 'sigmoid', not {config.ogate_act!r}"
            )
    return wrong
