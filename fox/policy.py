"""FoxPolicy: a sequence of embedded observations to features, for agents that act as they read.

Legend: B batch, T time, C width.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from fox.cache import FoxCache
from fox.config import FoxConfig
from fox.model import FoxModel


class FoxPolicy(nn.Module):
    """The blocks and the last norm of a FoX, without a vocabulary: h_t = trunk(x_0, ..., x_t).

    The same features come from whole sequences (`forward`, with gradients) and from a cache that
    goes on as observations arrive (`extend`, `step`).

    Args:
        config: of the blocks; vocab_size and the special tokens have no meaning here.

    Attributes:
        config: as given.

    Example:
        >>> policy = FoxPolicy(FoxConfig.preset("fox-pro-125m"))
        >>> features = policy(embedded, starts)
        >>> cache = policy.new_cache(batch_size=1)
        >>> with torch.no_grad():
        ...     feature = policy.step(cache, embedded[:1, 0])

    Source: Lin et al., Forgetting Transformer, ICLR 2025.
    """

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _without_vocabulary(FoxModel(config.replace(vocab_size=1, pad_token_id=None)))

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> "FoxPolicy":
        """The trunk of a language model, read from a folder as in fox.checkpoints.read_folder.

        Args:
            folder: with config.json and weights, which keep their dtype.

        Raises:
            ValueError: there is no checkpoint, or its config and weights do not fit together.
        """
        from fox.checkpoints import read_folder  # needs tokenizers, which a policy does not

        model = read_folder(Path(folder))
        with torch.device("meta"):
            policy = cls(model.config)
        policy.model = _without_vocabulary(model.model)
        return policy

    def forward(self, x: Tensor, starts: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x: (B, T, C), embedded observations.
            starts: (B, T) bool, True where an episode begins: nothing is seen across; None if
                there is one episode.
        """
        return self.model(inputs_embeds=x, document_starts=starts)

    def extend(
        self,
        cache: FoxCache,
        x: Tensor,
        starts: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), the features of tokens that go on where the cache ended.

        Args:
            cache: from `new_cache`; it is updated in place. A row whose first token here begins an
                episode is emptied; where one begins later, the keys before it stay, unseen.
            x: (B, T, C), a chunk of any length.
            starts: (B, T) bool, True where an episode begins.
            mask: (B, T), 1 for tokens and 0 for padding, one run of ones per row, for rows that go
                on by different numbers of tokens; features at padding are arbitrary.

        Raises:
            ValueError: gradients are on, shapes do not fit, or the cache is another model's.
        """
        if starts is not None and x.shape[1]:
            first = 0 if mask is None else mask.int().argmax(1)
            anew = starts[torch.arange(len(starts)), first]
            if mask is not None:
                anew = anew & mask.any(1)
            cache.clear(anew.nonzero().squeeze(1).tolist())
        return self.model(inputs_embeds=x, document_starts=starts, attention_mask=mask, cache=cache)

    def step(self, cache: FoxCache, x: Tensor, starts: Tensor | None = None) -> Tensor:
        """(B, C) -> (B, C): `extend` by one token in each row; `starts` is (B,)."""
        starts = None if starts is None else starts.unsqueeze(1)
        return self.extend(cache, x.unsqueeze(1), starts).squeeze(1)

    def new_cache(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        *,
        max_length: int | None = None,
        rollback: int = 32,
        log_pruning_tolerance: float | None = None,
        logit_cap: float | None = None,
    ) -> FoxCache:
        """An empty decode state; the arguments are those of FoxModel.new_cache."""
        return self.model.new_cache(
            batch_size,
            dtype,
            max_length=max_length,
            rollback=rollback,
            log_pruning_tolerance=log_pruning_tolerance,
            logit_cap=logit_cap,
        )


def _without_vocabulary(model: FoxModel) -> FoxModel:
    del model.embeddings
    return model
