"""Rows: every token once, every start marked, every batch a function of the seed and its number."""

from itertools import islice

import numpy as np
import pytest
import torch

from fox.train.rows import IGNORED, Packing, Shuffled, TrainingBatches, ValidationBatches
from fox.train.shards import Part


def part(seed=0, documents=20):
    """Documents of 2 to 40 tokens; token = its own place, so that every one is told apart."""
    lengths = np.random.default_rng(seed).integers(2, 41, size=documents)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return Part(np.arange(bounds[-1], dtype=np.uint16), bounds)


def training(rank=0, world_size=1, seed=0, consumed=lambda: 0):
    return TrainingBatches(
        Shuffled(part(), 8, [seed]),
        {"corpus": "c", "seq_len": 8},
        seq_len=8,
        batch_size=4,
        rank=rank,
        world_size=world_size,
        consumed=consumed,
    )


def validation(**place):
    return ValidationBatches(Packing(part(), np.arange(20), 8), batch_size=4, **place)


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_validation_predicts_every_token_once_but_the_first_of_rows_and_documents():
    batches = list(validation())
    assert len(batches) == len(validation())
    assert all(batch["input_ids"].shape == (4, 8) for batch in batches)
    labels = torch.cat([batch["labels"] for batch in batches])
    starts = torch.cat([batch["document_starts"] for batch in batches])
    tokens, bounds = part()
    assert sorted(labels[labels != IGNORED].tolist()) == sorted(set(tokens) - set(bounds.tolist()))
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert sorted(ids[starts].tolist()) == bounds[:-1].tolist()


def test_labels_are_the_tokens_themselves_except_where_documents_start():
    batch = training().batch(0)
    counted = batch["labels"] != IGNORED
    assert torch.equal(counted, ~batch["document_starts"])
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])


def test_a_row_is_a_run_of_each_document_it_holds():
    batch = training().batch(3)
    for ids, starts in zip(batch["input_ids"], batch["document_starts"], strict=True):
        follows = ids[1:] == ids[:-1] + 1
        assert torch.equal(follows | starts[1:], torch.ones_like(follows))


def test_a_batch_is_a_function_of_the_seed_and_its_number_alone():
    batches = training()
    ahead = [batches.batch(i) for i in range(30)]
    assert all(equal(training().batch(i), ahead[i]) for i in (29, 3, 17))
    assert not equal(training(seed=1).batch(3), ahead[3])


def test_every_epoch_holds_other_rows_in_another_order():
    stream = Shuffled(part(), 8, [0])
    rows = [stream.row(number)[0] for number in range(2 * stream.rows_per_epoch)]
    epochs = np.concatenate(rows).reshape(2, -1)
    assert not np.array_equal(*epochs)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == epoch.size  # no token twice within an epoch


def test_ranks_divide_the_rows_of_one_batch():
    whole = training().batch(5)
    parts = [training(rank=rank, world_size=2).batch(5) for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(value[0::2], parts[0][name])
        assert torch.equal(value[1::2], parts[1][name])
    shares = [list(validation(rank=rank, world_size=2)) for rank in range(2)]
    whole = list(validation())
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for batch, *halves in zip(whole, *shares, strict=True):
        assert torch.equal(batch["labels"][0::2], halves[0]["labels"])
        assert torch.equal(batch["labels"][1::2], halves[1]["labels"])


def test_a_resumed_loader_goes_on_after_the_batches_that_were_used_not_drawn():
    batches = training(consumed=lambda: 7)
    list(islice(batches, 9))
    resumed = training()
    resumed.load_state_dict(batches.state_dict())
    assert equal(next(iter(resumed)), training().batch(7))


def test_a_checkpoint_of_other_batches_is_refused_and_both_are_named():
    state = training().state_dict() | {"seq_len": 16}
    with pytest.raises(ValueError, match=r"the seq_len .* trained with, 16, but got 8"):
        training().load_state_dict(state)


def test_a_corpus_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="100 rows of 8 tokens, but it has"):
        TrainingBatches(Shuffled(part(), 8, [0]), {}, seq_len=8, batch_size=100)
