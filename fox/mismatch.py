"""Weights against the model of a config: what differs, and the likely cause."""

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def mismatch(expected: Shapes, given: Shapes, num_heads: int) -> str:
    """Every tensor that differs, with both shapes, and what in the config may be wrong; "" if none.

    Args:
        expected: name -> shape of the config's model.
        given: name -> shape of the weights.
        num_heads: of the config; for weights without gates, which do not tell it.
    """
    lines = differences(expected, given)
    if not lines:
        return ""
    said, told = options_of(expected, num_heads), options_of(given, num_heads)
    causes = [
        f"{name} is {told[name]!r} in the weights, but {value!r} by the config"
        for name, value in said.items()
        if name in told and told[name] != value
    ]
    if told.get("vocab_size", 0) > said["vocab_size"]:
        causes[0] += " (a padded vocabulary?)"
    cause = "; ".join(causes) or "the file is incomplete, or of another kind of model"
    return f"{'; '.join(lines)}. Likely cause: {cause}"


def differences(expected: Shapes, given: Shapes) -> list[str]:
    """One line per tensor that is missing, unexpected or of another shape.

    Tensors that differ in the same way in several layers share a line.
    """
    groups: dict[str, list[str]] = {}
    for name in [*expected, *sorted(given.keys() - expected.keys())]:
        if name not in given:
            line = f"missing: {name}"
        elif name not in expected:
            line = f"unexpected: {name}"
        elif expected[name] != given[name]:
            line = f"{name}: expected {expected[name]}, got {given[name]}"
        else:
            continue
        groups.setdefault(re.sub(r"layers\.\d+", "layers", line), []).append(line)
    return [
        first + (f" ({len(others) + 1} layers alike)" if others else "")
        for first, *others in groups.values()
    ]


def options_of(shapes: Shapes, num_heads: int) -> dict[str, Any]:
    """The options that names and shapes tell, in any of the formats; {} without an embedding."""
    ends = ("embeddings.weight", "embed_tokens.weight")
    embedding = [shape for name, shape in shapes.items() if name.endswith(ends)]
    layers = [int(found[1]) for name in shapes if (found := re.search(r"layers\.(\d+)\.", name))]
    if not embedding or len(embedding[0]) != 2 or not layers:
        return {}
    vocab_size, hidden_size = embedding[0]
    block = {
        re.sub(r".*layers\.0\.(self_)?(attn|mlp)\.", "", name): shapes[name] for name in shapes
    }
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": max(layers) + 1,
        "tie_word_embeddings": not any(name.endswith("lm_head.weight") for name in shapes),
        "separate gate_proj and up_proj (fla's and Llama's format)": "up_proj.weight" in block,
        "qkv_bias": "q_proj.bias" in block,
        "use_k_shift": "k_proj.shift_proj.weight" in block,
        "use_v_shift": "v_proj.shift_proj.weight" in block,
        "qk_norm": "q_norm.weight" in block,
        "use_output_norm": "output_norm.weight" in block,
        "use_output_gate": bool(block.keys() & {"ogate_proj.weight", "g_proj.weight"}),
        "fgate_type": "none",
    }
    for name, kind in (
        ("fgate_proj.bias", "full"),
        ("f_proj.bias", "full"),
        ("fgate_bias", "bias_only or fixed"),
    ):
        if name in block:
            options |= {"fgate_type": kind, "num_heads": block[name][0]}
            num_heads = block[name][0]
    for name in ("k_proj.weight", "k_proj.linear.weight"):
        if name in block:
            options["num_kv_heads"] = block[name][0] * num_heads // hidden_size
    if "q_norm.weight" in block:
        shared = block["q_norm.weight"] != (hidden_size,)
        options["qk_norm_share_param_across_head"] = shared
    if "down_proj.weight" in block:
        options["intermediate_size"] = block["down_proj.weight"][1]
    return options
