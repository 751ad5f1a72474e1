"""The command fox-convert: a checkpoint into another format, with a report of every tensor."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from fox.checkpoints import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    Checkpoint,
    build,
    own_weights,
    read_checkpoint,
    read_folder,
    write_folder,
    write_tokenizer,
)
from fox.formats import Format, FormatName, choose_format
from fox.model import FoxForCausalLM

# What lies beside the weights and holds for them in any format.
COMPANIONS = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.fail(f"{' '.join(message.split())}; see {self.prog} --help")

    def fail(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-convert with these arguments, or with those of the process."""
    run(
        "fox-convert",
        "Convert a checkpoint: a folder in our, the official, fla's or Llama's format, or a .ckpt "
        "file of fox-train.",
        convert,
        arguments,
    )


def run(
    name: str,
    description: str,
    function: Callable[..., None],
    arguments: Sequence[str] | None = None,
) -> None:
    """Call a function with a command's arguments, those of the process if None.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C.
    """
    parser = Parser(prog=name, description=description)
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    values = parser.parse_args(sys.argv[1:] if arguments is None else arguments).as_dict()
    try:
        function(**values)
    except (ValueError, OSError) as error:
        parser.fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def convert(source: str, target: str, format: FormatName = "fox") -> None:
    """Writes a checkpoint in another format, whole or not at all, and prints what became of it.

    Weights keep their values and dtype; the files of the tokenizer are copied. What was written
    is read back and compared before it appears under its name.

    Args:
        source: a checkpoint folder, also a Llama's of transformers, or a .ckpt file of fox-train.
        target: the folder to write; it must be empty or not there yet.
        format: "fox" (ours), "official" (the official repository's) or "fla"
            (flash-linear-attention's).

    Raises:
        ValueError: the source is no checkpoint, the format cannot express its model, or the
            target is not empty.
    """
    check_target(Path(target))
    checkpoint = read_checkpoint(Path(source))
    write_checked(checkpoint, build(checkpoint), Path(target), format)


def check_target(folder: Path) -> None:
    """Raises ValueError if something is there."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name another target, or remove it first")


def write_checked(
    checkpoint: Checkpoint, model: FoxForCausalLM, folder: Path, format: FormatName
) -> None:
    """Writes what a checkpoint has become, whole or not at all, and prints a line per tensor."""
    layout = choose_format(model.config, format)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        write_folder(model, new, format)
        copied = copy_companions(checkpoint, new)
        verify(model, read_folder(new))
        if folder.is_dir():
            folder.rmdir()
        new.rename(folder)
    weights = own_weights(model)
    for line in tensor_report(checkpoint, weights, layout):
        print(line)
    for name in copied:
        print(f"{name}: copied")
    print(
        f"{sum(w.numel() for w in weights.values()):,} parameters, "
        f"{sum(w.nbytes for w in weights.values()):,} bytes, {checkpoint.layout.model_type} -> "
        f"{layout.model_type}; {folder} was read back and is equal"
    )


def tensor_report(checkpoint: Checkpoint, weights: dict[str, Tensor], layout: Format) -> list[str]:
    """A line per tensor: name in the file -> name in the format, shape, dtype, what was done."""
    left, lines = set(checkpoint.weights), []
    for name, value in weights.items():
        old, new = checkpoint.layout.names(name), layout.names(name)
        if not left.issuperset(old):
            names, done = list(new), "added"
        elif len(old) == len(new):
            names, done = [f"{a} -> {b}" for a, b in zip(old, new, strict=True)], "copied"
        else:
            names = [f"{' + '.join(old)} -> {' + '.join(new)}"]
            done = "joined" if len(old) > len(new) else "split"
        left -= set(old)
        shape = (value.shape[0] // len(names), *value.shape[1:])
        dtype = str(value.dtype).removeprefix("torch.")
        lines += [f"{name}: {shape} {dtype}, {done}" for name in names]
    for name in sorted(left):
        derived = name.endswith(checkpoint.layout.derived)
        why = "follows from the config" if derived else "is the tied embedding"
        lines.append(f"{name}: left out, it {why}")
    return lines


def copy_companions(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Takes the tokenizer's files along; returns their names."""
    if checkpoint.path.is_file():
        if checkpoint.tokenizer is None:
            return []
        return write_tokenizer(checkpoint.tokenizer, checkpoint.config, folder)
    names = [name for name in COMPANIONS if (checkpoint.path / name).is_file()]
    for name in names:
        shutil.copyfile(checkpoint.path / name, folder / name)
    return names


def verify(model: FoxForCausalLM, again: FoxForCausalLM) -> None:
    """Raises if a model that was written and read again differs in one bit."""
    first, second = own_weights(model), own_weights(again)
    wrong = [name for name in first if not same_bits(first[name], second[name])]
    if again.config != model.config:
        wrong.append("config.json")
    if wrong:
        raise ValueError(f"what was written reads back changed: {', '.join(wrong)}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN and the sign of 0 included."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )
