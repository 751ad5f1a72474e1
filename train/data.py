"""TextData: from text, yours or the standard library's, to batches of packed rows."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from tokenizers import Tokenizer

from fox.files import read_json
from fox.train.encoding import Corpus, Encoding, build_shards
from fox.train.folders import join_shards, open_folder
from fox.train.rows import (
    Columns,
    InOrder,
    Mixture,
    Packing,
    Rows,
    Shuffled,
    Stream,
    TrainingBatches,
    ValidationBatches,
)
from fox.train.shards import Part, Shards, check_vocabulary


class TextData(LightningDataModule):
    """Text as rows of tokens: packed documents, and nothing reaches across their starts.

    A folder that `fox-data` has prepared is used as it is. Otherwise text is encoded into the
    folder, once, and again only when it or these settings change; without files and dataset that
    is the source of Python's own standard library. A twentieth of the documents, chosen by a hash
    of their names, is held out for validation; where that leaves nothing to hold out (one file),
    the last twentieth of every document is. A streamed dataset is read to its end, or to
    max_tokens, before training begins, and resumes like any.

    Args:
        vocab_size: entries of the tokenizer and rows of the model's embedding.
        seq_len: tokens of a row.
        batch_size: rows of a batch, over all devices.
        folder: a prepared folder; or several with their weights, {folder: weight}, the shares of
            the rows of training that come from each (one that is through begins again, however
            far the others are; validation reads all of each); or where the tokens of files,
            dataset or the standard library go, data/ in the run's folder if None.
        order: "packed" joins and cuts the documents in an order drawn from the seed; "columns"
            reads the first slice of seq_len tokens of every document, then every second one, and
            draws nothing, as the official training on LongCrawl64 does.
        files: glob patterns of .txt (one file is one document), .jsonl and .parquet files.
        dataset: instead of files, a name on the Hugging Face hub or a folder.
        text_field: the field with the text in .jsonl, .parquet and datasets.
        subset, split: which part of the dataset.
        streaming: read the dataset while it arrives instead of downloading it first.
        shuffle_buffer: rows of a streamed dataset that wait, to be drawn from by the seed; where
            max_tokens ends it, for a sample of more than its beginning.
        max_tokens: read no more text than gives this many training tokens; None reads all.
        tokenizer: a tokenizer.json; if None, one is trained on the training part. Its documents
            end with the eos_token of a tokenizer_config.json beside it, or <|endoftext|>.
        num_workers: processes that encode; if None, one for each core where text is long.
        seed: of the order of documents and rows.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        batch_size: int,
        folder: dict[str, float] | str | None = None,
        order: Literal["packed", "columns"] = "packed",
        files: str | list[str] | None = None,
        dataset: str | None = None,
        text_field: str = "text",
        subset: str | None = None,
        split: str = "train",
        streaming: bool = False,
        shuffle_buffer: int | None = None,
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        bounds = (("seq_len", seq_len, 2), ("batch_size", batch_size, 1), ("seed", seed, 0))
        for name, value, least in bounds:
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, but got {value}")
        self.vocab_size, self.seq_len, self.batch_size = vocab_size, seq_len, batch_size
        self.order, self.num_workers, self.seed = order, num_workers, seed
        files = [files] if isinstance(files, str) else files
        self.corpus = Corpus(
            tuple(files) if files else None,
            dataset,
            text_field,
            subset,
            split,
            streaming,
            shuffle_buffer,
            seed if shuffle_buffer else 0,
        )
        self.encoding = Encoding(vocab_size, Path(tokenizer) if tokenizer else None, max_tokens)
        self.weights = folder if isinstance(folder, dict) else None
        self.folder = Path(folder) if isinstance(folder, str) else None
        if self.weights is not None and (files or dataset):
            raise ValueError(
                "expected data.folder to name prepared folders or data.files and data.dataset to "
                "name text, but got both: prepare each with fox-data"
            )
        self.shards: list[Shards] = []
        self.joined: Shards | None = None
        self.save_hyperparameters()

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of one batch, over all devices."""
        return self.seq_len * self.batch_size

    @property
    def ready(self) -> Shards:
        """The encoded corpus, several as one; there after prepare_data and setup."""
        assert self.joined is not None, "call prepare_data() and setup() first"
        return self.joined

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
        if not self._is_prepared():
            folder = self._folder()
            build_shards(folder, self.corpus, self.encoding, num_workers=self.num_workers)

    def setup(self, stage: str) -> None:
        """Maps the encoded corpus into memory."""
        folders = [Path(folder) for folder in self.weights or [self._folder()]]
        self.shards = [open_folder(folder) for folder in folders]
        self.joined = join_shards(self.shards)
        check_vocabulary(self.ready.tokenizer, self.vocab_size)
        if stage == "fit":
            stream = self.train_dataloader().stream  # a small corpus is told before validation runs
            if isinstance(stream, Mixture):
                self._tell_shares(stream)

    def train_dataloader(self) -> TrainingBatches:
        """Endless batches: trainer.max_steps says when to stop."""
        rank, world_size = self._place()
        corpora = [shards.meta["train"]["sha256"] for shards in self.shards]
        weights = list(self.weights.values()) if self.weights else [1.0]
        identity = {
            # A list, as the order of the sources decides, too.
            "corpus": corpora[0] if len(corpora) == 1 else [corpora, weights],
            "order": self.order,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return TrainingBatches(
            self._stream(weights),
            identity,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
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
            self._rows(self.ready.validation),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _is_prepared(self) -> bool:
        """Whether fox-data made the folder, which then needs no text to be named."""
        if self.weights is not None:
            return True
        folder = self._folder()
        if self.corpus.files or self.corpus.dataset:
            return False
        if any(
            path.is_file() and read_json(path)["prepared"]
            for path in (folder / "meta.json", folder / "begun.json")
        ):
            for name, value in (
                ("tokenizer", self.encoding.tokenizer),
                ("max_tokens", self.encoding.max_tokens),
            ):
                if value is not None:
                    raise ValueError(
                        f"{folder} is prepared with a tokenizer and a size: leave out "
                        f"data.{name}, but got {value}"
                    )
            return True
        return False

    def _rows(self, part: Part) -> Rows:
        if self.order == "columns":
            return Columns(part, self.seq_len, self.ready.meta["end_of_text"])
        return Packing(part, np.arange(len(part.bounds) - 1), self.seq_len)

    def _stream(self, weights: list[float]) -> Stream:
        streams: list[Stream] = [
            InOrder(self._rows(shards.train))
            if self.order == "columns"
            else Shuffled(shards.train, self.seq_len, [self.seed, *([number] if number else [])])
            for number, shards in enumerate(self.shards)
        ]
        return streams[0] if len(streams) == 1 else Mixture(streams, weights, self.seed)

    def _tell_shares(self, mixture: Mixture) -> None:
        """How often the run reads each source."""
        trainer = self.trainer
        if trainer is None or not trainer.is_global_zero:
            return
        num_rows = trainer.max_steps * trainer.accumulate_grad_batches * self.batch_size
        shares = mixture.counts / mixture.counts.sum()
        for shards, share, epochs in zip(
            self.shards, shares, mixture.epochs(num_rows), strict=True
        ):
            print(f"{shards.folder}: {share:.2%} of the rows, read {epochs:.2f} times", flush=True)

    def _folder(self) -> Path:
        if self.folder is None:
            assert self.trainer is not None, "data.folder must be given where there is no trainer"
            return Path(self.trainer.default_root_dir) / "data"
        return self.folder

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        # Devices that share rows by model.context_parallel take the same ones.
        sharing: Any = getattr(self.trainer.lightning_module, "context_parallel", 1)
        readers = self.trainer.world_size // sharing
        if readers and self.batch_size % readers:
            raise ValueError(
                f"data.batch_size counts the rows of all devices: expected a multiple of "
                f"{readers}, but got {self.batch_size}"
            )
        return self.trainer.global_rank // sharing, readers

    def _consumed(self) -> int:
        # The loader itself knows only what was drawn, which may be ahead of what was trained on.
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed
