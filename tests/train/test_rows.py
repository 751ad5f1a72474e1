"""Rows: every token once, every start marked, every batch a function of the seed and its number."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.train.rows import (
    IGNORED,
    SHARED_ROWS,
    Columns,
    InOrder,
    Mixture,
    Packing,
    Shuffled,
    TrainingBatches,
    ValidationBatches,
)
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


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 9)), min_size=1, max_size=5),
)
def test_each_row_is_read_once_an_epoch_over_any_stops_and_numbers_of_ranks(seed, runs):
    expected = Shuffled(part(), 8, [seed])
    state, read = training(seed=seed).state_dict(), []
    for world_size, used in runs:
        done = state["batches"] + used
        ranks = [
            training(rank, world_size, seed, consumed=lambda done=done: done)
            for rank in range(world_size)
        ]
        for loader in ranks:
            loader.load_state_dict(state)
        # Each draws one batch ahead of training when it is stopped.
        shares = [list(islice(loader, used + 1))[:used] for loader in ranks]
        for batches in zip(*shares, strict=True):
            rows = torch.stack([batch["input_ids"] for batch in batches], dim=1)
            read += rows.flatten(0, 1).tolist()
        state = ranks[-1].state_dict()
    assert read == [expected.row(number)[0].tolist() for number in range(len(read))]
    for begin in range(0, len(read), expected.rows_per_epoch):
        tokens = [t for row in read[begin : begin + expected.rows_per_epoch] for t in row]
        assert len(set(tokens)) == len(tokens)  # tokens are places: none is read twice


def test_columns_are_first_slices_then_second_slices_behind_an_end_of_text():
    bounds = np.array([0, 11, 13, 25, 29])  # slices of 4: two, none, three, one
    columns = Columns(Part(np.arange(29, dtype=np.uint16), bounds), 4, 99)
    rows = [columns.row(index) for index in range(len(columns))]
    assert [row.tolist() for row, _ in rows] == [
        [99, first, first + 1, first + 2] for first in (0, 13, 25, 4, 17, 21)
    ]
    assert all(starts.tolist() == [True, False, False, False] for _, starts in rows)
    again = InOrder(columns)
    assert again.row(7)[0].tolist() == rows[1][0].tolist()


def constant(token, rows):
    """A stream of rows (token, number)."""
    tokens = np.stack([np.full(rows, token), np.arange(rows)], axis=1).astype(np.uint16)
    return InOrder(Packing(Part(tokens.ravel(), np.array([0, 2 * rows])), np.arange(1), 2))


def test_sources_share_the_rows_by_weight_and_a_small_one_begins_again():
    mixture = Mixture([constant(0, 30_000), constant(1, 700)], [3, 1], seed=5)
    rows = np.array([mixture.row(number)[0] for number in range(2 * SHARED_ROWS)])
    for block in (rows[:SHARED_ROWS], rows[SHARED_ROWS:]):
        assert (block[:, 0] == 1).sum() == SHARED_ROWS // 4
    assert not np.array_equal(rows[:SHARED_ROWS, 0], rows[SHARED_ROWS:, 0])
    for source, size in ((0, 30_000), (1, 700)):  # each in its own order, without a gap
        numbers = rows[rows[:, 0] == source, 1]
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)) % size)
    assert mixture.epochs(2 * SHARED_ROWS) == [0.5, 5000 / 700]
    again = Mixture([constant(0, 30_000), constant(1, 700)], [3, 1], seed=5)
    assert all((again.row(number)[0] == rows[number]).all() for number in (15_000, 3, 9_999))


@pytest.mark.parametrize("weights", [[1, 1e-6], [1, -1], [0, 0]])
def test_a_weight_too_small_for_any_row_is_refused(weights):
    with pytest.raises(ValueError, match="at least one of 10,000 rows, but got"):
        Mixture([constant(0, 3), constant(1, 3)], weights, seed=0)


def test_a_source_without_a_whole_row_is_refused():
    with pytest.raises(ValueError, match=r"one whole row in every source, but they have \[3, 0\]"):
        Mixture([constant(0, 3), constant(1, 0)], [1, 1], seed=0)


def test_a_row_of_a_million_tokens_is_read_without_holding_the_corpus(tmp_path):
    seq_len = 1 << 20
    tokens = np.memmap(tmp_path / "tokens", np.uint16, mode="w+", shape=(1 << 27,))
    tokens[::512] = 7
    stream = Shuffled(Part(tokens, np.arange(0, len(tokens) + 1, 512)), seq_len, [0])
    batches = TrainingBatches(stream, {}, seq_len=seq_len, batch_size=1)
    tracemalloc.start()
    batch = batches.batch(3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch["input_ids"].shape == (1, seq_len)
    assert batch["document_starts"].sum() == seq_len // 512
    assert (batch["input_ids"][batch["document_starts"]] == 7).all()
    assert peak < 64 * 2**20  # the corpus has 256 MiB, this batch 17
