"""How long one inference takes on one thread, and how many workers that asks for.

Legend: M seconds of a tick; T_W of a window of W ticks, T_1 of one tick behind a cache; a chunk of
n ticks takes T_w + n c. All times are seconds, of batch 1.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fox.agents.realtime.networks import Impala
from fox.cache import FoxCache
from fox.config import FoxConfig
from fox.policy import FoxPolicy

CHUNKS = (4, 16, 64, 256)  # ticks, for the fit of T_w and c
FEWEST, SHORTEST = 3, 0.3  # repeats, and seconds for all of them


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, as a worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def median_seconds(call: Callable[[], object]) -> float:
    """Of a call that has run once before: the median of at least three.

    Processor seconds of the calling thread: what other programs do meanwhile does not count.
    """
    call()
    seconds: list[float] = []
    while len(seconds) < FEWEST or (sum(seconds) < SHORTEST and len(seconds) < 100):
        begin = time.thread_time()
        call()
        seconds.append(time.thread_time() - begin)
    return float(np.median(seconds))


@dataclass(frozen=True)
class TrunkTimes:
    """Seconds of one FoX trunk.

    Attributes:
        parameters: of the trunk.
        window: T_W, W tokens without a cache.
        token: T_1, one token behind a cache.
        chunk, per_token: T_w and c, of chunks behind that cache.
    """

    parameters: int
    window: float
    token: float
    chunk: float
    per_token: float

    def workers(self, step_seconds: float) -> dict[str, float]:
        """N of each cache mode before it is rounded up; inf where no number is enough."""
        left = step_seconds - self.per_token
        return {
            "window": self.window / step_seconds,
            "catchup": self.chunk / left if left > 0 else math.inf,
            "wavefront": self.token / step_seconds,
        }


def parameters_of(network: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.inference_mode()
def time_trunk(config: FoxConfig, window: int = 64, context: int = 1024) -> TrunkTimes:
    """Times a FoX trunk with random weights on one thread.

    Args:
        config: of the trunk.
        window: W.
        context: ticks that the cache holds.
    """
    with one_thread():
        trunk = FoxPolicy(config).eval()
        held = trunk.new_cache(1, max_length=context + max(CHUNKS), rollback=max(CHUNKS))
        trunk.extend(held, torch.randn(1, context, config.hidden_size))

        def chunk(ticks: int) -> float:
            x = torch.randn(1, ticks, config.hidden_size)
            return median_seconds(lambda: trunk.extend(rewound(held, context), x))

        x, starts = torch.randn(1, window, config.hidden_size), torch.zeros(1, window).bool()
        seconds = [chunk(ticks) for ticks in CHUNKS]
        per_token, fixed = line(CHUNKS, seconds)
        times = (median_seconds(lambda: trunk(x, starts)), chunk(1), fixed, per_token)
    return TrunkTimes(parameters_of(trunk), *times)


def rewound(cache: FoxCache, length: int) -> FoxCache:
    """The cache without the tokens behind `length`: nothing is copied."""
    if cache.length > length:
        cache.crop(length)
    return cache


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(slope, intercept >= 0) of the line with the least relative errors."""
    slope, intercept = np.polyfit(x, y, 1, w=1 / np.asarray(y))
    return float(slope), max(float(intercept), 0.0)


@torch.inference_mode()
def time_impala(width: int, depth: int) -> tuple[int, float]:
    """Parameters and seconds of the IMPALA trunk on one 84 x 84 frame."""
    with one_thread():
        network = Impala((84, 84), width, depth).eval()
        frame = torch.zeros(1, 84, 84, dtype=torch.uint8)
        return parameters_of(network), median_seconds(lambda: network(frame))


def largest(
    parameters: Sequence[float], workers: Sequence[float], N: int
) -> tuple[float | None, bool]:
    """The largest model that N workers carry, and whether a still larger one was timed.

    Between two sizes, workers are taken as a power of the parameters; beyond them nothing is said.

    Args:
        parameters: of the timed sizes, growing.
        workers: that each needs, before rounding up; inf where no number is enough.
        N: there are.

    Returns:
        Parameters, None if N is too few for the smallest; and False if N would be enough for more
        than the largest.
    """
    finite = [n for n in workers if math.isfinite(n)]
    x, y = np.log(parameters[: len(finite)]), np.maximum.accumulate(np.log(finite))
    if math.log(N) < y[0]:
        return None, True
    inside = math.log(N) <= y[-1] or len(finite) < len(workers)
    return float(np.exp(np.interp(math.log(N), y, x))), inside
