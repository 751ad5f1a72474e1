"""Beginning with the weights of a checkpoint: `fox-train fit --model.init_from FOLDER`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from fox.checkpoints import TOKENIZER, load_checkpoint
from fox.config import FoxConfig
from fox.files import write_text
from fox.model import FoxForCausalLM
from fox.train.resume import newest_checkpoint, read_checkpoint

# What a run may choose itself: no weight means anything else by it.
FREE = {
    "initializer_range",
    "log_pruning_tolerance",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}


def start_weights(
    network: FoxForCausalLM, config: FoxConfig, tokenizer: Tokenizer, path: str
) -> None:
    """Gives a network the weights of a checkpoint.

    Args:
        network: of this config, on one device or sharded; its dtype stays.
        config, tokenizer: of the run.
        path: of a checkpoint folder or a .ckpt file.

    Raises:
        ValueError: the checkpoint is of another network or has another tokenizer.
    """
    model, its_tokenizer = load_checkpoint(path)
    for field in dataclasses.fields(FoxConfig):
        theirs, ours = getattr(model.config, field.name), getattr(config, field.name)
        if theirs != ours and field.name not in FREE:
            raise ValueError(
                f"expected model.config.{field.name} = {theirs} of {path}, but got {ours}: leave "
                "model.config out, and it is that of model.init_from"
            )
    if its_tokenizer is not None and its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"expected the tokenizer of {path}, but the data has another one: pass "
            f"--data.tokenizer {Path(path) / TOKENIZER}"
        )
    weights = {name: value.float() for name, value in model.state_dict().items()}
    set_model_state_dict(network, weights, options=StateDictOptions(full_state_dict=True))


def start_arguments(args: Sequence[str], default_root_dir: str) -> list[str]:
    """Lets `fit --model.init_from PATH` find the network and the tokenizer at the path.

    They come first, so that what the command line says wins. A run that has a checkpoint is asked
    itself, and keeps the tokenizer in its folder: it goes on without the path.

    Args:
        args: of the command.
        default_root_dir: of a run that names none.

    Raises:
        ValueError: there is no checkpoint at the path.
    """
    path = setting(args, "model.init_from") if args[0] == "fit" else None
    if path is None:
        return list(args)
    run = Path(setting(args, "trainer.default_root_dir") or default_root_dir)
    begun = newest_checkpoint(run)
    if begun is None:
        model, tokenizer = load_checkpoint(path)
        config = dataclasses.asdict(model.config)
        if tokenizer is not None:
            write_text(run / TOKENIZER, tokenizer.to_str())
    else:
        config = read_checkpoint(begun)["hyper_parameters"]["config"]
    data: dict[str, Any] = {"vocab_size": config.pop("vocab_size")}
    if (run / TOKENIZER).is_file() and setting(args, "data.folder") is None:
        data["tokenizer"] = str(run / TOKENIZER)
    settings = {"model": {"config": config}, "data": data}
    return [args[0], "--config", json.dumps(settings), *args[1:]]  # JSON is YAML


def setting(args: Sequence[str], name: str) -> str | None:
    """What the arguments and the configs that they name say about a setting, the last counts."""
    found = None
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        value = value if equals else args[i + 1] if i + 1 < len(args) else ""
        if option == f"--{name}":
            found = value
        elif option in ("--config", "-c"):
            preset = value.startswith("{")
            if not preset and not Path(value).is_file():
                continue
            text = value if preset else Path(value).read_text(encoding="utf-8")
            node: Any = yaml.safe_load(text)
            for part in name.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            found = found if node is None else node
    return found
