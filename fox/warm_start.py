"""The command fox-warm-start: a Transformer becomes a FoX that begins where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from fox.checkpoints import build, read_checkpoint
from fox.convert import check_target, run, write_checked
from fox.layers import ForgettingAttention
from fox.model import FoxForCausalLM

# AdamW moves the logit of a gate by as much for any time constant T, until the gradient, which
# falls as 1 / T, is below its eps of 1e-8. So T should be long enough for the first loss, and no
# longer: after 60 steps at a learning rate of 1e-3, gates of 4 training rows were at 2.6, gates of
# 64 at 38, and gates of 65,536 had moved by 3 %.
OPEN = 4  # training rows
# Without RoPE something must tell near from far: after the same 60 steps the loss was 4.78 where
# the heads began spread from 4 tokens to 4 rows, 4.93 where all began at 16 rows; 4.65 with RoPE.
LOCAL = 4.0  # tokens


@torch.no_grad()
def open_gates(
    model: FoxForCausalLM, decay_time_min: float, decay_time_max: float, *, use_rope: bool = True
) -> FoxForCausalLM:
    """A FoX with the weights of a Transformer, whose gates forget next to nothing yet.

    log f = -1 / T for every token: gate weights are 0, and the biases give each head its time
    constant T, spread as by FoxConfig's decay times. Over N tokens a logit falls by N / T at most,
    so the output is the Transformer's up to that.

    Args:
        model: without gates; it shares the memory of its weights with the result.
        decay_time_min, decay_time_max: T of the first and of the last head, in tokens.
        use_rope: keep rotary position embedding where the model has it; without it the output is
            that of the Transformer without it, which has to learn positions anew from its gates.

    Raises:
        ValueError: the model has gates already, or not 0 < decay_time_min <= decay_time_max.
    """
    if model.config.fgate_type != "none":
        raise ValueError(
            "expected a Transformer, but the model has forget gates already "
            f"(fgate_type {model.config.fgate_type!r}): train it on as it is"
        )
    times = {"decay_time_min": decay_time_min, "decay_time_max": decay_time_max}
    config = model.config.replace(fgate_type="full", use_rope=use_rope and model.config.use_rope)
    with torch.device("meta"):
        fox = FoxForCausalLM(config.replace(**times))
    fox.load_state_dict(model.state_dict(), strict=False, assign=True)
    fox.tie_weights()
    for layer in fox.modules():
        if isinstance(layer, ForgettingAttention):
            layer.fgate_proj.to_empty(device=model.lm_head.weight.device)
            layer.fgate_proj.weight.zero_()
            layer.reset_fgate_bias()
            layer.fgate_proj.to(model.lm_head.weight.dtype)
    fox.config = fox.model.config = config  # the times were for the start, and no format needs them
    return fox.train(model.training)


def warm_start(
    source: str,
    target: str,
    rope: Literal["keep", "drop"] = "keep",
    decay_time_min: float | None = None,
    decay_time_max: float | None = None,
) -> None:
    """Turns a Transformer into a FoX, whole or not at all, and prints what became of each tensor.

    Args:
        source: a Transformer: a Llama of transformers, the official Transformer, or one of ours.
        target: the folder to write, in our format; it must be empty or not there yet.
        rope: keep rotary position embedding, so that the loss is the Transformer's at first, or
            drop it, so that the loss is worse at first and positions come from the gates alone.
        decay_time_min, decay_time_max: time constants of the first and of the last head's gates, in
            tokens. If None, both are 4 training rows where RoPE is kept: no attention weight falls
            by more than a quarter. Where it is dropped, the first is 4 tokens.

    Raises:
        ValueError: the source is no Transformer, it does not tell how long its training rows were
            and no times are given, or the target is not empty.
    """
    check_target(Path(target))
    checkpoint = read_checkpoint(Path(source))
    row = checkpoint.config.max_position_embeddings
    if row is None and None in (decay_time_min, decay_time_max):
        raise ValueError(
            f"{source} does not tell the length of its training rows (max_position_embeddings): "
            f"pass --decay_time_min and --decay_time_max, such as {OPEN} times that length"
        )
    longest = OPEN * (row or 0) if decay_time_max is None else decay_time_max
    usual = min(LOCAL, longest) if rope == "drop" else longest
    shortest = usual if decay_time_min is None else decay_time_min
    model = open_gates(build(checkpoint), shortest, longest, use_rope=rope == "keep")
    write_checked(checkpoint, model, Path(target), "fox")
    if checkpoint.config.use_rope and not model.config.use_rope:
        print("rotary position embedding: dropped, it had no tensors")
    print(f"gates are open: time constants of {shortest:g} to {longest:g} tokens")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-warm-start with these arguments, or with those of the process."""
    run(
        "fox-warm-start",
        "Turn a Transformer into a FoX that begins with its weights and goes on from its loss.",
        warm_start,
        arguments,
    )
