"""lm-evaluation-harness on a FoX model: its numbers are our own log-probabilities."""

import json
import math
from pathlib import Path

import datasets
import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from fox.hf import FoxHFConfig, FoxHFForCausalLM
from fox.train.tokenizer import END_OF_TEXT, train_tokenizer

TASKS = Path(__file__).parent / "tasks"


def records(name):
    return [json.loads(line) for line in (TASKS / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def evaluated(build, fox_pro, tmp_path, monkeypatch):
    """Our model, its tokenizer, and what the harness says of both on the local tasks."""
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog ran to the house"], 270)
    model = build(fox_pro.config.replace(vocab_size=270))
    hf = FoxHFForCausalLM(FoxHFConfig.from_fox(model.config))
    hf.load_state_dict(model.state_dict())
    monkeypatch.chdir(TASKS)  # the task files name their data by relative paths
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    outcome = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=hf,
            backend="causal",
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT),
            max_length=128,
            batch_size=2,
        ),
        tasks=["fox_choice", "fox_text"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
    )
    return model, tokenizer, outcome


@torch.no_grad()
def log_probability(model, context, continuation):
    """ln P(continuation | context), of token ids."""
    ids = torch.tensor([context + continuation])
    log_p = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    return log_p[-len(continuation) :].sum().item()


def test_harness_scores_are_our_log_probabilities(evaluated):
    model, tokenizer, outcome = evaluated
    right = 0
    for record, sample in zip(
        records("choice.jsonl"), outcome["samples"]["fox_choice"], strict=True
    ):
        context = tokenizer.encode(record["question"]).ids
        expected = [
            log_probability(
                model,
                context,
                tokenizer.encode(f"{record['question']} {choice}").ids[len(context) :],
            )
            for choice in record["choices"]
        ]
        assert [score for score, _ in sample["filtered_resps"]] == pytest.approx(expected, rel=1e-5)
        right += max(expected) == expected[record["answer"]]
    assert outcome["results"]["fox_choice"]["acc,none"] == right / 3


def test_harness_perplexity_is_ours(evaluated):
    model, tokenizer, outcome = evaluated
    texts = [record["text"] for record in records("text.jsonl")]
    log_p = sum(
        log_probability(model, [tokenizer.token_to_id(END_OF_TEXT)], tokenizer.encode(text).ids)
        for text in texts
    )
    words = sum(len(text.split()) for text in texts)
    perplexity = outcome["results"]["fox_text"]["word_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-log_p / words), rel=1e-4)
