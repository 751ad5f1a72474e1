"""How far is decoding from full recomputation? Largest differences of logits, in a table.

Every row compares what came through a cache with one pass over the whole text, as the largest
absolute difference of logits divided by the largest logit. Beam search is compared by its scores:
the sums of log-probabilities against those that one pass over the found texts gives, in nats.

    python benchmarks/decode_differences.py
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fox import FoxConfig, FoxForCausalLM

RESULTS = Path(__file__).parent / "results"
PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
SIZE = {"vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 4, "num_heads": 4}
MODELS = {
    "FoX (Pro)": FoxConfig(**SIZE, **PRO),
    "FoX (Pro), 2 key heads": FoxConfig(**SIZE, **PRO, num_kv_heads=2),
    "FoX (LLaMA)": FoxConfig(**SIZE),
    "Transformer (Pro)": FoxConfig(**SIZE, **PRO, fgate_type="none", use_rope=True),
    "Transformer (LLaMA)": FoxConfig(**SIZE, fgate_type="none", use_rope=True),
}
T = 600
TOLERANCE = -10.0


def build(config: FoxConfig) -> FoxForCausalLM:
    """Random weights, five times as large as at the start of training, so that heads differ."""
    torch.manual_seed(0)
    model = FoxForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    for layer in model.model.layers:
        if config.fgate_type == "full":
            layer.attn.fgate_proj.bias.data = torch.tensor([0.5, 2.0, 4.0, 8.0])
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def through_cache(model: FoxForCausalLM, ids: Tensor, sizes: list[int], **options: float) -> Tensor:
    cache = model.new_cache(len(ids), **options)
    return torch.cat([model(chunk, cache=cache).logits for chunk in ids.split(sizes, 1)], dim=1)


def random_splits(model: FoxForCausalLM, ids: Tensor) -> float:
    generator, worst = torch.Generator().manual_seed(0), 0.0
    whole = model(ids).logits
    for cuts in (2, 5, 20, 100, 300):
        places = torch.randperm(T - 1, generator=generator)[:cuts].add(1).sort().values.tolist()
        sizes = [b - a for a, b in zip([0, *places], [*places, T], strict=True)]
        worst = max(worst, relative(through_cache(model, ids, sizes), whole))
    return worst


def token_by_token(model: FoxForCausalLM, ids: Tensor) -> float:
    return relative(through_cache(model, ids, [1] * T), model(ids).logits)


def padded(side: str) -> Callable[[FoxForCausalLM, Tensor], float]:
    """Prompts of 200, 137 and 1 tokens, then 100 more, against each row alone."""

    def compare(model: FoxForCausalLM, ids: Tensor) -> float:
        lengths, wide = (200, 137, 1), 200
        rows = ids[:1].expand(3, -1)
        columns = torch.arange(wide)
        ends = torch.tensor(lengths)[:, None]
        mask = columns < ends if side == "right" else columns >= wide - ends
        prompt = torch.zeros(3, wide, dtype=torch.int64)
        for row, n in enumerate(lengths):
            prompt[row, mask[row]] = rows[row, :n]
        cache = model.new_cache(3)
        first = model(prompt, attention_mask=mask, cache=cache).logits
        more = ids[:1, 200:300].expand(3, -1)
        steps = [model(chunk, cache=cache).logits for chunk in more.split([1] * 50 + [50], 1)]
        worst = 0.0
        for row, n in enumerate(lengths):
            found = torch.cat([first[row, mask[row]], *(step[row] for step in steps)])
            text = torch.cat([rows[row, :n], more[row]])[None]
            worst = max(worst, relative(found, model(text).logits[0]))
        return worst

    return compare


def beams(model: FoxForCausalLM, ids: Tensor) -> float:
    prompt, new = ids[:, :100], 40
    found, scores = model.beam_search(prompt, new, 4, length_penalty=0.0)
    worst = 0.0
    for row in range(len(prompt)):
        logs = model(found[row, :, :-1]).logits[:, -new:].log_softmax(-1)
        sums = logs.gather(2, found[row, :, -new:, None]).sum((1, 2))
        worst = max(worst, float((sums - scores[row]).abs().max()))
    return worst


def evicting(model: FoxForCausalLM, ids: Tensor) -> float | None:
    config = model.config
    if config.fgate_type == "none" or not config.qk_norm:
        return None
    found = through_cache(model, ids, [200] + [1] * (T - 200), log_pruning_tolerance=TOLERANCE)
    return relative(found, model(ids).logits)


COLUMNS: dict[str, Callable[[FoxForCausalLM, Tensor], float | None]] = {
    "5 random splits": random_splits,
    "token by token": token_by_token,
    "padded left": padded("left"),
    "padded right": padded("right"),
    "beam search (nats)": beams,
    "evicting at -10": evicting,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "decode_differences.json")
    arguments = parser.parse_args()
    ids = torch.randint(512, (2, T), generator=torch.Generator().manual_seed(1))
    table: dict[str, dict[str, float | None]] = {}
    print(f"{'':<24}" + "".join(f"{name:>20}" for name in COLUMNS))
    for name, config in MODELS.items():
        model = build(config)
        table[name] = {column: compare(model, ids) for column, compare in COLUMNS.items()}
        cells = ["-" if x is None else f"{x:.1e}" for x in table[name].values()]
        print(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"tokens": T, "dtype": "float32", "torch": torch.__version__, "differences": table}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
