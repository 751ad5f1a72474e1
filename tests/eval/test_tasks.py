"""The rows of each task are what it says: every answer stands in the row and is asked for."""

import pytest
import torch

from fox.eval.tasks import MultiQueryRecall, Passkey, Recall, Task
from fox.loss import IGNORED

LENGTH = 64


def make_rows(task: Task, length: int = LENGTH, depth: float | None = None) -> list[tuple]:
    ids, labels = task.rows(50, length, torch.Generator().manual_seed(0), depth)
    assert ids.shape == labels.shape == (50, length)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < task.vocab_size
    return list(zip(ids.tolist(), labels.tolist(), strict=True))


def is_key(task: Task, token: int) -> bool:
    return task.fillers <= token < task.fillers + task.keys


def test_recall_asks_for_the_value_behind_one_key_and_nowhere_else() -> None:
    task = Recall()
    for row, labels in make_rows(task):
        pairs = {row[i]: row[i + 1] for i in range(LENGTH - 2) if is_key(task, row[i])}
        assert len(pairs) == len(set(pairs.values())) == task.pairs
        assert labels == [IGNORED] * (LENGTH - 1) + [pairs[row[-1]]]
        assert row[-2] < task.fillers


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 30), (1.0, 60)])
def test_depth_places_the_pair_asked_for(depth: float, place: int) -> None:
    for row, labels in make_rows(Recall(), depth=depth):
        assert row[place] == row[-1]
        assert row[place + 1] == labels[-1]


def test_multi_query_recall_asks_for_every_pair_once() -> None:
    task = MultiQueryRecall(pairs=5)
    places = set()
    for row, labels in make_rows(task):
        pairs = dict(zip(row[:10:2], row[1:10:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 5
        asked = {t: label for t, label in enumerate(labels) if label != IGNORED}
        assert {row[t]: label for t, label in asked.items()} == pairs
        assert len(asked) == 5
        assert all(row[t] < task.fillers for t in range(10, LENGTH) if t not in asked)
        places |= set(asked)
    assert places == set(range(10, LENGTH))


@pytest.mark.parametrize(("depth", "start"), [(0.0, 0), (0.5, 28), (1.0, 57)])
def test_passkey_asks_for_the_whole_key_behind_the_mark(depth: float, start: int) -> None:
    task = Passkey(pairs=3)
    mark = task.fillers + task.keys
    for row, labels in make_rows(task, depth=depth):
        planted = row[start : start + 4]
        assert planted[0] == mark
        assert all(is_key(task, token) for token in planted[1:])
        assert row[-3:] == planted[:-1]
        assert labels == [IGNORED] * (LENGTH - 3) + planted[1:]
        assert row.count(mark) == 2


@pytest.mark.parametrize("task", [Recall, MultiQueryRecall, Passkey])
def test_the_shortest_row_holds_the_task_and_no_shorter_one_is_made(task: type[Task]) -> None:
    shortest = task().shortest
    make_rows(task(), shortest)
    for length in (shortest - 2, shortest + 1):
        with pytest.raises(ValueError, match=f"even number of tokens from {shortest} on, but got"):
            task(training_length=length)


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="recall has 1 to 16 pairs, but got 17"):
        Recall(pairs=17)
