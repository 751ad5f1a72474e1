"""The layers of a FoX block: norms, token shift, MLP and forgetting attention.

Legend: B batch, T time, C width, H query heads, K key and value heads, D head size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fox.cache import LayerCache
from fox.config import FoxConfig
from fox.kernels import ContextSplit, context_parallel_attention, forgetting_attention
from fox.kernels.checks import without_autocast
from fox.kernels.context import rows_before
from fox.kernels.token_shift import token_shift
from fox.pages import PagedCache
from fox.slots import SlotCache
from fox.tail import Tail

QK_NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times one scale per channel; statistics in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class HeadRMSNorm(nn.Module):
    """RMSNorm over the channels of each head, with scales per head or shared by all heads."""

    def __init__(self, num_heads: int, head_dim: int, eps: float, *, shared: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(head_dim if shared else num_heads * head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, D) -> (B, T, H, D)."""
        scale = self.weight.float().view(-1, self.head_dim)
        return (F.rms_norm(x.float(), x.shape[-1:], eps=self.eps) * scale).to(x.dtype)

    def scales(self) -> Tensor:
        """(H, D), or (1, D) if shared, float32: the factor on each channel, without gradient."""
        return self.weight.detach().float().view(-1, self.head_dim)


class TokenShiftLinear(nn.Module):
    """A projection to heads whose rows are mixed with the row before them."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.shift_proj = nn.Linear(dim, num_heads, bias=False)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        starts: Tensor | None = None,
        padding: Tensor | None = None,
        context: ContextSplit | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, H, D), mixed and not mixed; the next chunk's state is the last row.

        `state` (B, H, D) stands before the first token of each row, `starts` (B, T) is True where a
        document begins, `padding` (B, T) on the left, where there is no token. With a `context`
        every chunk of this rank is mixed behind the row before it, wherever that is.
        """
        y = self.linear(x).unflatten(-1, (self.num_heads, -1))
        state = None if state is None else state.to(y.dtype)
        if padding is not None:
            before = 0 if state is None else state.unsqueeze(1)
            y = torch.where(padding[:, :, None, None], before, y)
        alpha = torch.sigmoid(linear_float32(x, self.shift_proj))
        if context is None:
            return token_shift(y, alpha, state, starts)[0], y
        starts = None if starts is None else context.rows(starts)
        before = rows_before(y, context)
        shifted, _ = token_shift(context.rows(y), context.rows(alpha), before, starts)
        return shifted.reshape(y.shape), y


class SwiGLU(nn.Module):
    """Gated feed-forward layer, down(act(gate(x)) * up(x)), without biases.

    Gate and up are one matrix, the gate's rows first.
    """

    def __init__(
        self, dim: int, hidden_dim: int, hidden_act: Literal["swish", "sigmoid"] = "swish"
    ) -> None:
        super().__init__()
        self.activation = F.silu if hidden_act == "swish" else torch.sigmoid
        self.gate_proj = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        gate, up = self.gate_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class Heads(NamedTuple):
    """What a layer's input becomes for attention.

    Attributes:
        q: (B, T, H, D). k, v: (B, T, K, D), shifted and normalised, not rotated.
        log_f: (B, T, H) float32, -inf where a document starts; None without gates and starts.
        k_rows, v_rows: (B, T, K, D), not shifted: the last one is the next chunk's state.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_f: Tensor | None
    k_rows: Tensor
    v_rows: Tensor


class ForgettingAttention(nn.Module):
    """Multi-head attention with a forget gate; with the Pro block's parts where switched on.

    q, k, v = W x; k and v token-shifted; q and k normalised and rotated; then
    out = W_o (ogate_act(W_g x) * norm(forgetting_attention(q, k, v, logsigmoid(W_f x + b_f)))).
    The parts that are off are left out. The arguments mean what they mean in FoxConfig.

    Raises:
        ValueError: an argument is out of its range, or two do not fit together; in forward, the
            shapes of the document starts, the padding or the cache do not fit the input.

    Source: Lin et al., Forgetting Transformer, ICLR 2025, section 3.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        fgate_type: Literal["full", "bias_only", "fixed", "none"] = "full",
        decay_time_min: float | None = None,
        decay_time_max: float | None = None,
        use_rope: bool = False,
        rope_base: float = 500000.0,
        use_k_shift: bool = False,
        use_v_shift: bool = False,
        qk_norm: bool = False,
        qk_norm_share_param_across_head: bool = False,
        use_output_norm: bool = False,
        use_output_gate: bool = False,
        ogate_act: Literal["sigmoid", "silu"] = "sigmoid",
        norm_eps: float = 1e-6,
        log_pruning_tolerance: float | None = None,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        FoxConfig(  # for its checks
            vocab_size=1,
            num_hidden_layers=1,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            fgate_type=fgate_type,
            decay_time_min=decay_time_min,
            decay_time_max=decay_time_max,
            use_rope=use_rope,
            ogate_act=ogate_act,
            log_pruning_tolerance=log_pruning_tolerance,
        )
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim = hidden_size // num_heads
        self.rope_base = rope_base if use_rope else None
        self.log_pruning_tolerance = log_pruning_tolerance
        self.backend: str | None = None  # of the attention kernel; by device if None
        # Called with q, k and log f as attention gets them; set by fox.observe for one pass.
        self.observer: Callable[[Tensor, Tensor, Tensor | None], None] | None = None

        kv_dim = self.num_kv_heads * head_dim
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj: nn.Module
        self.v_proj: nn.Module
        shape = (self.num_kv_heads, head_dim)
        if use_k_shift:
            self.k_proj = TokenShiftLinear(hidden_size, *shape, bias=qkv_bias)
        else:
            self.k_proj = nn.Linear(hidden_size, kv_dim, bias=qkv_bias)
        if use_v_shift:
            self.v_proj = TokenShiftLinear(hidden_size, *shape, bias=qkv_bias)
        else:
            self.v_proj = nn.Linear(hidden_size, kv_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

        self.fgate_type = fgate_type
        self.decay_times = (decay_time_min, decay_time_max)
        if fgate_type == "full":
            self.fgate_proj = nn.Linear(hidden_size, num_heads, bias=True)
        elif fgate_type == "bias_only":
            self.fgate_bias = nn.Parameter(torch.zeros(num_heads))
        elif fgate_type == "fixed":
            self.register_buffer("fgate_bias", torch.zeros(num_heads))
        self.reset_fgate_bias()

        self.q_norm: HeadRMSNorm | None = None
        self.k_norm: HeadRMSNorm | None = None
        if qk_norm:
            shared = qk_norm_share_param_across_head
            self.q_norm = HeadRMSNorm(num_heads, head_dim, QK_NORM_EPS, shared=shared)
            self.k_norm = HeadRMSNorm(self.num_kv_heads, head_dim, QK_NORM_EPS, shared=shared)
        self.output_norm = HeadRMSNorm(num_heads, head_dim, norm_eps) if use_output_norm else None
        self.ogate_proj: nn.Linear | None = None
        if use_output_gate:
            self.ogate_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.ogate_activation = torch.sigmoid if ogate_act == "sigmoid" else F.silu

    @torch.no_grad()
    def reset_fgate_bias(self) -> None:
        """Spreads the time constants evenly in their logarithm; biases 0 without decay times."""
        shortest, longest = self.decay_times
        if self.fgate_type == "none":
            return
        bias = self.fgate_proj.bias if self.fgate_type == "full" else self.fgate_bias
        bias.zero_()
        if shortest is not None and longest is not None:
            tokens = torch.linspace(math.log(shortest), math.log(longest), self.num_heads).exp()
            bias.copy_(-torch.log(torch.expm1(1 / tokens)))

    def forward(
        self,
        x: Tensor,
        *,
        seq_start: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: LayerCache | None = None,
        context: ContextSplit | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x: (B, T, C), normalised by the block.
            seq_start: (B,) int, the number of padding tokens on the left of each row of x.
            document_starts: (B, T) bool, True at the first token of each document; attention and
                token shift do not reach across.
            cache: decode state, from `new_cache`; x continues its tokens, and it is updated in
                place. Only without gradients.
            context: x holds this rank's tokens of sequences that are split so; neither padding nor
                a cache goes with it.
        """
        B, T, _ = x.shape
        if context is not None and (cache is not None or seq_start is not None):
            raise ValueError(
                "sequences that are split over ranks take neither padding nor a cache: "
                "leave out attention_mask and cache, or context"
            )
        if cache is not None and len(cache.lengths) != B:
            raise ValueError(
                f"the cache was made for {len(cache.lengths)} rows, but the text has {B}; "
                f"make one with new_cache({B})"
            )
        padding = None
        if seq_start is not None:
            padding = torch.arange(T, device=x.device) < seq_start[:, None]
        tokens = [T] * B
        if cache is not None and seq_start is not None:
            tokens = [T - start for start in seq_start.tolist()]

        k_tail, v_tail = (None, None) if cache is None else (cache.k_rows, cache.v_rows)
        k_state = None if k_tail is None else k_tail.back(0)
        v_state = None if v_tail is None else v_tail.back(0)
        q, k, v, log_f, k_rows, v_rows = self.heads(
            x, k_state, v_state, document_starts, padding, context
        )
        if self.rope_base is not None:
            if cache is not None:
                position = cache.positions(T, tokens, x.device)
            elif context is not None:
                position = context.positions(T, x.device)[None]
            else:
                position = torch.arange(T, device=x.device)[None]
                if seq_start is not None:
                    position = position - seq_start[:, None]
            position = position.clamp(min=0)
            q, k = rotate(q, position, self.rope_base), rotate(k, position, self.rope_base)

        if self.observer is not None:
            self.observer(q, k, log_f)
        if cache is not None:
            out = self._decode(q, k, v, log_f, tokens, cache)
            for tail, new in ((k_tail, k_rows), (v_tail, v_rows)):
                if tail is not None:
                    tail.append(new, tokens)
        else:
            out = self._attend(q, k, v, log_f, seq_start, context)
        return self.output(out, x)

    def heads(
        self,
        x: Tensor,
        k_state: Tensor | None = None,
        v_state: Tensor | None = None,
        document_starts: Tensor | None = None,
        padding: Tensor | None = None,
        context: ContextSplit | None = None,
    ) -> Heads:
        """(B, T, C) -> what attention reads, but for the rotation.

        The states (B, K, D) are the rows before the first token; `padding` is (B, T) bool.
        """
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k, k_rows = self._project(self.k_proj, x, k_state, document_starts, padding, context)
        v, v_rows = self._project(self.v_proj, x, v_state, document_starts, padding, context)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        log_f = self.log_gates(x)
        if document_starts is not None:
            log_f = torch.zeros(q.shape[:3], device=x.device) if log_f is None else log_f
            log_f = log_f.masked_fill(document_starts[:, :, None], -math.inf)
        return Heads(q, k, v, log_f, k_rows, v_rows)

    def output(self, out: Tensor, x: Tensor) -> Tensor:
        """What attention returned (B, T, H, D), and the layer's input (B, T, C) -> (B, T, C)."""
        if self.output_norm is not None:
            out = self.output_norm(out)
        out = out.flatten(2)
        if self.ogate_proj is not None:
            out = out * self.ogate_activation(self.ogate_proj(x))
        return self.o_proj(out)

    def log_gates(self, x: Tensor) -> Tensor | None:
        """(B, T, C) -> log f (B, T, H) float32; None without gates."""
        if self.fgate_type == "none":
            return None
        if self.fgate_type == "full":
            # float32 from the projection on: a 16-bit logit near 10 is a multiple of 1/16, which
            # changes the time constant of a long-memory head by 6 % from one step to the next.
            return F.logsigmoid(linear_float32(x, self.fgate_proj))
        return F.logsigmoid(self.fgate_bias.float()).expand(*x.shape[:2], -1)

    def _project(
        self,
        projection: nn.Module,
        x: Tensor,
        state: Tensor | None,
        starts: Tensor | None,
        padding: Tensor | None,
        context: ContextSplit | None,
    ) -> tuple[Tensor, Tensor]:
        if isinstance(projection, TokenShiftLinear):
            return projection(x, state, starts, padding, context)
        y = projection(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return y, y

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor | None,
        seq_start: Tensor | None,
        context: ContextSplit | None,
    ) -> Tensor:
        if log_f is None and seq_start is None and context is None:
            q, k, v = (rearrange(part, "B T H D -> B H T D") for part in (q, k, v))
            grouped = self.num_kv_heads != self.num_heads
            plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            return rearrange(plain, "B H T D -> B T H D")
        if log_f is None:
            log_f = torch.zeros(q.shape[:3], device=q.device)
        attention: Callable[..., Any] = forgetting_attention
        if context is not None:
            attention = partial(context_parallel_attention, context=context)
        out = attention(
            q,
            k,
            v,
            log_f,
            seq_start=seq_start,
            log_pruning_tolerance=self.log_pruning_tolerance,
            logit_bound=None if self.log_pruning_tolerance is None else self.logit_bound(),
            backend=self.backend,
        )
        assert isinstance(out, Tensor)  # and no lse, which was not asked for
        return out

    def _decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor | None,
        tokens: list[int],
        cache: LayerCache,
    ) -> Tensor:
        if torch.is_grad_enabled() and q.requires_grad:
            raise ValueError(
                "decoding through a cache has no gradient: call the model inside torch.no_grad()"
            )
        if log_f is None:
            log_f = torch.zeros(q.shape[:3], device=q.device)
        return cache.attend(q, k, v, log_f, tokens, self.backend)

    def new_cache(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        *,
        max_length: int | None = None,
        rollback: int = 32,
        log_pruning_tolerance: float | None = None,
        logit_cap: float | None = None,
    ) -> LayerCache:
        """An empty decode state; the arguments are those of FoxModel.new_cache."""
        tolerance = log_pruning_tolerance
        if tolerance is None:
            tolerance = self.log_pruning_tolerance
        weight = self.q_proj.weight
        dtype, device = dtype or weight.dtype, weight.device
        shape = (batch_size, self.num_kv_heads, self.head_dim)

        def tail(projection: nn.Module) -> Tail | None:
            if not isinstance(projection, TokenShiftLinear):
                return None
            return Tail(torch.zeros(shape, dtype=dtype, device=device), rollback)

        sizes = (batch_size, self.num_heads, self.num_kv_heads, self.head_dim)
        rest: dict[str, Any] = {"dtype": dtype, "device": device, "max_length": max_length}
        rest |= {"rollback": rollback, "log_pruning_tolerance": tolerance}
        rest |= {"k_rows": tail(self.k_proj), "v_rows": tail(self.v_proj)}
        bound, cap = self.logit_bound(), None
        if bound is None and logit_cap is not None:
            bound, cap = torch.full((self.num_heads,), logit_cap, device=device), logit_cap
        if (cap is None and logit_cap is not None) or (tolerance is None and cap is not None):
            raise ValueError(
                "logit_cap is for caches that drop keys by a log_pruning_tolerance, of models that "
                "have no QK-norm to bound their logits: leave it out"
            )
        if tolerance is not None and not tolerance <= 0:
            raise ValueError(
                "log_pruning_tolerance is the logarithm of a share of the attention weight: "
                f"expected None or at most 0, but got {tolerance}"
            )
        if log_pruning_tolerance is not None and (bound is None or self.fgate_type == "none"):
            raise ValueError(
                "a cache drops keys by log_pruning_tolerance only where gates forget and a bound "
                "of the logits is known: the model needs gates, and QK-norm or a logit_cap"
            )
        if tolerance is None or bound is None or self.fgate_type == "none":
            return SlotCache(*sizes, **rest)
        return PagedCache(*sizes, **rest, logit_bound=bound, logit_cap=cap)

    def logit_bound(self) -> Tensor | None:
        """(H,), an upper bound of |<q, k>| / sqrt(D) from the QK-norm's scales; None without it.

        Normalised vectors u, w have norm sqrt(D) at most: |<a u, b w>| <= D max_c |a_c b_c|. A
        rotation mixes channels r and r + D/2: there the larger scale of the pair stands for both.
        """
        if self.q_norm is None or self.k_norm is None:
            return None
        a, b = self.q_norm.scales().abs(), self.k_norm.scales().abs()
        if len(b) > 1:
            b = b.repeat_interleave(self.num_heads // self.num_kv_heads, dim=0)
        if self.rope_base is not None:
            a, b = (x.view(-1, 2, self.head_dim // 2).amax(1) for x in (a, b))
        # The margin covers the rounding of q and k to bfloat16, the coarsest input, after the norm
        # and after the rotation: 2^-8 each.
        margin = (1 + 2**-7) if self.rope_base is None else (1 + 2**-6)
        return ((a * b).amax(-1) * math.sqrt(self.head_dim) * margin).expand(self.num_heads)


def linear_float32(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer in float32, whatever the dtype of its weights, its input or autocast."""
    bias = layer.bias if layer.bias is None else layer.bias.float()
    with without_autocast(x.device):
        return F.linear(x.float(), layer.weight.float(), bias)


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary position embedding of the pairs (x_r, x_{r + D/2}) by position * base^(-2r/D).

    Args:
        x: (B, T, H, D).
        position: (B, T) or (1, T), whole numbers.
        base: the angle's base.

    Returns:
        (B, T, H, D) in the dtype of x.

    Source: Su et al., RoFormer, 2021, in the half-split layout.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, :, None, None].float() * frequency  # (B, T, 1, D/2)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
