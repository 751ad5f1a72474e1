"""Samples come from held-out documents, are repeatable and readable."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from fox.corpus import Document
from fox.eval.models import EvalModel
from fox.eval.samples import as_markdown, beginnings, samples
from fox.files import read_json


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(
    checkpoint: str, corpus: str, tmp_path: Path
) -> None:
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = str(tmp_path / name)
        samples(checkpoint, output, seed=seed, new_tokens=8, files=[corpus], split="all")
        written.append(read_json(tmp_path / name / "samples.json")["samples"])
    assert written[0] == written[1] != written[2]


def test_a_model_reads_the_token_that_begins_a_text_before_the_prompt(
    checkpoint: str, llama: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def generate(self: EvalModel, ids: list[int], *rest: object, **options: object) -> list[int]:
        read.append(ids)
        return [1]

    monkeypatch.setattr(EvalModel, "generate", generate)
    for model in (checkpoint, llama):
        samples(model, str(tmp_path), prompts=1, files=[corpus], split="all")
    assert read[1] == [0, *read[0]]


def test_a_continuation_belongs_to_the_text_it_was_given(
    checkpoint: str, corpus: str, documents: list[Document], tmp_path: Path
) -> None:
    samples(checkpoint, str(tmp_path), new_tokens=8, files=[corpus], split="all")
    texts = dict(documents)
    for sample in read_json(tmp_path / "samples.json")["samples"]:
        assert texts[sample["document"]].startswith(sample["prompt"])
        assert sample["continuation"] in (tmp_path / "samples.md").read_text(encoding="utf-8")


def test_a_fence_is_longer_than_those_in_the_text() -> None:
    markdown = as_markdown([{"document": "a", "prompt": "~~~~", "continuation": "b"}])
    assert "~~~~~\n~~~~\n~~~~~\n" in markdown


def test_too_few_long_documents_are_counted(
    tokenizer: Tokenizer, documents: list[Document]
) -> None:
    with pytest.raises(ValueError, match=r"expected 6 documents .* only 5 of 5 are"):
        beginnings(tokenizer, documents, 6, 9, 0)
