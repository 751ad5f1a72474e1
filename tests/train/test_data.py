"""TextData: prepared folders as they are, several by weight, and text that must be the same."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fox.train.data import TextData
from fox.train.prepare import main


@pytest.fixture
def prepared(experiment):
    """Two folders of one tokenizer: few documents and many."""
    main(["prepare", "--folder=many", "--vocab_size=280", "--files", "corpus/*.txt"])
    options = ("--tokenizer=many/tokenizer.json", "--files", "corpus/1*.txt")
    main(["prepare", "--folder=few", *options])


def loaded(folder, seed=0, **options):
    data = TextData(options.pop("vocab_size", 280), 16, 4, folder=folder, seed=seed, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_a_prepared_folder_is_used_as_it_is(prepared):
    before = {path: path.stat().st_mtime_ns for path in Path("many").rglob("*")}
    data = loaded("many")
    assert data.ready.meta["train"]["documents"] == 39
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (4, 16)
    assert {path: path.stat().st_mtime_ns for path in Path("many").rglob("*")} == before
    same = loaded("many", files="corpus/*.txt", vocab_size=280)  # the same text, named again
    assert same.ready.meta == data.ready.meta


def test_a_prepared_folder_takes_no_other_text_size_or_tokenizer(prepared):
    with pytest.raises(ValueError, match="many was prepared from other text"):
        loaded("many", files="corpus/2*.txt")
    with pytest.raises(ValueError, match=r"leave out data\.max_tokens, but got 5"):
        loaded("many", max_tokens=5)
    with pytest.raises(ValueError, match=r"vocab_size = 270 entries, .* --data.vocab_size 280"):
        loaded("many", vocab_size=270)
    Path("many/meta.json").rename("many/begun.json")
    with pytest.raises(FileNotFoundError, match="in many, but preparing it was cut short"):
        loaded("many")


def test_several_folders_share_the_rows_and_validation_has_all_of_each(prepared):
    mixed, few, many = loaded({"few": 1, "many": 3}), loaded("few"), loaded("many")
    for part in ("train", "validation"):
        for name in ("documents", "tokens", "bytes"):
            counts = [data.ready.meta[part][name] for data in (mixed, few, many)]
            assert counts[0] == counts[1] + counts[2]
    joined = mixed.ready.train
    parts = [data.ready.train for data in (few, many)]
    tokens = np.concatenate([part.tokens[:] for part in parts])
    np.testing.assert_array_equal(joined.tokens[:], tokens)
    np.testing.assert_array_equal(joined.tokens[30:900], tokens[30:900])
    lengths = np.concatenate([np.diff(part.bounds) for part in parts])
    np.testing.assert_array_equal(np.diff(joined.bounds), lengths)
    again = loaded({"few": 1, "many": 3})
    batches = zip(mixed.train_dataloader(), again.train_dataloader(), strict=True)
    for one, two in islice(batches, 5):
        assert (one["input_ids"] == two["input_ids"]).all()


def test_folders_of_different_tokenizers_are_not_mixed(prepared):
    main(["prepare", "--folder=other", "--vocab_size=270", "--files", "corpus/*.txt"])
    with pytest.raises(ValueError, match=r"one tokenizer in all folders .* other has another one"):
        loaded({"many": 1, "other": 1})
    with pytest.raises(FileNotFoundError, match="a prepared corpus in nowhere, but there is none"):
        loaded({"many": 1, "nowhere": 1})
    with pytest.raises(ValueError, match=r"data\.files and data\.dataset to name text, but"):
        loaded({"many": 1}, files="corpus/*.txt")


def test_sources_in_another_order_are_other_data(prepared):
    state = loaded({"many": 1, "few": 2}).train_dataloader().state_dict()
    loaded({"many": 1, "few": 2}).train_dataloader().load_state_dict(state)
    with pytest.raises(ValueError, match="the corpus that the checkpoint was trained with"):
        loaded({"few": 2, "many": 1}).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize(
    "change", [{"folder": "few"}, {"folder": {"many": 1, "few": 1}}, {"seed": 1}]
)
def test_a_run_resumes_on_the_data_it_began_with_and_on_no_other(prepared, change):
    state = loaded("many").train_dataloader().state_dict()
    loaded("many").train_dataloader().load_state_dict(state)
    with pytest.raises(ValueError, match="that the checkpoint was trained with"):
        loaded(**({"folder": "many"} | change)).train_dataloader().load_state_dict(state)
