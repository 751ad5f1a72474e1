"""TextData: from text, yours or the standard library's, to batches of packed rows."""

from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from tokenizers import Tokenizer

from fox.train.rows import TrainingBatches, ValidationBatches
from fox.train.shards import Corpus, Shards, build_shards


class TextData(LightningDataModule):
    """Text as packed rows: documents are joined and cut, and nothing reaches across their starts.

    Without files and dataset the text is the source of Python's own standard library. A twentieth
    of the documents, chosen by a hash of their names, is held out for validation; where that
    leaves nothing to hold out (one file), the last twentieth of every document is. The text is
    encoded once, into the folder, and again only when it or these settings change. So a streamed
    dataset is read to its end, or to max_tokens, before training begins, and resumes like any.

    Args:
        vocab_size: entries of the tokenizer and rows of the model's embedding.
        seq_len: tokens of a row.
        batch_size: rows of a batch, over all devices.
        files: glob patterns of .txt (one file is one document), .jsonl and .parquet files.
        dataset: instead of files, a name on the Hugging Face hub or a folder.
        text_field: the field with the text in .jsonl, .parquet and datasets.
        subset, split: which part of the dataset.
        streaming: read the dataset while it arrives instead of downloading it first.
        max_tokens: read no more text than gives this many training tokens; None reads all.
        tokenizer: a tokenizer.json; if None, one is trained on the training part.
        folder: where the tokens go; data/ in the run's folder if None.
        seed: of the order of documents and rows.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        batch_size: int,
        files: str | list[str] | None = None,
        dataset: str | None = None,
        text_field: str = "text",
        subset: str | None = None,
        split: str = "train",
        streaming: bool = False,
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        folder: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("seq_len", seq_len, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, but got {value}")
        self.vocab_size, self.seq_len, self.batch_size = vocab_size, seq_len, batch_size
        files = [files] if isinstance(files, str) else files
        self.corpus = Corpus(
            tuple(files) if files else None, dataset, text_field, subset, split, streaming
        )
        self.max_tokens, self.seed = max_tokens, seed
        self.tokenizer_file = Path(tokenizer) if tokenizer else None
        self.folder = Path(folder) if folder else None
        self.shards: Shards | None = None
        self.save_hyperparameters()

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of one batch, over all devices."""
        return self.seq_len * self.batch_size

    @property
    def ready(self) -> Shards:
        """The encoded corpus; there after prepare_data and setup."""
        assert self.shards is not None, "call prepare_data() and setup() first"
        return self.shards

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus."""
        return self.ready.tokenizer

    @property
    def bytes_per_token(self) -> float:
        """Bytes of held-out text for each of its tokens, the ends of documents included."""
        counts = self.ready.meta["validation"]
        return counts["bytes"] / counts["tokens"]

    def prepare_data(self) -> None:
        """Encodes the corpus, or finds it encoded. Lightning calls this on one process."""
        build_shards(
            self._folder(),
            self.corpus,
            self.vocab_size,
            tokenizer=self.tokenizer_file,
            max_tokens=self.max_tokens,
        )

    def setup(self, stage: str) -> None:
        """Maps the encoded corpus into memory."""
        self.shards = Shards(self._folder())
        if stage == "fit":
            self.train_dataloader()  # a corpus that is too small is told before validation runs

    def train_dataloader(self) -> TrainingBatches:
        """Endless batches: trainer.max_steps says when to stop."""
        rank, world_size = self._place()
        identity = {
            "corpus": self.ready.meta["train"]["sha256"],
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return TrainingBatches(
            self.ready.train,
            identity,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            consumed=self._consumed,
        )

    def val_dataloader(self) -> ValidationBatches:
        """The held-out rows, each once."""
        return self.validation_batches(*self._place())

    def validation_batches(self, rank: int, world_size: int) -> ValidationBatches:
        """One process's share of the held-out rows; (0, 1) gives all."""
        return ValidationBatches(
            self.ready.validation,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _folder(self) -> Path:
        if self.folder is None:
            assert self.trainer is not None, "data.folder must be given where there is no trainer"
            return Path(self.trainer.default_root_dir) / "data"
        return self.folder

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if self.batch_size % self.trainer.world_size:
            raise ValueError(
                f"data.batch_size counts the rows of all devices: expected a multiple of "
                f"{self.trainer.world_size}, but got {self.batch_size}"
            )
        return self.trainer.global_rank, self.trainer.world_size

    def _consumed(self) -> int:
        # The loader itself knows only what was drawn, which may be ahead of what was trained on.
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed
