"""Checkpoints: folders in our and the official repository's format, and Lightning's files."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from fox.config import FoxConfig
from fox.files import whole_file, write_json
from fox.model import FoxForCausalLM

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MODEL_TYPE = "fox"
OFFICIAL_FOX = "forgetting_transformer-project_fox"
OFFICIAL_TRANSFORMER = "transformer-project_fox"
_FIELDS = {field.name: field for field in dataclasses.fields(FoxConfig)}
# Official fields that change results, with the only value that our models have.
_OFFICIAL_ONLY = {"window_size": None, "attention_bias": False, "elementwise_affine": True}


def load_checkpoint(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[FoxForCausalLM, Tokenizer | None]:
    """Reads a model, in eval mode, and the tokenizer that it was trained with, if it is there.

    Args:
        path: a folder with config.json, model.safetensors and, where there is one, tokenizer.json;
            or a .ckpt file of `fox-train`.
        device: where the model goes.

    Raises:
        ValueError: there is no checkpoint, or its config and weights do not fit together.
    """
    path = Path(path)
    if path.is_dir():
        model = read_folder(path)
        file = path / TOKENIZER
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
    elif path.is_file():
        model, tokenizer = _read_lightning(path)
    else:
        raise ValueError(f"no checkpoint at {path}: neither a folder nor a file is there")
    return model.to(device).eval(), tokenizer


def read_folder(folder: Path) -> FoxForCausalLM:
    """Reads config.json and model.safetensors; the weights keep the dtype of the file.

    Raises:
        ValueError: a file is missing or unreadable, the config asks for what our models do not
            have, or names or shapes differ from the config's model.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is no checkpoint folder: expected {CONFIG} and {WEIGHTS}, "
                f"but {name} is missing"
            )
    try:
        config = read_config(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot read the checkpoint {folder}: {error}") from error
    return _build(config, weights, str(folder))


def write_folder(model: FoxForCausalLM, folder: Path) -> None:
    """Writes config.json and model.safetensors, each whole or not at all.

    Weight names are the official ones; a tied output matrix is left out, as there.
    """
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    config = {"model_type": MODEL_TYPE} | dataclasses.asdict(model.config)
    with whole_file(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def read_config(fields: dict[str, Any]) -> FoxConfig:
    """A config.json, ours or official, as FoxConfig.

    Raises:
        ValueError: the model type is unknown, a field is missing, or one has a value that our
            models do not offer.
    """
    model_type = fields.get("model_type")
    if model_type == MODEL_TYPE:
        unknown = sorted(fields.keys() - _FIELDS.keys() - {"model_type"})
        if unknown:
            raise ValueError(f"unknown fields in {CONFIG}: {', '.join(unknown)}")
        known = {name: value for name, value in fields.items() if name in _FIELDS}
    elif model_type in (OFFICIAL_FOX, OFFICIAL_TRANSFORMER):
        for name, only in _OFFICIAL_ONLY.items():
            if fields.get(name, only) != only:
                raise ValueError(f"{name} = {fields[name]!r} is not supported, only {only!r}")
        known = {name: value for name, value in fields.items() if name in _FIELDS}
        if model_type == OFFICIAL_TRANSFORMER:
            known = {"fgate_type": "none", "use_rope": True} | known
        if not fields.get("fgate_bias_init"):
            known |= {"decay_time_min": None, "decay_time_max": None}
    else:
        raise ValueError(
            f"model_type {model_type!r} is unknown; "
            f"expected {MODEL_TYPE!r}, {OFFICIAL_FOX!r} or {OFFICIAL_TRANSFORMER!r}"
        )
    missing = [
        name
        for name, field in _FIELDS.items()
        if field.default is dataclasses.MISSING and name not in known
    ]
    if missing:
        raise ValueError(f"{CONFIG} lacks {', '.join(missing)}")
    return FoxConfig(**known)


def _read_lightning(file: Path) -> tuple[FoxForCausalLM, Tokenizer | None]:
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        fields = checkpoint["hyper_parameters"]["config"]
        weights = {
            name.removeprefix("net."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("net.")
        }
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise ValueError(
            f"{file} is no checkpoint of fox-train: expected a Lightning file with a model config"
        ) from error
    config = FoxConfig(**fields)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    tokenizer = checkpoint.get("tokenizer")
    return _build(config, weights, str(file)), tokenizer and Tokenizer.from_str(tokenizer)


def _build(config: FoxConfig, weights: dict[str, Tensor], source: str) -> FoxForCausalLM:
    with torch.device("meta"):
        model = FoxForCausalLM(config)
    expected = model.state_dict()
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    wrong = [f"missing: {name}" for name in sorted(expected.keys() - weights.keys())]
    wrong += [f"unexpected: {name}" for name in sorted(weights.keys() - expected.keys())]
    wrong += [
        f"{name}: expected {tuple(expected[name].shape)}, got {tuple(weights[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if expected[name].shape != weights[name].shape
    ]
    if wrong:
        raise ValueError(f"the weights in {source} are not those of its config: {'; '.join(wrong)}")
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model
