"""fox-data: text becomes a folder of tokens that any number of runs read."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fox.corpus import HELD_OUT_ONE_IN
from fox.figures import FOX, TRANSFORMER, new_figure, plain_axes, save_figure
from fox.files import read_json, write_json
from fox.train.encoding import Corpus, Encoding, build_shards
from fox.train.longcrawl import link_longcrawl64
from fox.train.shards import PARTS, Shards, damaged_shards

DESCRIPTION = """Encode text once, for any number of runs.

  fox-data prepare --folder corpora/web --files 'web/*.jsonl' --tokenizer gpt2/tokenizer.json
  fox-data prepare --folder corpora/code --dataset NAME --streaming true --vocab_size 32000
  fox-data longcrawl64 --folder corpora/longcrawl --arrays LongCrawl64 --tokenizer ...
  fox-data verify --folder corpora/web
  fox-train fit --config my.yaml --data.folder corpora/web
"""


def prepare(
    folder: str,
    *,
    files: list[str] | None = None,
    dataset: str | None = None,
    text_field: str = "text",
    subset: str | None = None,
    split: str = "train",
    streaming: bool = False,
    shuffle_buffer: int | None = None,
    seed: int = 0,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    max_tokens: int | None = None,
    held_out_one_in: int = HELD_OUT_ONE_IN,
    num_workers: int | None = None,
) -> None:
    """Encode text into shards; a call that was stopped goes on when it is repeated.

    Args:
        folder: where tokenizer.json, meta.json, shards/, summary.json and lengths.png go.
        files: glob patterns of .txt (one file is one document), .jsonl and .parquet files; with
            neither files nor dataset the text is the source of Python's standard library.
        dataset: a name on the Hugging Face hub, or a folder.
        text_field: the field with the text in .jsonl, .parquet and datasets.
        subset: the dataset's configuration, where it has several.
        split: the dataset's split.
        streaming: read the dataset while it arrives instead of downloading it first.
        shuffle_buffer: rows of a streamed dataset that wait, to be drawn from by the seed; for a
            sample of more than its beginning where max_tokens ends it.
        seed: of shuffle_buffer.
        tokenizer: a tokenizer.json; its documents end with the eos_token of a
            tokenizer_config.json beside it, or <|endoftext|>.
        vocab_size: instead, train a tokenizer of so many entries on the text.
        max_tokens: read no more text than gives this many training tokens.
        held_out_one_in: one document in so many is held out for validation.
        num_workers: processes that encode; if None, one for each core where the text is long.
            Their number changes nothing in the files.

    Raises:
        ValueError, FileNotFoundError: the text or the tokenizer cannot be read.
        ModuleNotFoundError: the picture needs matplotlib; all else is there by then.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise ValueError("expected either --tokenizer, a file, or --vocab_size, to train one")
    for name, value, least in (
        ("max_tokens", max_tokens, 1),
        ("held_out_one_in", held_out_one_in, 2),
        ("num_workers", num_workers, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, but got {value}")
    started = time.perf_counter()
    corpus = Corpus(
        tuple(files) if files else None,
        dataset,
        text_field,
        subset,
        split,
        streaming,
        shuffle_buffer,
        seed,
    )
    path = Path(tokenizer) if tokenizer else None
    encoding = Encoding(vocab_size, path, max_tokens, held_out_one_in)
    shards = build_shards(Path(folder), corpus, encoding, num_workers=num_workers, prepared=True)
    summarize(shards, time.perf_counter() - started)


def longcrawl64(folder: str, *, arrays: str, tokenizer: str) -> None:
    """Make a folder for LongCrawl64's zarr arrays, which are read where they lie.

    Args:
        folder: where tokenizer.json, meta.json, summary.json and lengths.png go.
        arrays: the folder with train.zarr and heldout.zarr, (documents, length) token ids.
        tokenizer: GPT-2's tokenizer.json.

    Raises:
        ValueError, FileNotFoundError: the arrays or the tokenizer cannot be read.
        ModuleNotFoundError: zarr or matplotlib is not installed.
    """
    started = time.perf_counter()
    shards = link_longcrawl64(Path(folder), Path(arrays), Path(tokenizer))
    summarize(shards, time.perf_counter() - started)


def verify(folder: str) -> None:
    """Compare every shard with its checksum.

    Args:
        folder: a prepared folder.

    Raises:
        ValueError: a shard is damaged, or the folder holds no shards.
    """
    index = Path(folder) / "meta.json"
    meta = read_json(index) if index.is_file() else {}
    if "shards" not in meta:
        raise ValueError(f"expected a prepared folder with shards, but got {folder}")
    wrong = list(damaged_shards(Path(folder), meta, contents=True))
    for what in wrong:
        print(what)
    if wrong:
        raise ValueError(
            f"expected whole shards in {folder}, but {len(wrong)} files are not: repeat the "
            "fox-data prepare that made them, which makes only these again"
        )
    print(f"{len(meta['shards'])} shards are as they were written")


def summarize(shards: Shards, seconds: float) -> None:
    """Print what is in a folder, and write summary.json and lengths.png there.

    Args:
        shards: the folder, opened.
        seconds: how long preparing it took.
    """
    summary: dict[str, Any] = {"seconds": round(seconds, 1)}
    summary["shards"] = len(shards.meta.get("shards", []))
    print(f"{'':12}{'documents':>14}{'tokens':>18}{'bytes/token':>14}")
    for part in PARTS:
        counts = shards.meta[part]
        summary[part] = {name: counts[name] for name in ("documents", "tokens", "bytes")}
        summary[part]["bytes_per_token"] = counts["bytes"] / max(counts["tokens"], 1)
        summary[part]["lengths"] = histogram(np.diff(getattr(shards, part).bounds))
        print(
            f"{part:12}{counts['documents']:14,}{counts['tokens']:18,}"
            f"{summary[part]['bytes_per_token']:14.3f}"
        )
    print(f"{summary['shards']} shards in {shards.folder}, {seconds:.1f} s")
    write_json(shards.folder / "summary.json", summary)
    draw_lengths(summary["train"]["lengths"], shards.folder / "lengths.png")


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Documents and tokens by length: from a power of two to below the next.

    Args:
        lengths: (documents,) tokens of each, at least 1.

    Returns:
        for each power of two up to the longest: from_tokens, documents, tokens.
    """
    powers = np.frexp(lengths)[1] - 1
    documents = np.bincount(powers)
    tokens = np.bincount(powers, weights=lengths)
    return [
        {"from_tokens": 1 << power, "documents": int(count), "tokens": int(total)}
        for power, (count, total) in enumerate(zip(documents, tokens, strict=True))
    ]


def draw_lengths(rows: Sequence[dict[str, int]], path: Path) -> None:
    """Draw the shares of documents and of tokens by the documents' length."""
    figure = new_figure(7, 3.5)
    axes = figure.subplots()
    for name, colour, shift in (("documents", TRANSFORMER, -0.2), ("tokens", FOX, 0.2)):
        total = max(sum(row[name] for row in rows), 1)
        places = [i + shift for i in range(len(rows))]
        shares = [100 * row[name] / total for row in rows]
        axes.bar(places, shares, width=0.4, color=colour, label=name)
    labels = [f"{row['from_tokens']:,}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=45, ha="right", fontsize=8)
    plain_axes(axes, "How long the documents are", "tokens, from", "share in %")
    axes.legend(frameon=False)
    save_figure(figure, path)


COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "longcrawl64": longcrawl64,
    "verify": verify,
}


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{' '.join(message.split()).rstrip('.')}; see fox-data --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-data with these arguments, or with those of the process.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C.
    """
    parser = Parser(
        prog="fox-data", description=DESCRIPTION, formatter_class=Formatter, allow_abbrev=False
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in COMMANDS.items():
        meaning = (function.__doc__ or "").splitlines()[0]
        subparser = Parser(description=meaning, allow_abbrev=False)
        subparser.add_argument("--folder", required=True, help="the prepared folder")
        lists = {"files"} if name == "prepare" else set()  # jsonargparse would want it as JSON
        for option in lists:
            subparser.add_argument(f"--{option}", nargs="+", help="glob patterns of text files")
        subparser.add_function_arguments(
            function, as_group=False, as_positional=False, skip={"folder", *lists}
        )
        subcommands.add_subcommand(name, subparser, help=meaning)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        COMMANDS[options.command](**options[options.command].as_dict())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped: the same command goes on with the shards that are whole", flush=True)
        raise SystemExit(130) from None


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"fox-data: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
