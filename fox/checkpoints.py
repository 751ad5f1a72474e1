"""Checkpoints: folders of ours, the official repository, fla and Llama, and Lightning's files."""

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from fox.config import FoxConfig
from fox.files import read_json, whole_file, write_json, write_text
from fox.formats import (
    FOX,
    Format,
    FormatName,
    choose_format,
    format_of,
    read_config,
    write_config,
)
from fox.mismatch import mismatch
from fox.model import FoxForCausalLM

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX, PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
# A training module holds the model as `net`.
_LIGHTNING = dataclasses.replace(FOX, names=lambda name: (f"net.{name}",))


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a checkpoint hold, as they hold it.

    Attributes:
        path: of the folder or file.
        layout: what its options and tensors are called.
        config: of the model.
        weights: name in the file -> tensor.
        tokenizer: the text of tokenizer.json; None if there is none.
    """

    path: Path
    layout: Format
    config: FoxConfig
    weights: dict[str, Tensor]
    tokenizer: str | None


def load_checkpoint(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[FoxForCausalLM, Tokenizer | None]:
    """Reads a model, in eval mode, and the tokenizer that it was trained with, if it is there.

    Args:
        path: a folder as in read_folder, with tokenizer.json where there is one; or a .ckpt file
            of `fox-train`.
        device: where the model goes.

    Raises:
        ValueError: there is no checkpoint, or its config and weights do not fit together.
    """
    checkpoint = read_checkpoint(Path(path))
    tokenizer = checkpoint.tokenizer and Tokenizer.from_str(checkpoint.tokenizer)
    return build(checkpoint).to(device).eval(), tokenizer or None


def read_folder(folder: Path) -> FoxForCausalLM:
    """Reads a model from config.json and its weights, which keep the dtype of the file.

    The weights are model.safetensors, the shards that model.safetensors.index.json lists, or
    pytorch_model.bin; the formats are those of fox.formats.

    Raises:
        ValueError: a file is missing or unreadable, the config asks for what our models do not
            have, or names or shapes differ from the config's model.
    """
    return build(_read_files(folder))


def write_folder(model: FoxForCausalLM, folder: Path, format: FormatName = "fox") -> None:
    """Writes config.json and model.safetensors, each whole or not at all.

    Args:
        model: its weights are written in their dtype; a tied output matrix is left out.
        folder: is made if need be.
        format: "fox" (ours), "official" (the official repository's) or "fla"
            (flash-linear-attention's).

    Raises:
        ValueError: the format cannot express the model.
    """
    layout = choose_format(model.config, format)
    weights: dict[str, Tensor] = {}
    for name, value in own_weights(model).items():
        parts = layout.names(name)
        for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
            weights[part] = rows.contiguous()
    with whole_file(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})
    write_json(folder / CONFIG, write_config(model.config, layout))


def write_tokenizer(text: str, config: FoxConfig, folder: Path) -> list[str]:
    """Writes tokenizer.json, and what transformers wants to know besides; returns their names.

    Args:
        text: of tokenizer.json.
        config: says which tokens are special.
        folder: of the checkpoint.
    """
    tokenizer = Tokenizer.from_str(text)
    special = {
        name: tokenizer.id_to_token(number)
        for name in ("bos_token", "eos_token", "pad_token")
        if (number := getattr(config, f"{name}_id")) is not None
    }
    write_text(folder / TOKENIZER, text)
    write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"} | special)
    return [TOKENIZER, TOKENIZER_CONFIG]


def own_weights(model: FoxForCausalLM) -> dict[str, Tensor]:
    """What a file of the model holds under our names: all but a tied output matrix."""
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return weights


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a folder or a .ckpt file, without making a model of it.

    Raises:
        ValueError: there is no checkpoint, or it is unreadable.
    """
    if path.is_dir():
        return _read_files(path)
    if path.is_file():
        return _read_lightning(path)
    raise ValueError(f"no checkpoint at {path}: neither a folder nor a file is there")


def build(checkpoint: Checkpoint) -> FoxForCausalLM:
    """The model of a checkpoint, which shares the memory of its weights.

    Raises:
        ValueError: names or shapes of the weights are not those of the config's model.
    """
    config, layout, weights = checkpoint.config, checkpoint.layout, dict(checkpoint.weights)
    with torch.device("meta"):
        model = FoxForCausalLM(config)
    expected = own_weights(model)
    for name in [name for name in weights if name.endswith(layout.derived)]:
        del weights[name]
    if config.tie_word_embeddings:
        _drop_tied_copy(weights, layout)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in expected.items():
        parts = layout.names(name)
        shapes |= {part: (value.shape[0] // len(parts), *value.shape[1:]) for part in parts}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := mismatch(shapes, given, config.num_heads):
        raise ValueError(f"the weights in {checkpoint.path} are not those of its config: {wrong}")
    state = {}
    for name in expected:
        first, *others = (weights[part] for part in layout.names(name))
        state[name] = torch.cat([first, *others]) if others else first
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def _drop_tied_copy(weights: dict[str, Tensor], layout: Format) -> None:
    [head], [embedding] = layout.names("lm_head.weight"), layout.names("model.embeddings.weight")
    if {head, embedding} <= weights.keys() and torch.equal(weights[head], weights[embedding]):
        del weights[head]


def _read_files(folder: Path) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} is no checkpoint folder: expected {CONFIG} and {WEIGHTS}, "
            f"but {CONFIG} is missing; the weights alone do not tell the model, so put the "
            f"{CONFIG} there that was saved with them"
        )
    try:
        fields = _read_object(folder / CONFIG)
        config = read_config(fields)
        weights = _read_weights(folder)
        tokenizer = None
        if (folder / TOKENIZER).is_file():
            _read_object(folder / TOKENIZER)  # Tokenizer.from_str cannot say what is wrong
            tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot read the checkpoint {folder}: {error}") from error
    return Checkpoint(folder, format_of(fields), config, weights, tokenizer)


def _read_object(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object in {file}, but it holds a {type(value).__name__}")
    return value


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        weights: dict[str, Tensor] = {}
        index = _read_object(folder / INDEX)
        if "weight_map" not in index:
            raise ValueError(f"{INDEX} names no shards: it has no weight_map")
        for shard in sorted(set(index["weight_map"].values())):
            weights |= load_file(folder / shard)
        return weights
    if (folder / PICKLED).is_file():
        try:
            return torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{PICKLED} is torn, or holds more than tensors") from error
    raise ValueError(f"expected {WEIGHTS}, {INDEX} with its shards, or {PICKLED}; none is there")


def _read_lightning(file: Path) -> Checkpoint:
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        fields = checkpoint["hyper_parameters"]["config"]
        weights = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("net.")
        }
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise ValueError(
            f"{file} is no checkpoint of fox-train: expected a Lightning file with a model config"
        ) from error
    config = FoxConfig(**fields)
    return Checkpoint(file, _LIGHTNING, config, weights, checkpoint.get("tokenizer"))
