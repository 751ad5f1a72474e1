"""FoxCache: what a model must remember of the tokens it has read.

Legend: B batch, S slots, H query heads, K key and value heads, D head size.
"""

import torch
from torch import Tensor

from fox.config import FoxConfig


class LayerCache:
    """Decode state of one attention layer; buffers grow by doubling, and `length` slots are in use.

    Attributes:
        length: tokens held.
        k, v: (B, S, K, D), as attention uses them: after shift, norm and rotation.
        lambda_: (B, S, H) float64, the running log gate up to each token, so that no step sums
            gates again.
        k_shift, v_shift: (B, K, D), the last projected row before mixing; None without shift or
            before the first token.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.length = 0
        self.k = torch.empty(batch_size, 0, num_kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.lambda_ = torch.empty(batch_size, 0, num_heads, dtype=torch.float64, device=device)
        self.k_shift: Tensor | None = None
        self.v_shift: Tensor | None = None

    def reserve(self, tokens: int) -> None:
        """Makes room for that many more tokens."""
        needed, slots = self.length + tokens, self.k.shape[1]
        if needed > slots:
            slots = max(needed, 2 * slots, 64)
            self.k, self.v, self.lambda_ = (
                self._grown(buffer, slots) for buffer in (self.k, self.v, self.lambda_)
            )

    def _grown(self, buffer: Tensor, slots: int) -> Tensor:
        grown = buffer.new_zeros(buffer.shape[0], slots, *buffer.shape[2:])
        grown[:, : self.length] = buffer[:, : self.length]
        return grown


class FoxCache:
    """Decode state of a model: pass it to every call, and each call continues the text.

    Args:
        config: of the model.
        batch_size: rows, the same in every call.
        dtype: of keys and values: the dtype in which the model computes.
        device: of the model.

    Attributes:
        layers: one LayerCache per block.
        seq_start: (B,) int64, padding tokens on the left of each row; None without padding.
    """

    def __init__(
        self, config: FoxConfig, batch_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        kv_heads = config.num_kv_heads or config.num_heads
        self.layers = [
            LayerCache(
                batch_size, config.num_heads, kv_heads, config.head_dim, dtype=dtype, device=device
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.batch_size = batch_size
        self.seq_start: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens held, padding included."""
        return self.layers[0].length
