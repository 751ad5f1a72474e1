"""What the gates of a model do on a text: half-lives, decay, attention and what pruning skips.

Legend: T tokens, H heads, n blocks of a map.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from fox.eval.gates_page import draw
from fox.eval.models import load_model
from fox.eval.progress import progress
from fox.eval.text import documents_of
from fox.files import write_csv, write_json
from fox.kernels.gates import running_log_gates
from fox.model import FoxForCausalLM
from fox.observe import LOG_PRUNING_TOLERANCE, Observed, computed_shares, half_life, observe

MAX_BLOCKS = 256  # a map has at most so many rows and columns
LAST_TOKENS = 32  # shown one by one
SHORTEST_PREFIX = 64  # tokens

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class Maps:
    """Where one head looks, over the text pooled to blocks, and token by token at its end.

    Attributes:
        attention: (n, n), the share of its attention that a query of block i gives to block j.
        decay: (n, n), the mean of sum_{l = j+1..i} log f_l over the blocks, at most 0; None
            without gates.
        last_attention, last_decay: (m, m), the same for the last m tokens, not pooled.
    """

    attention: Tensor
    decay: Tensor | None
    last_attention: Tensor
    last_decay: Tensor | None


def inspect_model(model: str, output: str, *, text: str | None = None, length: int = 1024) -> None:
    """Show what the gates do on a text: half-lives, decay, attention and what pruning skips.

    Args:
        model: a folder or a .ckpt file of ours, or an official, fla or Llama checkpoint. One
            without gates gets its attention maps alone.
        output: folder for inspect.png, inspect.json, inspect.csv (by head) and inspect_tokens.csv
            (gates by token).
        text: a UTF-8 file; a held-out document of the standard library if not given.
        length: tokens to look at, from the beginning of the text.

    Raises:
        ValueError: the model is of another kind, the text is no UTF-8 or has fewer than 2 tokens.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, but got {length}")
    loaded = load_model(model)
    if loaded.native is None:
        raise ValueError(
            f"expected a FoX or a Transformer of ours, but {model} holds a "
            f"{type(loaded.network).__name__}: its layers cannot be looked into"
        )
    name, ids = beginning(loaded.tokenizer, text, length)
    tokens = torch.tensor([ids], device=loaded.device)
    steps = 2 * loaded.native.config.num_hidden_layers
    with progress("inspect", steps) as advance:
        heads, log_f = measure(loaded.native, tokens, advance)
        chosen = most_local_to_most_global(heads)
        maps = maps_of(loaded.native, tokens, list(chosen.values()), advance)
    result = {
        "model": model,
        "text": name,
        "tokens": len(ids),
        "training_length": loaded.training_length,
        "log_pruning_tolerance": LOG_PRUNING_TOLERANCE,
        "chosen": {place: list(head) for place, head in chosen.items()},
        "heads": heads,
    }
    folder, words = Path(output), [loaded.tokenizer.decode([token]) for token in ids]
    write_csv(folder / "inspect.csv", [flat(head) for head in heads])
    write_json(folder / "inspect.json", result)
    if log_f is not None:
        write_csv(folder / "inspect_tokens.csv", gates_by_token(words, log_f, chosen))
    report(result)
    draw(result, maps, words, log_f, folder / "inspect.png")


def beginning(tokenizer: Tokenizer, text: str | None, length: int) -> tuple[str, list[int]]:
    """Name and first ids of a file, or of the first held-out document that is long enough.

    Raises:
        ValueError: the file is no UTF-8 or holds fewer than 2 tokens.
    """
    if text is None:
        longest: tuple[str, list[int]] = ("", [])
        for document in documents_of(None, "held_out"):
            ids = tokenizer.encode(document.text, add_special_tokens=False).ids
            if len(ids) > len(longest[1]):
                longest = (document.name, ids[:length])
            if len(ids) >= length:
                break
        return longest
    try:
        content = Path(text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {text}, but {error}") from None
    ids = tokenizer.encode(content, add_special_tokens=False).ids
    if len(ids) < 2:
        raise ValueError(f"expected at least 2 tokens of text in {text}, but got {len(ids)}")
    return text, ids[:length]


def measure(
    model: FoxForCausalLM, tokens: Tensor, advance: Callable[[str], None]
) -> tuple[list[dict[str, Any]], Tensor | None]:
    """Numbers of every head, and the log gates.

    Args:
        model: on the device of the tokens.
        tokens: (1, T).
        advance: called with a note after each layer.

    Returns:
        for each head its layer, head, half_life (tokens; None if it forgets nothing), gate_mean,
        gate_std and computed_share by length of the text; without gates attention_distance (mean,
        in tokens) instead. log f (L, T, H), on the CPU; None without gates.
    """
    heads: list[dict[str, Any]] = []
    log_gates: list[Tensor] = []

    def visit(observed: Observed) -> None:
        H = observed.q.shape[2]
        if observed.log_f is None:
            numbers: list[dict[str, Any]] = [
                {"attention_distance": distance(observed, head)} for head in range(H)
            ]
        else:
            log_gates.append(observed.log_f[0].cpu())
            numbers = gate_numbers(observed)
        for head, own in enumerate(numbers):
            heads.append({"layer": observed.layer, "head": head, **own})
        advance(f"layer {observed.layer}, gates")

    observe(model, tokens, visit)
    return heads, torch.stack(log_gates) if log_gates else None


def gate_numbers(observed: Observed) -> list[dict[str, Any]]:
    """Of each head of a layer; see `measure`."""
    assert observed.log_f is not None
    T = observed.log_f.shape[1]
    prefixes = [n for n in (SHORTEST_PREFIX << k for k in range(31)) if n < T] + [T]
    shares = {n: computed_shares(prefix_of(observed, n), LOG_PRUNING_TOLERANCE) for n in prefixes}
    gates = observed.log_f[0].exp()  # (T, H)
    means, spreads = gates.mean(0).tolist(), gates.std(0).tolist()
    return [
        {
            "half_life": tokens if math.isfinite(tokens) else None,
            "gate_mean": means[head],
            "gate_std": spreads[head],
            "computed_share": {str(n): share[head].item() for n, share in shares.items()},
        }
        for head, tokens in enumerate(half_life(observed).tolist())
    ]


def prefix_of(observed: Observed, length: int) -> Observed:
    """The same for the first tokens alone: attention is causal."""
    assert observed.log_f is not None
    q, k, log_f = (x[:, :length] for x in (observed.q, observed.k, observed.log_f))
    return replace(observed, q=q, k=k, log_f=log_f)


def most_local_to_most_global(heads: list[dict[str, Any]]) -> dict[str, Head]:
    """The heads that look back least and farthest, and the one in the middle."""

    def reach(head: dict[str, Any]) -> float:
        if "attention_distance" in head:
            return head["attention_distance"]
        return math.inf if head["half_life"] is None else head["half_life"]

    order = sorted(heads, key=reach)
    places = {"most local": order[0], "median": order[len(order) // 2], "most global": order[-1]}
    return {name: (head["layer"], head["head"]) for name, head in places.items()}


def maps_of(
    model: FoxForCausalLM, tokens: Tensor, heads: list[Head], advance: Callable[[str], None]
) -> list[Maps]:
    """The maps of these heads, in their order."""
    found: dict[Head, Maps] = {}

    def visit(observed: Observed) -> None:
        for layer, head in heads:
            if layer == observed.layer:
                found[layer, head] = head_maps(observed, head)
        advance(f"layer {observed.layer}, maps")

    observe(model, tokens, visit)
    return [found[head] for head in heads]


def head_maps(observed: Observed, head: int) -> Maps:
    """Decay between blocks is that of their mean tokens: 0 within a block and above."""
    T = observed.q.shape[1]
    last = slice(max(0, T - LAST_TOKENS), T)
    position = torch.arange(T, device=observed.q.device)
    last_attention = attention(observed, head, position[last])[:, last].cpu()
    decay = last_decay = None
    if observed.log_f is not None:
        sums = running(observed, head)
        means = torch.stack([block.mean() for block in sums.split(block_size(T))])
        decay, last_decay = (
            (x[:, None] - x).clamp(max=0).float().cpu() for x in (means, sums[last])
        )
    return Maps(attention_map(observed, head), decay, last_attention, last_decay)


def attention_map(observed: Observed, head: int) -> Tensor:
    """(n, n) float32, CPU: what queries of block i give to all keys of block j, in the mean.

    One block of queries at a time, so that memory grows with T^2 / 256.
    """
    T = observed.q.shape[1]
    size = block_size(T)
    blocks = []
    for rows in torch.arange(T, device=observed.q.device).split(size):
        weights = F.pad(attention(observed, head, rows), (0, -T % size))
        blocks.append(weights.unflatten(-1, (-1, size)).sum(-1).mean(0))
    return torch.stack(blocks).cpu()


def attention(observed: Observed, head: int, rows: Tensor) -> Tensor:
    """(rows, T) float32: the attention of these queries."""
    q, k = observed.q[0, :, head].float(), observed.k[0].float()  # (T, D), (T, H_kv, D)
    k = k[:, head * k.shape[1] // observed.q.shape[2]]
    sums = running(observed, head)
    decay = (sums[rows, None] - sums).float()
    future = torch.arange(len(k), device=k.device) > rows[:, None]
    logits = q[rows] @ k.T / math.sqrt(q.shape[1]) + decay
    return logits.masked_fill(future, -math.inf).softmax(-1)


def running(observed: Observed, head: int) -> Tensor:
    """(T,) float64: sum_{l <= t} log f_l; zeros without gates."""
    if observed.log_f is None:
        return torch.zeros(observed.q.shape[1], dtype=torch.float64, device=observed.q.device)
    return running_log_gates(observed.log_f[:, :, head : head + 1])[0, 0]


def block_size(T: int) -> int:
    """Tokens that share a row of a map."""
    return -(-T // MAX_BLOCKS)


def distance(observed: Observed, head: int) -> float:
    """Tokens that a query looks back, weighted by its attention, in the mean over the text."""
    weights = attention_map(observed, head)
    place = torch.arange(len(weights))
    back = (place[:, None] - place) * block_size(observed.q.shape[1])
    return (weights * back).sum(1).mean().item()


def flat(head: dict[str, Any]) -> dict[str, Any]:
    """A row of the CSV: the computed share at the whole length only."""
    row = {name: value for name, value in head.items() if name != "computed_share"}
    if "computed_share" in head:
        row["computed_share"] = list(head["computed_share"].values())[-1]
    return row


def gates_by_token(
    words: list[str], log_f: Tensor, chosen: dict[str, Head]
) -> list[dict[str, Any]]:
    """One row per token with the gates of the chosen heads."""
    gates = {
        f"layer {layer}, head {head}": log_f[layer, :, head].exp().tolist()
        for layer, head in chosen.values()
    }
    return [
        {"position": t, "token": word, **{name: values[t] for name, values in gates.items()}}
        for t, word in enumerate(words)
    ]


def report(result: dict[str, Any]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    print_line(f"{result['model']} on {result['tokens']:,} tokens of {result['text']}")
    heads = {(head["layer"], head["head"]): head for head in result["heads"]}
    if "half_life" not in result["heads"][0]:
        print_line(
            "  the model has no forget gates: its attention maps are drawn, and nothing else"
        )
        return
    for place, (layer, head) in result["chosen"].items():
        tokens = heads[layer, head]["half_life"]
        told = "forgets nothing" if tokens is None else f"half-life {tokens:,.1f} tokens"
        print_line(f"  {place}: layer {layer}, head {head}: {told}")
    share = fmean(flat(head)["computed_share"] for head in result["heads"])
    print_line(
        f"  pruning at {result['log_pruning_tolerance']:g} skips {1 - share:.1%} of attention"
    )
