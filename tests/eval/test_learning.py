"""A FoX learns the tasks in seconds and beyond its length, and the test counts what is right."""

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from torch import Tensor

from fox.eval import learning
from fox.eval.learning import ROWS_PER_CELL, task_config, train_and_test
from fox.eval.tasks import MultiQueryRecall, Passkey, Recall, Task
from fox.loss import IGNORED
from fox.model import FoxForCausalLM


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        (Recall(training_length=32), 80),
        (MultiQueryRecall(training_length=32, pairs=4), 70),
        (Passkey(training_length=32, pairs=3), 70),
    ],
)
def test_a_fox_learns_the_task_and_still_knows_it_at_four_times_the_length(
    task: Task, steps: int
) -> None:
    lengths = [task.training_length, 4 * task.training_length]
    cells = train_and_test(task, task_config("fox-pro", task), seed=0, steps=steps, lengths=lengths)
    assert [(cell["length"], cell["depth"]) for cell in cells] == [
        (length, depth) for length in lengths for depth in task.depths
    ]
    for length in lengths:
        assert fmean(cell["accuracy"] for cell in cells if cell["length"] == length) > 0.9


def test_the_four_models_are_the_papers_of_one_size() -> None:
    task = Recall()
    fox, transformer = task_config("fox-pro", task), task_config("transformer-pro", task)
    changed = {"fgate_type": "none", "use_rope": True, "decay_time_min": None}
    assert fox.replace(decay_time_max=None, **changed) == transformer
    assert task_config("fox-llama", task).use_k_shift is False
    assert task_config("transformer-llama", task).use_rope is True


def oracle(wrong: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Right answers to all questions but those where wrong(labels) is True."""

    def answers(model: FoxForCausalLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        asked = labels != IGNORED
        told = torch.where(wrong(labels), 0, labels)[asked]
        return torch.nn.functional.one_hot(told, 200).float(), labels[asked]

    return answers


@pytest.mark.parametrize(("task", "share"), [(MultiQueryRecall(), 7 / 8), (Passkey(), 0.0)])
def test_each_of_many_questions_counts_but_a_passkey_is_right_as_a_whole(
    task: Task, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_question(labels: Tensor) -> Tensor:
        asked = labels != IGNORED
        return asked & (asked.cumsum(1) == 1)

    monkeypatch.setattr(learning, "answers", oracle(first_question))
    model = FoxForCausalLM(task_config("fox-pro", task))
    for cell in learning.test(model, task, 0, [64, 66], lambda note: None):
        assert cell["accuracy"] == pytest.approx(share)


def test_cells_do_not_depend_on_how_many_rows_are_tested_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Passkey(training_length=16, pairs=2)
    lengths = [16, 64]
    config = task_config("fox-pro", task)
    whole = train_and_test(task, config, seed=0, steps=2, lengths=lengths)
    monkeypatch.setattr(learning, "ROWS_AT_ONCE", 64 * (ROWS_PER_CELL // 3))
    assert train_and_test(task, config, seed=0, steps=2, lengths=lengths) == whole


def test_a_model_without_the_tasks_vocabulary_is_refused() -> None:
    task = Recall()
    config = task_config("fox-pro", task).replace(vocab_size=95)
    with pytest.raises(ValueError, match="needs a vocabulary of 96 tokens, but the model has 95"):
        train_and_test(task, config, seed=0, steps=1, lengths=[64])


def test_a_length_that_cannot_hold_the_task_is_refused_before_training() -> None:
    task = Recall()
    with pytest.raises(ValueError, match="from 10 on, but got 8"):
        train_and_test(task, task_config("fox-pro", task), seed=0, steps=1, lengths=[64, 8])
