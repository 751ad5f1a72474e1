"""A small corpus, a tokenizer trained on it, and a tiny random model with that tokenizer."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from fox.config import FoxConfig
from fox.corpus import Document
from fox.model import FoxForCausalLM

NOUNS = ("river", "stone", "cloud", "garden", "window", "silver", "forest", "letter", "bridge")
VERBS = ("carry", "follow", "gather", "answer", "remember", "finish", "measure", "forget", "hold")


def make_documents(count: int) -> list[Document]:
    rng = random.Random(0)
    documents = []
    for number in range(count):
        lines = [
            f"def {rng.choice(VERBS)}_{rng.choice(NOUNS)}({rng.choice(NOUNS)}, naïve):\n"
            f"    return {rng.choice(NOUNS)} + {rng.randrange(100)}\n"
            for _ in range(60)
        ]
        documents.append(Document(f"module{number}.txt", "\n".join(lines)))
    return documents


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return make_documents(5)


@pytest.fixture(scope="session")
def tokenizer(documents: list[Document]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    words = [f'("{word}"' for word in NOUNS + VERBS] * 9  # after a quote, as values stand
    tokenizer.train_from_iterator([*words, *(text for _, text in documents)], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> FoxForCausalLM:
    config = FoxConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FoxForCausalLM(config).eval()


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, model: FoxForCausalLM, tokenizer: Tokenizer
) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    for name, text in documents:
        (folder / name).write_text(text, encoding="utf-8")
    return f"{folder}/*.txt"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> str:
    """A tiny random Llama with biases, which only transformers reads; token 0 ends texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        attention_bias=True,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


class Fake:
    """A model without a network; predict: ids -> (V,) log probabilities of the next token."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        predict: Callable[[list[int]], Tensor],
        training_length: int | None = None,
    ) -> None:
        self.tokenizer, self.predict, self.training_length = tokenizer, predict, training_length

    def next_token_log_probs(self, ids: Tensor) -> Tensor:
        return torch.stack([self.predict(row) for row in ids.tolist()])

    def answer_log_probs(self, ids: Tensor, answer_tokens: int) -> tuple[Tensor, Tensor]:
        starts = range(ids.shape[1] - answer_tokens, ids.shape[1])
        log_probs = torch.stack(
            [self.next_token_log_probs(ids[:, :start]) for start in starts], dim=1
        )  # (B, n, V)
        answer = ids[:, -answer_tokens:]
        chosen = log_probs.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
        return chosen, log_probs.argmax(-1) == answer

    def generate(self, ids: list[int], max_new_tokens: int) -> list[int]:
        text = list(ids)
        for _ in range(max_new_tokens):
            text.append(int(self.predict(text).argmax()))
        return text[len(ids) :]


@pytest.fixture(scope="session")
def fake_model(tokenizer: Tokenizer) -> Callable[..., Fake]:
    """(predict, training length) -> a model that predicts so."""
    return lambda predict, training_length=None: Fake(tokenizer, predict, training_length)
