"""Wavefront: one cache that all workers fill together, layer by layer, one tick behind another.

Legend: a job's chunk is the ticks first..k, mostly k alone; layer l of tick k needs the keys of
layer l up to tick k - 1, and nothing else of the jobs before it. H query heads, K key heads, D head
size, R ticks of the ring, L layers.
"""

import time
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fox.agents.memory import Memory
from fox.agents.realtime.policy import RealtimePolicy, batch_of
from fox.agents.realtime.rings import Overwritten
from fox.agents.realtime.ticks import Job, Rows
from fox.config import FoxConfig
from fox.kernels import forgetting_attention_with_kvcache
from fox.kernels.gates import running_log_gates
from fox.layers import Heads
from fox.model import Block

POLL = 0.0001  # seconds between two looks at a counter


class Stuck(RuntimeError):
    """The worker with the tick before has not published its keys for too long."""


class KeyRing:
    """Keys, values and running gates of the newest R ticks in each layer, for all workers.

    A layer's `counter` is the last tick whose keys are there; `begun` is the last one that somebody
    has begun to write. Keys lie twice, R slots apart, so that any R ticks are one piece.

    Args:
        config: of the trunk.
        history: how many ticks a row sees.
        flight: how many ticks more stay, for those who still read while others write.
        shared: for workers in processes: pickled to one, it is the same ring there.

    Attributes:
        history: as given.
        slots: R.
        state: (2,) int64: the last tick that a job has taken on, and the first that may be seen.
        counter, begun: (L,) int64.
        versions: (L, R) int64, of the weights behind the keys.
        k, v: (L, 2 R, K, D) float32.
        running: (L, 2 R, H) float64, the sum of log gates up to each tick.
        rows: (L, R, 2, K, D) float32, keys and values before their shift; (L, 0, ...) without.

    Raises:
        ValueError: the trunk has rotary embedding.
    """

    def __init__(self, config: FoxConfig, history: int, flight: int, shared: bool) -> None:
        if config.use_rope:
            raise ValueError(
                'policy.cache = "wavefront" does not go with rotary embedding: ticks count on for '
                'ever, and angles would lose their precision; use "window"'
            )
        self.config, self.history = config, history
        self.slots = 1 << (history + flight - 1).bit_length()
        self._memory = Memory(sum(_padded(size) for _, _, size in self._parts()), shared)
        self._view()
        self.state[:] = -1, 0
        self.counter[:] = self.begun[:] = -1

    def take_on(self, k: int) -> int:
        """The first tick of the chunk up to k that no other job has taken on; k at most."""
        with self._memory.locked():
            taken = int(self.state[0])
            self.state[0] = max(k, taken)
            return self._first(taken + 1, k)

    def take_over(self, k: int) -> int:
        """The first tick of the chunk up to k that is not in every layer: the others were lost."""
        with self._memory.locked():
            return self._first(int(self.counter.min()) + 1, k)

    def begin_at(self, first: int) -> None:
        """Where a layer lacks ticks before this one, they stay missing, and nobody sees further."""
        with self._memory.locked():
            self._begin_at(first)

    def states(self, layer: int, tick: int, patience: float) -> tuple[Tensor | None, Tensor | None]:
        """The rows (1, K, D) of keys and values at a tick before their shift; None without."""
        if not self.rows.shape[1] or tick < self.state[1]:
            return None, None
        self._wait(layer, tick, patience)
        k_row, v_row = self.rows[layer, tick % self.slots]
        use_k, use_v = self.config.use_k_shift, self.config.use_v_shift
        return (k_row[None] if use_k else None), (v_row[None] if use_v else None)

    def publish(self, layer: int, first: int, heads: Heads, version: int, patience: float) -> None:
        """Waits for the tick before, and writes a chunk's keys; those that are there stay.

        Raises:
            Overwritten: the others have gone on without this chunk.
            Stuck: the tick before did not come.
        """
        self._wait(layer, first - 1, patience)
        end = first + heads.k.shape[1]
        with self._memory.locked():
            if first < self.state[1]:
                raise Overwritten(f"tick {first} was given up before layer {layer} had its keys")
            done = int(self.counter[layer])
            if done + 1 >= end:
                return
            self.begun[layer] = end - 1
            self._write(layer, done, slice(done + 1 - first, None), heads)
            self.versions[layer, np.arange(done + 1, end) % self.slots] = version
            self.counter[layer] = end - 1

    def attend(self, layer: int, q: Tensor, first: int, oldest: int) -> tuple[Tensor, int]:
        """What a chunk's queries (1, T, H, D) see in a layer: (1, T, H, D).

        Args:
            layer, q, first: of the chunk, which is published.
            oldest: keys of older versions are not looked at.

        Returns:
            The output, and the oldest version that it saw.

        Raises:
            Overwritten: the others have gone on without this chunk, or are so far ahead that they
                write what is read here.
        """
        end, begin = first + q.shape[1], max(first - self.history + 1, int(self.state[1]))
        if begin > first:
            raise Overwritten(f"tick {first} was given up before layer {layer} was read")
        versions = self.versions[layer, np.arange(begin, end) % self.slots]
        stale = np.flatnonzero(versions[: first - begin] < oldest)
        hidden = int(stale[-1]) + 1 if len(stale) else 0
        begin += hidden
        seen = slice(begin % self.slots, begin % self.slots + end - begin)
        k, v, running = (part[layer, seen][None] for part in (self.k, self.v, self.running))
        out = forgetting_attention_with_kvcache(q, k, v, running, window_size=self.history)
        if max(self.begun[layer] - self.slots, self.state[1] - 1) >= begin:
            raise Overwritten(f"the keys of tick {begin} went while they were read")
        return out, int(versions[hidden:].min())

    def _first(self, first: int, k: int) -> int:
        if first < k - self.history + 1:
            first = k - self.history + 1
            self._begin_at(first)
        return min(first, k)

    def _begin_at(self, first: int) -> None:
        if self.counter.min() < first - 1:
            self.state[1] = first
            self.counter[:] = self.begun[:] = np.maximum(self.counter, first - 1)

    def _write(self, layer: int, done: int, new: slice, heads: Heads) -> None:
        """The rows `new` of a chunk, behind tick `done`."""
        log_f = heads.log_f
        if log_f is None:
            log_f = torch.zeros(heads.q.shape[:3])
        total = None
        if done >= self.state[1]:
            total = self.running[layer, done % self.slots][None]
        running = running_log_gates(log_f[:, new], total=total)[0].T
        slot = torch.arange(done + 1, done + 1 + len(running)) % self.slots
        for part, rows in ((self.k, heads.k[0, new]), (self.v, heads.v[0, new])):
            part[layer, slot] = part[layer, slot + self.slots] = rows
        self.running[layer, slot] = self.running[layer, slot + self.slots] = running
        if self.rows.shape[1]:
            self.rows[layer, slot, 0] = heads.k_rows[0, new]
            self.rows[layer, slot, 1] = heads.v_rows[0, new]

    def _wait(self, layer: int, tick: int, patience: float) -> None:
        published, since = int(self.counter.sum()), time.perf_counter()
        while (missing := tick - int(self.counter[layer])) > 0:
            time.sleep(POLL)
            now = time.perf_counter()
            if self.counter.sum() > published:
                published, since = int(self.counter.sum()), now
            elif now - since > patience * missing:  # the next in line takes over, not all at once
                raise Stuck(f"tick {tick} has not reached layer {layer}")
        with self._memory.locked():
            pass  # what was written before the counter is there now

    def _parts(self) -> list[tuple[tuple[int, ...], type, int]]:
        config, R, L = self.config, self.slots, self.config.num_hidden_layers
        K, D = config.num_kv_heads or config.num_heads, config.head_dim
        shapes: list[tuple[tuple[int, ...], type]] = [
            ((2,), np.int64),
            ((L,), np.int64),
            ((L,), np.int64),
            ((L, R), np.int64),
            ((L, 2 * R, K, D), np.float32),
            ((L, 2 * R, K, D), np.float32),
            ((L, 2 * R, config.num_heads), np.float64),
            ((L, R if config.use_k_shift or config.use_v_shift else 0, 2, K, D), np.float32),
        ]
        return [(shape, kind, int(np.prod(shape)) * kind().itemsize) for shape, kind in shapes]

    def _view(self) -> None:
        parts, offset = [], 0
        for shape, kind, size in self._parts():
            parts.append(self._memory.array(shape, kind, offset))
            offset += _padded(size)
        self.state, self.counter, self.begun, self.versions = parts[:4]
        self.k, self.v, self.running, self.rows = (torch.from_numpy(part) for part in parts[4:])

    def __getstate__(self) -> dict[str, Any]:
        names = ("config", "history", "slots", "_memory")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._view()


def _padded(size: int) -> int:
    """To a cache line."""
    return -(-size // 64) * 64


class Wavefront:
    """A worker's trunk on the shared ring: layer l waits for layer l of the tick before.

    Keys are published right after their projection, so that the next tick's job follows one layer
    behind. A tick without a job is taken in by the next job as a longer chunk; one whose worker is
    lost by its successor, once nobody has published anything for `patience` seconds.

    Args:
        policy: with a FoX trunk.
        keys: the ring.
        patience: seconds, those of d ticks.
    """

    def __init__(self, policy: RealtimePolicy, keys: KeyRing, patience: float) -> None:
        self.policy, self.keys, self.patience = policy, keys, patience
        self.oldest = 0

    def features(self, job: Job, rows: Rows, version: int) -> np.ndarray:
        """(F,) float32."""
        k = job.obs_tick
        first = self.keys.take_on(k)
        while True:
            with suppress(Stuck):
                return self._chunk(first, k, rows, version)
            first = self.keys.take_over(k)

    def _chunk(self, first: int, k: int, rows: Rows, version: int) -> np.ndarray:
        try:
            tokens = rows.read(first, k)
        except LookupError:
            self.keys.begin_at(k + 1)  # nobody can read them any more
            raise
        if tokens["tick"][0] > first:  # a run that goes on has no tokens of the one before
            first = int(tokens["tick"][0])
            self.keys.begin_at(first)
        batch = batch_of(tokens)
        x = self.policy.encode(batch)
        self.oldest = version
        assert self.policy.trunk is not None
        model = self.policy.trunk.model
        for layer, block in enumerate(model.layers):
            assert isinstance(block, Block)
            x = self._block(layer, block, x, batch["start"], first, version)
        return model.norm(x)[0, -1].numpy().copy()

    def _block(
        self, layer: int, block: Block, x: Tensor, starts: Tensor, first: int, version: int
    ) -> Tensor:
        keys, patience = self.keys, self.patience
        normed = block.attn_norm(x)
        heads = block.attn.heads(normed, *keys.states(layer, first - 1, patience), starts)
        keys.publish(layer, first, heads, version, patience)
        limit = version - self.policy.config.version_lag
        out, oldest = keys.attend(layer, heads.q, first, limit)
        self.oldest = min(self.oldest, oldest)
        x = x + block.attn.output(out, normed)
        return x + block.mlp(block.mlp_norm(x))
