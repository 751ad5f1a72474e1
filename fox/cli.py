"""The command fox-generate: a model continues texts, which are shown as they grow."""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from tokenizers import Tokenizer
from torch import Tensor

from fox.cache import FoxCache
from fox.checkpoints import load_checkpoint

DESCRIPTION = """Continue texts with a FoX model.

  fox-generate --checkpoint runs/demo/model --prompt 'def main(' --temperature 0.8 --min_p 0.05
"""

LISTS: dict[str, tuple[type, str]] = {
    "prompt": (str, "texts to continue, one after the other; - is the text in standard input"),
    "stop_strings": (str, "end with the token that completes one of these"),
    "stop_token_ids": (int, "end with one of these; the model's end of text if not given"),
}


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{' '.join(message.split()).rstrip('.')}; see fox-generate --help")


class TextStream:
    """Text that grows by whole characters while tokens come.

    Args:
        tokenizer: decodes the tokens.
        prompt: tokens that stand before; decoders treat the beginning of a text in a way of its
            own, so new tokens are decoded together with some that are known.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.known, self.new = list(prompt[-8:]), list[int]()

    def add(self, token: int) -> str:
        """The text that is complete with this token; "" while its last character is not."""
        self.new.append(token)
        before = self.tokenizer.decode(self.known)
        text = self.tokenizer.decode(self.known + self.new)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or len(text) <= len(before):
            return ""
        self.known, self.new = self.new, []
        return text[len(before) :]


def write(
    checkpoint: str,
    prompt: list[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    stop_strings: list[str] | None = None,
    stop_token_ids: list[int] | None = None,
    seed: int = 0,
    prefill_chunk: int = 2048,
    log_pruning_tolerance: float | None = None,
    logit_cap: float | None = None,
) -> None:
    """Print each prompt and its continuation, token by token; speed and memory go to stderr.

    Args:
        checkpoint: a model folder or a .ckpt file, with a tokenizer.
        prompt, stop_strings, stop_token_ids: as in LISTS.
        max_new_tokens: at most this many per prompt.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the fewest tokens whose probabilities sum to this or more.
        min_p: sample among tokens of at least this times the largest probability.
        repetition_penalty: divides positive logits of tokens that were there, multiplies negative.
        num_beams: search the likeliest text instead, so many at a time; shown when it is found.
        length_penalty: of num_beams: above 0 favours long texts, below 0 short ones; 1 if None.
        seed: of the sampling; the same for each prompt.
        prefill_chunk: tokens of the prompt that are read at once.
        log_pruning_tolerance: ln of the largest share of its attention that a token may lose by
            forgotten keys leaving the cache; -10 is usual. The model's if not given.
        logit_cap: for models without QK-norm, which bounds the logits for log_pruning_tolerance.

    Raises:
        ValueError: there is no checkpoint, it has no tokenizer, or an option is out of its range.
    """
    model, tokenizer = load_checkpoint(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    if tokenizer is None:
        raise ValueError(
            f"the checkpoint {checkpoint} has no tokenizer: put the tokenizer.json that its "
            "training used into the folder"
        )
    if num_beams is not None and (temperature, top_k, top_p, min_p) != (0, None, None, None):
        raise ValueError(
            "num_beams searches and does not draw: leave out temperature, top_k, top_p and min_p"
        )
    if num_beams is None and length_penalty is not None:
        raise ValueError("length_penalty ranks what num_beams finds: give num_beams with it")
    device = next(model.parameters()).device
    if stop_token_ids is None:
        stop_token_ids = [] if model.config.eos_token_id is None else [model.config.eos_token_id]
    common: dict[str, Any] = {
        "repetition_penalty": repetition_penalty,
        "stop_token_ids": stop_token_ids,
        "stop_strings": stop_strings or [],
        "tokenizer": tokenizer,
        "prefill_chunk": prefill_chunk,
    }
    eviction: dict[str, Any] = {
        "log_pruning_tolerance": log_pruning_tolerance,
        "logit_cap": logit_cap,
    }
    for text in prompt:
        text = sys.stdin.read() if text == "-" else text
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("the prompt is no text: it holds bytes that are not UTF-8")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        largest, known = max(ids, default=0), model.config.vocab_size
        if largest >= known:
            raise ValueError(
                f"the tokenizer gives token {largest}, but the model has {known}: put the "
                "tokenizer.json that its training used into the folder"
            )
        input_ids = torch.tensor([ids], dtype=torch.int64, device=device)
        cache = model.new_cache(1, **eviction)
        start = perf_counter()
        if num_beams is None:
            steps = model.stream(
                input_ids,
                max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                generator=torch.Generator(device).manual_seed(seed),
                cache=cache,
                **common,
            )
            show(tokenizer, text, ids, steps, start, cache)
        else:
            beams, _ = model.beam_search(
                input_ids,
                max_new_tokens,
                num_beams,
                length_penalty=1.0 if length_penalty is None else length_penalty,
                cache=cache,
                **common,
            )
            best = beams[0, 0, len(ids) :]
            show(tokenizer, text, ids, best[best >= 0], start)


def show(
    tokenizer: Tokenizer,
    text: str,
    prompt: Sequence[int],
    steps: Iterable[Tensor],
    start: float,
    cache: FoxCache | None = None,
) -> None:
    """Print a text and its new tokens as they come, and at the end, however it comes, the speed."""
    grown = TextStream(tokenizer, prompt)
    print(text, end="", flush=True)
    new = 0
    try:
        for token in steps:
            new += 1
            print(grown.add(int(token)), end="", flush=True)
    finally:
        seconds = perf_counter() - start
        print(flush=True)
        memory = "" if cache is None else f", cache of {cache.report().bytes / 2**20:.1f} MiB"
        print(
            f"fox-generate: read {len(prompt)} tokens and wrote {new} in {seconds:.2f} s "
            f"({new / seconds:.1f} new tokens/s){memory}",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-generate with these arguments, or with those of the process.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C, 141 when
    nobody reads the text any more.
    """
    parser = Parser(
        prog="fox-generate",
        description=DESCRIPTION,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    for name, (kind, meaning) in LISTS.items():  # jsonargparse would want them as JSON
        required = name == "prompt"
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=required, help=meaning)
    parser.add_function_arguments(write, as_group=False, skip=set(LISTS))
    options = parser.parse_args(arguments)
    try:
        write(**options.as_dict())
    except BrokenPipeError:
        raise SystemExit(141) from None
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"fox-generate: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
