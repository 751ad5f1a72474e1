"""A corpus of a few thousand characters, and a run of a model that trains in a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

RUN = """
model:
  config: {hidden_size: 16, num_hidden_layers: 2, num_heads: 2, intermediate_size: 32,
           use_k_shift: true, use_v_shift: true, qk_norm: true}
  learning_rate: 0.01
  warmup_tokens: 256
data: {vocab_size: 280, seq_len: 16, batch_size: 4, files: 'corpus/*.txt'}
trainer: {default_root_dir: run, accelerator: cpu, max_steps: 24, val_check_interval: 12,
          log_every_n_steps: 1}
checkpoint: {every_n_steps: 5}
"""


def write_corpus(folder: Path) -> None:
    """45 documents of 1 to 7 lines; the hash of their names holds 6 of them out."""
    folder.mkdir()
    for number in range(45):
        lines = [f"def f{i}(x): return x + {i * number}" for i in range(number % 7 + 1)]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n")


def _set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write_corpus(folder / "corpus")
    (folder / "run.yaml").write_text(RUN)


@pytest.fixture(scope="session")
def set_up() -> Callable[[Path, pytest.MonkeyPatch], None]:
    """Makes a folder the current one, with corpus/*.txt and run.yaml."""
    return _set_up


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with corpus/*.txt and run.yaml."""
    _set_up(tmp_path, monkeypatch)
    return tmp_path
