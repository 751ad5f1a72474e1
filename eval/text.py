"""Held-out documents as token ids, and what a model says about tokens.

Legend: B batch, T time, V vocabulary, C width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from fox.checkpoints import load_checkpoint
from fox.corpus import Document, divide, read_documents
from fox.model import FoxForCausalLM

TOKENS_PER_BATCH = 8192
TOKENS_PER_HEAD = 4096  # logits of so many positions at once: (B, T, V) never exists

Split = Literal["held_out", "all"]


def load(checkpoint: str) -> tuple[FoxForCausalLM, Tokenizer]:
    """A model in eval mode, on a GPU if there is one, with its tokenizer.

    Raises:
        ValueError: there is no checkpoint, or it has no tokenizer.
    """
    model, tokenizer = load_checkpoint(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    if tokenizer is None:
        raise ValueError(
            f"the checkpoint {checkpoint} has no tokenizer: put the tokenizer.json that its "
            "training used into the folder"
        )
    tokenizer.encode_special_tokens = True  # a text that spells a special token out is text
    return model, tokenizer


def documents_of(files: list[str] | None, split: Split) -> list[Document]:
    """Documents that no training has seen, or, with split "all", every document.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: there is no text.
    """
    if split == "all":
        return list(read_documents(files))
    return [
        document
        for document, held_out in divide(lambda: read_documents(files))
        if held_out and document.text
    ]


def batches_of(rows: int, length: int) -> list[slice]:
    """Slices over `rows` rows of `length` tokens, of about TOKENS_PER_BATCH tokens each."""
    size = max(1, TOKENS_PER_BATCH // length)
    return [slice(start, start + size) for start in range(0, rows, size)]


@torch.no_grad()
def next_token_losses(model: FoxForCausalLM, input_ids: Tensor) -> Tensor:
    """-log p(token t + 1 | tokens 0..t): (B, T) ids -> (B, T - 1) float64, on the CPU."""
    features = model.model(input_ids)[:, :-1].flatten(0, 1)  # (B * (T - 1), C)
    targets = input_ids[:, 1:].flatten()
    losses = [
        F.cross_entropy(model.lm_head(chunk).float(), target, reduction="none")
        for chunk, target in zip(
            features.split(TOKENS_PER_HEAD), targets.split(TOKENS_PER_HEAD), strict=True
        )
    ]
    return torch.cat(losses).double().cpu().view(len(input_ids), -1)


@torch.no_grad()
def next_token_log_probs(model: FoxForCausalLM, input_ids: Tensor) -> Tensor:
    """log p(next token | all tokens): (B, T) ids -> (B, V) float32, on the CPU."""
    return model.lm_head(model.model(input_ids)[:, -1]).float().log_softmax(-1).cpu()
