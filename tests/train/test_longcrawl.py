"""LongCrawl64's arrays: read where they lie, in the official order, with the official input."""

from pathlib import Path

import numpy as np
import pytest

from fox.train.data import TextData
from fox.train.folders import open_folder
from fox.train.prepare import main
from fox.train.tokenizer import train_tokenizer

zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:zarr")

DOCUMENTS, LENGTH, END = 6, 32, 0
LINK = ("longcrawl64", "--folder", "crawl", "--arrays", "arrays", "--tokenizer", "tokenizer.json")


def write_array(name, documents, offset):
    array = zarr.create_array(
        f"arrays/{name}.zarr", shape=(documents, LENGTH), chunks=(4, 16), dtype="uint16"
    )
    array[:] = offset + np.arange(documents * LENGTH).reshape(documents, LENGTH) % 100
    return array[:]


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """train.zarr and heldout.zarr, with the tokens of each, and a tokenizer that knows them."""
    monkeypatch.chdir(tmp_path)
    train_tokenizer(["a text"], 280).save("tokenizer.json")
    return write_array("train", DOCUMENTS, 1), write_array("heldout", 3, 2)


def test_training_reads_first_slices_before_second_ones_behind_an_end_of_text(arrays):
    main(LINK)
    data = TextData(280, 8, 3, folder="crawl", order="columns")
    data.prepare_data()
    data.setup("fit")
    batches = data.train_dataloader()
    train, held_out = arrays
    for index in range(2 * LENGTH // 8):
        column, rows = index // 2, slice(3 * (index % 2), 3 * (index % 2) + 3)
        labels = train[rows, 8 * column : 8 * column + 8].astype(np.int64)
        official = np.roll(labels, 1, axis=1)  # the input of the official training
        official[:, 0] = END
        batch = batches.batch(index)
        np.testing.assert_array_equal(batch["input_ids"], official)
        np.testing.assert_array_equal(batch["labels"][:, 1:], labels[:, :-1])
        assert (batch["labels"][:, 0] == -100).all()
    rows = np.concatenate([batch["input_ids"] for batch in data.val_dataloader()])
    expected = held_out.reshape(-1, 8)[:, :-1].tolist()
    assert sorted(rows[:, 1:].tolist()) == sorted(expected)


def test_a_folder_says_where_the_arrays_are_and_what_is_in_them(arrays, capsys):
    main(LINK)
    assert "train                    6               192" in capsys.readouterr().out
    shards = open_folder(Path("crawl"))
    np.testing.assert_array_equal(shards.train.tokens[:], arrays[0].ravel())
    np.testing.assert_array_equal(shards.train.tokens[30:70], arrays[0].ravel()[30:70])
    np.testing.assert_array_equal(shards.train.bounds, np.arange(7) * LENGTH)
    text = shards.tokenizer.decode(arrays[0].ravel().tolist(), skip_special_tokens=False)
    assert abs(shards.meta["train"]["bytes"] - len(text.encode())) < 20  # half characters
    assert not list(Path("crawl").glob("**/*.bin"))  # nothing is copied


def test_arrays_that_changed_are_refused(arrays):
    main(LINK)
    zarr.open_array("arrays/train.zarr", mode="r+")[2, 5] = 77
    with pytest.raises(ValueError, match=r"train.zarr to be as it was when crawl was made"):
        open_folder(Path("crawl"))


def test_what_is_no_array_of_documents_is_named(arrays, monkeypatch, capsys):
    def error():
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(LINK)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    zarr.open_array("arrays/train.zarr", mode="r+")[2, 5] = 300
    assert "entries, and they have token 300" in error()
    zarr.create_array("arrays/heldout.zarr", shape=(4,), dtype="float32", overwrite=True)
    assert "(documents, length) token ids in arrays/heldout.zarr" in error()
    Path("arrays").rename("moved")
    assert "expected a zarr array, but there is no arrays/train.zarr" in error()
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    assert "LongCrawl64 needs zarr: pip install 'fox-transformer[zarr]'" in error()
