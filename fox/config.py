"""FoxConfig: everything that decides a model, and the presets of the paper."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

_PRO = {
    "hidden_ratio": 3.5,
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
_GATES = {"fgate_type": "full"}
_ROPE = {"fgate_type": "none", "use_rope": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    "fox-llama": _GATES,
    "fox-pro": _GATES | _PRO,
    "transformer-llama": _ROPE,
    "transformer-pro": _ROPE | _PRO,
}
_SIZES = {
    "125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_heads": 12},
    "360m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16},
    "760m": {"hidden_size": 1536, "num_hidden_layers": 24, "num_heads": 24},
}


@dataclass(frozen=True)
class FoxConfig:
    """The shape and the parts of a FoX or Transformer language model.

    The names are those of the official repository's config files. FoX is `fgate_type="full"`
    without RoPE, the Transformer is `fgate_type="none"` with RoPE; the Pro block switches on the
    five parts from `use_k_shift` to `use_output_gate`, and `hidden_ratio` 3.5.

    Args:
        vocab_size: rows of the embedding.
        hidden_size: width C of the residual stream.
        num_hidden_layers: number of blocks.
        num_heads: query heads H; a divisor of hidden_size.
        num_kv_heads: key and value heads (GQA); a divisor of num_heads, and num_heads if None.
        qkv_bias: the projections to queries, keys and values have a bias.
        hidden_ratio: MLP width over hidden_size before the factor 2/3 of gated MLPs.
        intermediate_size: MLP width; from hidden_ratio, rounded up to 256, if None.
        hidden_act: activation of the MLP's gate: "swish" (SwiGLU) or "sigmoid" (GLU).
        norm_eps: epsilon of every RMSNorm but the QK-norm (which has 1e-5).
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: the output matrix is the embedding.
        fgate_type: "full" (a gate per token and head), "bias_only" (a learned constant per head),
            "fixed" (the same, not learned; needs the decay times) or "none" (softmax attention).
        decay_time_min, decay_time_max: tokens; the gate biases start so that the time constants of
            the heads lie log-spaced between them. Biases start at 0 if None.
        use_rope, rope_base: rotary position embedding and its base.
        use_k_shift, use_v_shift: data-dependent token shift of keys and of values.
        qk_norm: RMSNorm of queries and keys, per head.
        qk_norm_share_param_across_head: all heads share the scales of the QK-norm.
        use_output_norm: RMSNorm of the attention output, per head.
        use_output_gate: multiply the attention output by ogate_act(W_g x).
        ogate_act: "sigmoid" or "silu".
        log_pruning_tolerance: ln of the largest total attention weight per row that pruning may
            drop (-10 is usual); None computes every weight.
        max_position_embeddings: length of the training rows; recorded for plots and never a limit.
        bos_token_id, eos_token_id, pad_token_id: special tokens; the padding row of the embedding
            starts at 0.

    Raises:
        ValueError: a value is out of its range, or two do not fit together.

    Source: Lin et al., Forgetting Transformer, ICLR 2025.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    qkv_bias: bool = False
    hidden_ratio: float = 4.0
    intermediate_size: int | None = None
    hidden_act: Literal["swish", "sigmoid"] = "swish"
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    fgate_type: Literal["full", "bias_only", "fixed", "none"] = "full"
    decay_time_min: float | None = None
    decay_time_max: float | None = None
    use_rope: bool = False
    rope_base: float = 500000.0
    use_k_shift: bool = False
    use_v_shift: bool = False
    qk_norm: bool = False
    qk_norm_share_param_across_head: bool = False
    use_output_norm: bool = False
    use_output_gate: bool = False
    ogate_act: Literal["sigmoid", "silu"] = "sigmoid"
    log_pruning_tolerance: float | None = None
    max_position_embeddings: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"FoxConfig.{name} must be at least 1, but got {getattr(self, name)}"
                )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "FoxConfig.hidden_size must be a multiple of num_heads, "
                f"but got {self.hidden_size} and {self.num_heads}"
            )
        if self.num_kv_heads is not None and (
            self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads
        ):
            raise ValueError(
                "FoxConfig.num_heads must be a multiple of num_kv_heads, "
                f"but got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.use_rope and self.head_dim % 2:
            raise ValueError(f"RoPE needs an even head size, but got {self.head_dim}")
        times = (self.decay_time_min, self.decay_time_max)
        if (times[0] is None) != (times[1] is None):
            raise ValueError(f"decay_time_min and decay_time_max go together, but got {times}")
        if times[0] is not None and times[1] is not None and not 0 < times[0] <= times[1]:
            raise ValueError(f"0 < decay_time_min <= decay_time_max must hold, but got {times}")
        if self.fgate_type == "fixed" and times[0] is None:
            raise ValueError('fgate_type="fixed" needs decay_time_min and decay_time_max')
        if self.log_pruning_tolerance is not None and not self.log_pruning_tolerance <= 0:
            raise ValueError(
                "log_pruning_tolerance is the logarithm of a share of the attention weight: "
                f"expected None or at most 0, but got {self.log_pruning_tolerance}"
            )

    def _check_types(self) -> None:
        for name, kind in get_type_hints(FoxConfig).items():
            value, allowed = getattr(self, name), get_args(kind) or (kind,)
            if get_origin(kind) is Literal:
                if value not in allowed:
                    raise ValueError(
                        f"FoxConfig.{name} must be one of {allowed}, but got {value!r}"
                    )
            elif not isinstance(value, (*allowed, int) if float in allowed else allowed):
                names = " or ".join(one.__name__.removesuffix("Type") for one in allowed)
                raise ValueError(f"FoxConfig.{name} must be of type {names}, but got {value!r}")

    @property
    def head_dim(self) -> int:
        """Size d of one head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Width F of the MLP."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return -(-int(self.hidden_size * self.hidden_ratio * 2 / 3) // 256) * 256

    @classmethod
    def preset(cls, name: str, *, vocab_size: int = 50257, **changes: Any) -> "FoxConfig":
        """The paper's models: {fox,transformer}-{llama,pro}-{125m,360m,760m}.

        Args:
            name: such as "fox-pro-760m".
            vocab_size: 50257 is GPT-2's, as in the paper.
            changes: any other field, over the preset.
        """
        family, _, size = name.rpartition("-")
        if family not in _FAMILIES or size not in _SIZES:
            known = ", ".join(f"{f}-{s}" for f in _FAMILIES for s in _SIZES)
            raise ValueError(f"unknown preset {name!r}; there are {known}")
        fields = _SIZES[size] | _FAMILIES[family]
        fields |= {"vocab_size": vocab_size, "max_position_embeddings": 16384}
        if size == "760m" and family.startswith("transformer"):
            fields["num_heads"] = 12
        return cls(**(fields | changes))

    def replace(self, **changes: Any) -> "FoxConfig":
        """The same configuration with some fields changed."""
        return dataclasses.replace(self, **changes)
