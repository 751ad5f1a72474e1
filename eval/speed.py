"""Speed and memory of training and of decoding against the length of the context.

Training: forward, backward and AdamW on random rows. Decoding: new tokens one by one behind a
context that the cache holds. Rounds go over all models in turn, so that a busy machine slows all
alike; the figures are medians over rounds. Peak memory counts everything from the weights on: on a
GPU what PyTorch allocated, on a CPU the growth of a fresh process (Linux).

Legend: B rows, T length of the context in tokens.
"""

import gc
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fox.config import FoxConfig
from fox.eval.models import is_ours, learned_positions, load_model, tail_names
from fox.eval.progress import progress
from fox.eval.store import Store, run_key
from fox.figures import PALETTE, new_figure, plain_axes, save_figure
from fox.files import read_json, write_csv, write_json
from fox.formats import read_config
from fox.model import FoxForCausalLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["training", "decoding"]

FAMILIES = ("fox-pro", "fox-llama", "transformer-pro", "transformer-llama")
FOUR = [f"{family}-small" for family in FAMILIES]
SMALL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_heads": 4,
    "max_position_embeddings": None,
}
STEPS, NEW_TOKENS, PREFILL = 2, 32, 2048


def speed(
    output: str,
    *,
    model: list[str] = FOUR,
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096),
    kinds: tuple[Kind, ...] = ("training", "decoding"),
    tokens_per_step: int = 4096,
    rounds: int = 3,
) -> None:
    """Tokens per second and peak memory of training and decoding, by context length.

    Finished measurements are kept in speed.jsonl: a second call on the same machine does only what
    is left.

    Args:
        output: folder for speed.jsonl, .csv, .json and .png.
        model: presets with random weights, such as fox-pro-125m, or fox-pro-small of 4 layers of
            width 256; a config.json, likewise; or any model that the other commands take.
        lengths: of the context, in tokens.
        kinds: training, decoding or both.
        tokens_per_step: of a training step, in rows of the length; at least one row.
        rounds: repetitions of every measurement.

    Raises:
        ValueError: nothing to measure, or a model that cannot be built or is too short.
    """
    if not model or not lengths or not kinds or min(lengths) < 1 or rounds < 1:
        raise ValueError(
            "expected at least one model, one length, one kind and one round, but got "
            f"{len(model)}, {len(lengths)}, {len(kinds)} and {rounds}"
        )
    names = dict(zip(model, tail_names(model), strict=True))
    machine = machine_of()
    folder = Path(output)
    store = Store(folder / "speed.jsonl", run_key(machine, tokens_per_step))
    prints = {name: config_key(name) for name in model}
    done = {(row["config"], row["kind"], row["length"], row["round"]) for row in store.rows}
    cells = [
        (name, kind, T, turn)
        for T in sorted(set(lengths))
        for kind in dict.fromkeys(kinds)
        for turn in range(rounds)
        for name in model
    ]
    left = [cell for cell in cells if (prints[cell[0]], *cell[1:]) not in done]
    with progress(f"speed, {len(cells) - len(left)} measurements known", len(left)) as advance:
        for name, kind, T, turn in left:
            row = measure(name, kind, T, tokens_per_step)
            if machine["device"] == "cpu" and turn == 0:
                row["peak_bytes"] = peak_in_process(name, kind, T, tokens_per_step)
            about = {"config": prints[name], "kind": kind, "length": T, "round": turn}
            store.append([about | row])
            advance(f"{names[name]}, {kind} at {T:,}")
    lines = [
        {
            "model": names[name],
            "kind": kind,
            "length": T,
            **summarize(store.rows, prints[name], kind, T),
        }
        for name in model
        for kind in dict.fromkeys(kinds)
        for T in sorted(set(lengths))
    ]
    write_csv(folder / "speed.csv", lines)
    about = {"machine": machine, "tokens_per_step": tokens_per_step, "rounds": rounds}
    write_json(folder / "speed.json", {**about, "cells": lines})
    report(lines)
    draw(lines, machine, folder / "speed.png")


def machine_of() -> dict[str, Any]:
    """What the numbers depend on besides the model."""
    gpu = torch.cuda.is_available()
    return {
        "device": "cuda" if gpu else "cpu",
        "name": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def preset(name: str) -> FoxConfig | None:
    """The config of a preset's name; None if it is no such name."""
    family, _, size = name.rpartition("-")
    if family not in FAMILIES:
        return None
    return (
        FoxConfig.preset(f"{family}-125m", **SMALL) if size == "small" else FoxConfig.preset(name)
    )


def config_key(name: str) -> str:
    """Changes with the model, as far as its speed depends on it."""
    if (config := preset(name)) is not None:
        return run_key(config)
    if name.endswith(".json"):
        return run_key(read_json(Path(name)))
    return load_model(name).fingerprint()


def build(name: str, device: str) -> Any:
    """The network of a preset or a config with random weights, or of a model with its own."""
    if (config := preset(name)) is not None:
        return FoxForCausalLM(config).to(device)
    if not name.endswith(".json"):
        return load_model(name).network.to(device)
    fields = read_json(Path(name))
    if is_ours(fields):
        return FoxForCausalLM(read_config(fields)).to(device)
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name)).to(device)


def measure(name: str, kind: Kind, T: int, tokens_per_step: int) -> dict[str, Any]:
    """tokens_per_second and peak_bytes (None on a CPU); both None if a GPU's memory is too small.

    Raises:
        ValueError: the model's positions end before T.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            network = build(name, device)
            reach = learned_positions(network) if not isinstance(network, FoxForCausalLM) else None
            if reach is not None and reach < T + NEW_TOKENS:
                raise ValueError(
                    f"{name} has learned positions for {reach:,} tokens, but measuring at {T:,} "
                    f"needs {T + NEW_TOKENS:,}: lower --lengths"
                )
            rate = training_rate if kind == "training" else decoding_rate
            speed = rate(network, T, max(1, tokens_per_step // T), device)
        except torch.OutOfMemoryError:
            return {"tokens_per_second": None, "peak_bytes": None}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"tokens_per_second": speed, "peak_bytes": peak}


def training_rate(network: Any, T: int, B: int, device: str) -> float:
    """Tokens per second of whole steps; products in bfloat16 on a GPU."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    ours = {"return_logits": False} if isinstance(network, FoxForCausalLM) else {}
    ids = torch.randint(vocabulary(network), (B, T), device=device)
    network.train()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = network(ids, labels=ids, **ours).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return STEPS * B * T / seconds(step, STEPS, device)


@torch.no_grad()
def decoding_rate(network: Any, T: int, B: int, device: str) -> float:
    """New tokens per second behind T tokens, one row; weights in bfloat16 on a GPU."""
    network = network.to(torch.bfloat16 if device == "cuda" else torch.float32).eval()
    ids = torch.randint(vocabulary(network), (1, T), device=device)
    read = reader(network, T)
    for chunk in ids.split(PREFILL, dim=1):
        token = read(chunk)

    def step() -> None:
        nonlocal token
        token = read(token)

    return (NEW_TOKENS - 1) / seconds(step, NEW_TOKENS - 1, device)


def reader(network: Any, T: int) -> Callable[[Tensor], Tensor]:
    """(1, n) ids behind all earlier ones -> the likeliest next id (1, 1); keeps the cache."""
    if isinstance(network, FoxForCausalLM):
        cache = network.new_cache(1, max_length=T + NEW_TOKENS)

        def read(ids: Tensor) -> Tensor:
            return network.lm_head(network.model(ids, cache=cache)[:, -1:]).argmax(-1)

        return read
    past = None

    def read_foreign(ids: Tensor) -> Tensor:
        nonlocal past
        out = network(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        return out.logits[:, -1:].argmax(-1)

    return read_foreign


def vocabulary(network: Any) -> int:
    config = network.config
    return (
        config.vocab_size if isinstance(config, FoxConfig) else config.get_text_config().vocab_size
    )


def seconds(step: Callable[[], None], count: int, device: str) -> float:
    """Of `count` steps, after one to warm up."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_in_process(name: str, kind: Kind, T: int, tokens_per_step: int) -> int | None:
    """Peak resident bytes that a measurement adds to a fresh process; None where not Linux."""
    if not Path("/proc/self/status").is_file():
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(growth, name, kind, T, tokens_per_step, torch.get_num_threads()).result()


def growth(name: str, kind: Kind, T: int, tokens_per_step: int, threads: int) -> int:
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    measure(name, kind, T, tokens_per_step)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(value)


def summarize(rows: list[dict[str, Any]], config: str, kind: Kind, T: int) -> dict[str, Any]:
    """Median speed, its range and the largest peak of one cell; None where memory was short."""
    own = [row for row in rows if (row["config"], row["kind"], row["length"]) == (config, kind, T)]
    speeds = [row["tokens_per_second"] for row in own if row["tokens_per_second"] is not None]
    peaks = [row["peak_bytes"] for row in own if row["peak_bytes"] is not None]
    return {
        "tokens_per_second": median(speeds) if speeds else None,
        "slowest": min(speeds, default=None),
        "fastest": max(speeds, default=None),
        "peak_mebibytes": max(peaks) / 2**20 if peaks else None,
    }


def report(lines: list[dict[str, Any]]) -> None:
    table = Table("model", "kind", "length", "tokens/s", "peak MiB")
    for line in lines:
        numbers = (line["length"], line["tokens_per_second"], line["peak_mebibytes"])
        shown = ("-" if number is None else f"{number:,.0f}" for number in numbers)
        table.add_row(line["model"], line["kind"], *shown)
    Console(highlight=False, markup=False).print(table)


def draw(lines: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    """Training speed and decoding speed from zero, and both peaks on a logarithmic axis."""
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    figure = new_figure(5.4 * (len(kinds) + 1), 4.6)
    where = (
        machine["name"] if machine["device"] == "cuda" else f"CPU, threads: {machine['threads']}"
    )
    figure.suptitle(f"Speed and memory by context length, {where}", fontweight="bold")
    *speeds, memory = figure.subplots(1, len(kinds) + 1)
    for axes, kind in zip(speeds, kinds, strict=True):
        curves(axes, [line for line in lines if line["kind"] == kind], "tokens_per_second", "-")
        axes.set_ylim(bottom=0)
        plain_axes(axes, f"{kind.capitalize()} speed", "context (tokens)", "tokens per second")
    for kind, style in zip(kinds, ("-", "--"), strict=False):
        own = [line for line in lines if line["kind"] == kind]
        curves(memory, own, "peak_mebibytes", style)
    memory.set_yscale("log")
    memory.yaxis.set_minor_formatter(
        lambda value, _: f"{value:,.0f}" if str(value)[0] in "25" else ""
    )
    memory.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title = "Peak memory (dashed: decoding)" if len(kinds) > 1 else "Peak memory"
    plain_axes(memory, title, "context (tokens)", "MiB, weights and all")
    speeds[0].legend(frameon=False, fontsize=8.5, loc="lower left")
    save_figure(figure, path)


def curves(axes: "Axes", lines: list[dict[str, Any]], measure: str, style: str) -> None:
    """One curve per model, with bars from the slowest to the fastest round."""
    for number, name in enumerate(dict.fromkeys(line["model"] for line in lines)):
        own = [line for line in lines if line["model"] == name and line[measure] is not None]
        at, values = [line["length"] for line in own], [line[measure] for line in own]
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(at, values, f"o{style}", color=colour, markersize=4, label=name)
        if measure == "tokens_per_second":
            low, high = [line["slowest"] for line in own], [line["fastest"] for line in own]
            axes.vlines(at, low, high, color=colour, alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
