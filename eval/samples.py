"""What a model writes: sampled continuations of held-out documents."""

import random
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from fox.corpus import Document
from fox.eval.models import load_model
from fox.eval.progress import progress
from fox.eval.text import Split, documents_of
from fox.files import write_json, write_text


def samples(
    model: str,
    output: str,
    *,
    prompts: int = 3,
    prompt_tokens: int = 64,
    new_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Sampled continuations of the beginnings of held-out documents, printed and written.

    Args:
        model: a folder, a .ckpt file or a hub name.
        output: folder for samples.json and samples.md.
        prompts: number of documents.
        prompt_tokens: tokens of each document that the model reads.
        new_tokens: tokens that it writes at most; it may end the document before.
        temperature: divides the logits; 0 always takes the likeliest token.
        seed: of the choice of documents and of the sampling.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: too few documents are longer than the prompt.
    """
    loaded = load_model(model)
    tokenizer, start = loaded.tokenizer, [] if loaded.bos is None else [loaded.bos]
    results = []
    with progress("samples", prompts) as advance:
        for document, ids in beginnings(
            tokenizer, documents_of(files, split), prompts, prompt_tokens, seed
        ):
            new = loaded.generate(start + ids, new_tokens, temperature=temperature, seed=seed)
            results.append(
                {
                    "document": document.name,
                    "prompt": tokenizer.decode(ids),
                    "continuation": tokenizer.decode(new),
                }
            )
            advance("")
    folder = Path(output)
    about = {"model": model, "temperature": temperature, "seed": seed}
    write_json(folder / "samples.json", {**about, "samples": results})
    write_text(folder / "samples.md", as_markdown(results))
    report(results)


def beginnings(
    tokenizer: Tokenizer, documents: list[Document], count: int, tokens: int, seed: int
) -> list[tuple[Document, list[int]]]:
    """`count` documents in an order drawn from the seed, with the ids of their first tokens."""
    order = list(documents)
    random.Random(f"samples {seed}").shuffle(order)
    chosen = []
    for document in order:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        if len(ids) > tokens:
            chosen.append((document, ids[:tokens]))
        if len(chosen) == count:
            return chosen
    raise ValueError(
        f"expected {count} documents of more than {tokens} tokens, but only {len(chosen)} of "
        f"{len(documents)} are: lower --prompts or --prompt_tokens, or give --files"
    )


def as_markdown(results: list[dict[str, Any]]) -> str:
    parts = ["# Sampled continuations\n"]
    for result in results:
        parts += [f"## {result['document']}\n", "The model read:\n", _fenced(result["prompt"])]
        parts += ["The model wrote:\n", _fenced(result["continuation"])]
    return "\n".join(parts)


def _fenced(text: str) -> str:
    fence = "~~~~"
    while fence in text:
        fence += "~"
    return f"{fence}\n{text}\n{fence}\n"


def report(results: list[dict[str, Any]]) -> None:
    """Prompts dim, continuations plain."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for result in results:
        console.rule(result["document"])
        console.print(result["prompt"], style="dim", end="")
        console.print(result["continuation"], style="bold")
