"""How fast is decoding, and how large the cache, beside Transformers of equal size?

Ways, all of the same number of parameters within 1 %:
  fox           FoX (Pro), every key kept
  fox evicting  FoX (Pro) with log_pruning_tolerance = -10: forgotten keys leave the cache
  llama         Transformer (LLaMA) of this package
  transformers  Llama of the transformers library with its default cache

The weights are random, as speed does not depend on them; the gates are not. They are either
  mixed    biases 0.5, 2, 4 and 8 and standard normal noise on the logits: three local heads with
           memories of about 2, 6 and 30 tokens to one global head with 1800
  trained  recorded from a checkpoint that reads text (the demo's, `make demo`), head by head, with
           the bound that its QK-norm sets on the logits

Each context is read in chunks of 1,024 tokens; then the ways decode in turn, a few tokens each per
round, so that other work on the machine slows all; ratios are medians over rounds of ratios within
a round. Bytes are what the cache has allocated.

    python benchmarks/decode_cpu.py --checkpoint runs/demo/model
    python benchmarks/decode_cpu.py --device cuda --size 760m --contexts 32768 131072 \\
        --output benchmarks/results/decode_gpu.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from fox import FoxConfig, FoxForCausalLM
from fox.checkpoints import load_checkpoint
from fox.corpus import standard_library

RESULTS = Path(__file__).parent / "results"
CHUNK = 1024
TOLERANCE = -10.0
MIXED = (0.5, 2.0, 4.0, 8.0)
SIZES = {
    "25m": {"vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": 6, "num_heads": 8},
    "760m": {"vocab_size": 50257, "hidden_size": 1536, "num_hidden_layers": 24, "num_heads": 24},
}
# (LLaMA, Pro): the output gate's matrix is paid for by the MLP.
MLP = {"25m": (1536, 1360), "760m": (4096, 3584)}
PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}


class Gates:
    """Log gates (layers, tokens, heads) of a text, dealt out to a model's layers as it reads on."""

    def __init__(self, log_f: Tensor) -> None:
        self.log_f = log_f

    def install(self, model: FoxForCausalLM) -> None:
        """Starts the text again."""
        for number, layer in enumerate(model.model.layers):
            layer.attn.log_gates = self._reader(number)

    def _reader(self, layer: int) -> Callable[[Tensor], Tensor]:
        read = 0

        def log_gates(x: Tensor) -> Tensor:
            nonlocal read
            place = torch.arange(read, read + x.shape[1], device=x.device) % self.log_f.shape[1]
            read += x.shape[1]
            return self.log_f[layer, place].unsqueeze(0)

        return log_gates


def mixed_gates(config: FoxConfig, tokens: int) -> Gates:
    shape = (config.num_hidden_layers, tokens, config.num_heads)
    bias = torch.tensor(MIXED).repeat(config.num_heads)[: config.num_heads]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Gates(F.logsigmoid(noise + bias))


@torch.no_grad()
def trained_gates(checkpoint: Path, config: FoxConfig, tokens: int) -> tuple[Gates, Tensor]:
    """Gates of a checkpoint that reads text, and its heads' logit bounds, each repeated to fit."""
    model, tokenizer = load_checkpoint(checkpoint)
    if tokenizer is None:
        raise SystemExit(f"{checkpoint} has no tokenizer, so it cannot read text")
    text = "\n".join(document.text for document in standard_library()[:200])
    ids = torch.tensor(tokenizer.encode(text).ids[:tokens])[None]
    heard: dict[int, list[Tensor]] = {}
    for number, layer in enumerate(model.model.layers):
        attention = layer.attn
        gates = attention.log_gates
        attention.log_gates = _recorder(gates, heard.setdefault(number, []))
    cache = model.new_cache(1)
    for chunk in ids.split(CHUNK, dim=1):
        model.model(chunk, cache=cache)
    recorded = torch.cat([torch.cat(parts, dim=1)[0] for parts in heard.values()], dim=1)
    bounds = torch.cat([layer.attn.logit_bound() for layer in model.model.layers])
    needed = config.num_hidden_layers * config.num_heads
    place = torch.arange(needed) % recorded.shape[1]
    log_f = recorded[:, place].view(-1, config.num_hidden_layers, config.num_heads)
    return Gates(log_f.transpose(0, 1).contiguous()), bounds[place].view(-1, config.num_heads)


def _recorder(gates: Callable[[Tensor], Tensor], heard: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def log_gates(x: Tensor) -> Tensor:
        heard.append(gates(x))
        return heard[-1]

    return log_gates


class FoxWay:
    """A model of this package and its cache."""

    def __init__(self, model: FoxForCausalLM, gates: Gates | None, **options: Any) -> None:
        self.model, self.gates, self.options = model, gates, options

    def start(self, more: int) -> None:
        """An empty cache; `more` tokens will follow the context."""
        if self.gates is not None:
            self.gates.install(self.model)
        self.cache, self.more = self.model.new_cache(1, **self.options), more

    def read(self, ids: Tensor) -> None:
        """One chunk of the context."""
        self.model.model(ids, cache=self.cache)

    def step(self, ids: Tensor) -> Tensor:
        """One token: logits."""
        return self.model(ids, cache=self.cache).logits

    def ready(self) -> None:
        """Room for what will follow."""
        self.cache.reserve(self.more)

    def kept(self) -> tuple[int, float]:
        """Bytes, and the share of keys that are still there."""
        report = self.cache.report()
        return report.bytes, float(report.kept.double().mean()) / self.cache.length


class LlamaWay:
    """transformers' Llama and its default cache."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model

    def start(self, more: int) -> None:
        """An empty cache."""
        self.cache = DynamicCache(config=self.model.config)

    def read(self, ids: Tensor) -> None:
        """One chunk of the context."""
        self.model(ids, past_key_values=self.cache, logits_to_keep=1)

    step = read

    def ready(self) -> None:
        """It grows by itself, anew at every token."""

    def kept(self) -> tuple[int, float]:
        """Bytes, and 1."""
        layers = self.cache.layers
        return sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)), 1.0


def ways(arguments: argparse.Namespace, tokens: int) -> dict[str, FoxWay | LlamaWay]:
    """Every way, by its name."""
    size, (llama_dim, pro_dim) = SIZES[arguments.size], MLP[arguments.size]
    torch.manual_seed(0)
    fox = FoxConfig(**size, **PRO, intermediate_size=pro_dim)
    plain = FoxConfig(**size, fgate_type="none", use_rope=True, intermediate_size=llama_dim)
    llama = LlamaConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden_size"],
        intermediate_size=llama_dim,
        num_hidden_layers=size["num_hidden_layers"],
        num_attention_heads=size["num_heads"],
        max_position_embeddings=2 * max(arguments.contexts),
    )
    dtype = getattr(torch, arguments.dtype)

    def placed(model: Any) -> Any:
        return model.to(arguments.device, dtype).eval()

    mixed = mixed_gates(fox, tokens)
    mixed.log_f = mixed.log_f.to(arguments.device)
    found: dict[str, FoxWay | LlamaWay] = {
        "fox": FoxWay(placed(FoxForCausalLM(fox)), mixed),
        "fox evicting, mixed gates": FoxWay(
            placed(FoxForCausalLM(fox)), mixed, log_pruning_tolerance=TOLERANCE
        ),
    }
    if arguments.checkpoint is not None:
        gates, bounds = trained_gates(arguments.checkpoint, fox, min(tokens, 16384))
        gates.log_f = gates.log_f.to(arguments.device)
        scaled = placed(FoxForCausalLM(fox))
        for layer, bound in zip(scaled.model.layers, bounds, strict=True):
            factor = bound.to(arguments.device) / layer.attn.logit_bound()
            layer.attn.q_norm.weight.data = factor.repeat_interleave(fox.head_dim).to(dtype)
        found["fox evicting, trained gates"] = FoxWay(
            scaled, gates, log_pruning_tolerance=TOLERANCE
        )
    found["llama"] = FoxWay(placed(FoxForCausalLM(plain)), None)
    found["transformers"] = LlamaWay(placed(LlamaForCausalLM(llama)))
    return found


def parameters(way: FoxWay | LlamaWay) -> int:
    return sum(p.numel() for p in way.model.parameters())


@torch.no_grad()
def measure(
    all_ways: dict[str, FoxWay | LlamaWay], context: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Prefill of each way, then rounds in which each decodes a few tokens."""
    vocab, rounds, steps = SIZES[arguments.size]["vocab_size"], arguments.rounds, arguments.steps
    more = (rounds + 1) * steps
    ids = torch.randint(vocab, (1, context + more), device=arguments.device)
    prefill: dict[str, float] = {}
    for name, way in all_ways.items():
        way.start(more)
        seconds = clock(arguments.device)
        for chunk in ids[:, :context].split(CHUNK, dim=1):
            way.read(chunk)
        prefill[name] = clock(arguments.device) - seconds
        way.ready()
    times: dict[str, list[float]] = {name: [] for name in all_ways}
    for number in range(rounds + 1):  # the first warms up
        new = ids[:, context + number * steps : context + (number + 1) * steps]
        for name in list(all_ways) if number % 2 else reversed(all_ways):
            began = clock(arguments.device)
            for token in new.split(1, dim=1):
                all_ways[name].step(token)
            times[name].append((clock(arguments.device) - began) / steps)
    return [
        row(name, way, context, prefill[name], {n: t[1:] for n, t in times.items()})
        for name, way in all_ways.items()
    ]


def row(
    name: str,
    way: FoxWay | LlamaWay,
    context: int,
    prefill: float,
    times: dict[str, list[float]],
) -> dict[str, Any]:
    size, share = way.kept()

    def faster_than(other: str) -> float:
        pairs = zip(times[other], times[name], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "way": name,
        "context": context,
        "parameters": parameters(way),
        "tokens_per_second": round(1 / statistics.median(times[name]), 2),
        "speed_over_fox": faster_than("fox"),
        "speed_over_transformers": faster_than("transformers"),
        "cache_mebibytes": round(size / 2**20, 2),
        "share_of_keys_kept": round(share, 4),
        "prefill_tokens_per_second": round(context / prefill, 1),
        "seconds_of_rounds": [round(t, 6) for t in times[name]],
    }


def clock(device: str) -> float:
    """Seconds, when all that was asked for is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    commit = ["git", "describe", "--always", "--dirty"]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": subprocess.run(
            commit, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "command": " ".join(["python", "benchmarks/decode_cpu.py", *sys.argv[1:]]),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed and bytes against context."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    fields = {"tokens_per_second": "tokens per second", "cache_mebibytes": "cache, MiB"}
    contexts = sorted({r["context"] for r in rows})
    for axis, (field, label) in zip(axes, fields.items(), strict=True):
        for name in dict.fromkeys(r["way"] for r in rows):
            points = [(r["context"], r[field]) for r in rows if r["way"] == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens in the cache", ylabel=label)
        axis.set_xticks(contexts, [f"{c:,}" for c in contexts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--size", choices=SIZES, default="25m")
    parser.add_argument("--checkpoint", type=Path, help="whose gates are recorded")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=8, help="tokens of each way in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "decode_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = max(arguments.contexts) + (arguments.rounds + 1) * arguments.steps
    all_ways, rows = ways(arguments, tokens), []
    for context in arguments.contexts:
        for r in measure(all_ways, context, arguments):
            rows.append(r)
            print(
                f"{r['context']:>7} {r['way']:<28} {r['tokens_per_second']:>8} tokens/s  "
                f"x {r['speed_over_fox']:<6} fox  "
                f"x {r['speed_over_transformers']:<6} transformers  "
                f"{r['cache_mebibytes']:>9} MiB  {r['share_of_keys_kept']:.1%} of the keys",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "size": arguments.size, "dtype": arguments.dtype, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, arguments.output.with_suffix(".png"))
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
