"""Where documents come from, and what is said when none come."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fox.corpus import Document, divide, is_held_out, read_documents, standard_library


def texts(*args: object, **kwargs: object) -> list[str]:
    return [document.text for document in read_documents(*args, **kwargs)]


def write_jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_standard_library_is_sorted_and_without_tests_and_installed_packages():
    documents = standard_library()
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert {"argparse.py", "json/decoder.py", "typing.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "site-packages", "encodings", "pydoc_data"}
    assert 4e6 < sum(len(document.text) for document in documents) < 3e7
    assert not any(name.startswith("_sysconfigdata") for name in names)


def test_one_document_in_twenty_is_held_out_and_it_is_the_same_on_every_machine():
    held_out = [number for number in range(200) if is_held_out(str(number))]
    assert held_out == [96, 105, 127, 187, 188]
    held_out = [document.name for document in standard_library() if is_held_out(document.name)]
    assert 5 <= len(held_out) <= 60


def test_without_files_and_dataset_the_documents_are_the_standard_library():
    assert list(read_documents()) == standard_library()


def test_importing_the_corpus_imports_neither_datasets_nor_lightning():
    code = "import sys, fox.corpus; print({'datasets', 'pyarrow', 'lightning'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_one_text_file_is_one_document_named_below_the_fixed_part_of_the_pattern(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("two\nlines\n")
    (tmp_path / "deep" / "a.txt").write_text("größer", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    assert list(read_documents(f"{tmp_path}/**/*.txt")) == [
        Document("b.txt", "two\nlines\n"),
        Document("deep/a.txt", "größer"),
    ]


def test_files_of_the_same_name_are_all_read_and_each_only_once(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    patterns = [f"{tmp_path}/a/*.txt", f"{tmp_path}/b/*.txt", f"{tmp_path}/a/x.txt"]
    assert texts(patterns) == ["a", "b"]


def test_rows_of_jsonl_and_parquet_files_are_documents(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"body": "one"}, {"body": ""}, {"body": "three"})
    table = pyarrow.table({"id": [1, 2], "body": ["four", "five"]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    files = [path, f"{tmp_path}/*.parquet"]
    assert list(read_documents(files, text_field="body")) == [
        Document("a.jsonl:0", "one"),
        Document("a.jsonl:2", "three"),
        Document("b.parquet:0", "four"),
        Document("b.parquet:1", "five"),
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_a_dataset_streaming_or_not(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", {"text": "one"}, {"text": "two"})
    documents = read_documents(dataset=str(tmp_path / "data"), streaming=streaming)
    assert list(documents) == [Document("train:0", "one"), Document("train:1", "two")]


@pytest.mark.parametrize("streaming", [False, True])
def test_in_a_dataset_of_text_files_one_file_is_one_document(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / f"{name}.txt").write_text(f"{name}\nlast line\n")
    documents = read_documents(dataset=str(tmp_path / "data"), streaming=streaming)
    assert [document.text for document in documents] == ["a\nlast line\n", "b\nlast line\n"]


def test_a_stream_is_shuffled_by_its_seed_and_keeps_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    rows = [str(number) for number in range(40)]
    write_jsonl(tmp_path / "data" / "train.jsonl", *({"text": row} for row in rows))
    read = partial(texts, dataset=str(tmp_path / "data"), streaming=True, shuffle_buffer=16)
    assert read() == read() != rows
    assert read() != read(seed=1)
    assert sorted(read()) == sorted(rows)
    with pytest.raises(ValueError, match="a dataset with streaming for shuffle_buffer = 5"):
        texts(shuffle_buffer=5)


def test_a_dataset_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="a dataset 'no/such-data'"):
        texts(dataset="no/such-data")


def test_a_pattern_without_a_match_is_named():
    with pytest.raises(FileNotFoundError, match=r"files that match 'nowhere/\*.txt'"):
        texts("nowhere/*.txt")


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="the corpus is empty"):
        texts(f"{tmp_path}/*.txt")


def test_an_unknown_suffix_is_an_error_that_names_the_known_ones(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"\.txt, \.jsonl, \.parquet, but got .*a\.pdf"):
        texts(f"{tmp_path}/a.pdf")


def test_a_missing_field_is_an_error_that_names_the_fields_there_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"id": 1, "body": "one"})
    with pytest.raises(ValueError, match=r"'text' in a.jsonl, but it has id, body"):
        texts(path)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'text' in .*a.parquet, but it has body"):
        texts(f"{tmp_path}/a.parquet")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"JSON in .*a.jsonl, line 2"):
        texts(f"{tmp_path}/a.jsonl")
    (tmp_path / "b.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"a JSON object in .*b.jsonl, line 1, but got \[1\]"):
        texts(f"{tmp_path}/b.jsonl")
    with pytest.raises(ValueError, match=r"text in field 'text' of c.jsonl, row 0, but got int"):
        texts(write_jsonl(tmp_path / "c.jsonl", {"text": 7}))
    with pytest.raises(ValueError, match=r"of c.jsonl, row 0, but .* surrogates not allowed"):
        texts(write_jsonl(tmp_path / "c.jsonl", {"text": "\ud83d"}))
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"UTF-8 text in .*d.txt"):
        texts(f"{tmp_path}/d.txt")
    (tmp_path / "e.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"a parquet file in .*e.parquet"):
        texts(f"{tmp_path}/e.parquet")


def test_files_and_a_dataset_together_are_an_error():
    with pytest.raises(ValueError, match="files or a dataset, but got both"):
        read_documents("a.txt", "b")


def test_documents_are_divided_by_their_names_where_that_leaves_two_sides():
    documents = [Document(str(number), "text") for number in range(200)]
    divided = list(divide(lambda: documents))
    assert [document for document, _ in divided] == documents
    assert [held_out for _, held_out in divided] == [is_held_out(d.name) for d in documents]


def test_a_single_document_is_divided_at_a_line_near_its_end():
    text = "".join(f"line {number}\n" for number in range(1000))
    (train, first), (tail, second) = divide(lambda: [Document("a.txt", text)])
    assert (first, second) == (False, True)
    assert train.text + tail.text == text
    assert tail.text.startswith("line ")
    assert 0.04 < len(tail.text) / len(text) < 0.05
