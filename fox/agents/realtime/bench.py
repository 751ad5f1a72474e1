"""The command `fox-realtime bench`: what a tick, a job and an inference cost on this machine.

Legend: M environment's step in seconds, d delay in ticks, N workers.
"""

import math
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fox.agents.realtime.clock import WallClock
from fox.agents.realtime.delay import ticks_for
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.plots import draw_bench
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, head_seconds
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.remote import RayTransport
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.sweep import play
from fox.agents.realtime.ticks import Done, InferenceWorker, Job, Rows, Transport, token_dtype
from fox.agents.realtime.timing import one_thread, time_impala, time_trunk
from fox.agents.realtime.transport import ThreadTransport
from fox.files import write_csv, write_json

Kind = Literal["thread", "process", "ray"]

# d_model, layers, heads of FoX trunks by their size
TRUNKS = {
    "fox-1M": (128, 5, 4),
    "fox-11M": (384, 6, 6),
    "fox-25M": (512, 8, 8),
    "fox-99M": (768, 14, 12),
    "fox-324M": (1024, 26, 16),
}
IMPALAS = {"impala-1": 1, "impala-7": 7, "impala-29": 29}  # times as wide as the smallest
FRAMES, ROUNDS, TICKS = 2000, 200, 5000


def bench(
    output: str = "runs/bench",
    *,
    policies: list[str] = ["fox-1M", "fox-11M", "fox-25M", "impala-1", "impala-7"],  # noqa: B006
    env: str = "catch",
    fps: float | None = None,
    transports: list[Kind] = ["thread", "process"],  # noqa: B006
    window: int = 64,
    context: int = 1024,
) -> None:
    """What a tick, a job and an inference cost here, and how many workers a policy needs.

    Let nothing else run beside it. Workers that share cores, memory or a GPU slow each other down,
    so N workers on fewer cores do not keep up. Writes bench.json, policies.csv and bench.png.

    Args:
        output: folder for the files.
        policies: fox-1M, fox-11M, fox-25M, fox-99M, fox-324M (trunks with random weights), or
            impala-1, impala-7, impala-29 (by their width).
        env: name of the environment.
        fps: ticks per second; those of the environment if not given.
        transports: thread, process, ray.
        window: ticks that workers without a cache read again.
        context: ticks in the cache of the others.

    Raises:
        ValueError: there is no such policy, environment or transport.
    """
    if unknown := [name for name in policies if name not in TRUNKS and name not in IMPALAS]:
        known = ", ".join([*TRUNKS, *IMPALAS])
        raise ValueError(f"policies are {known}, but got {unknown[0]!r}")
    frame_seconds, world_fps = time_env(env)
    step_seconds = 1 / (fps or world_fps)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "dispatcher": time_dispatcher,
        "head": time_head,
        **{f"transport, {kind}": partial(time_transport, kind) for kind in transports},
    }
    costs: dict[str, Any] = {f"environment, {env}": {"seconds": frame_seconds}}
    rows: list[dict[str, Any]] = []
    for name in track([*parts, *policies], "measuring", console=Console(stderr=True)):
        if name in parts:
            costs[name] = parts[name]()
        else:
            rows += time_policy(name, step_seconds, window, context)
    cores = os.cpu_count() or 1
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    about = {"fps": 1 / step_seconds, "window": window, "context": context, "machine": machine}
    folder = Path(output)
    if rows:
        write_csv(folder / "policies.csv", rows)
    write_json(folder / "bench.json", {**about, "costs": costs, "policies": rows})
    report(costs, rows, step_seconds, cores)
    if rows:
        draw_bench(folder / "bench.png", rows, step_seconds, cores)
    print(f"all in {folder}")


def time_policy(name: str, step_seconds: float, window: int, context: int) -> list[dict[str, Any]]:
    """A row for each way to run a policy.

    seconds is what one job takes, and each tick has one; so seconds / M is how many cores are busy.
    workers is N, the next whole number; both are None where no number of workers is enough.
    """
    if name in IMPALAS:
        parameters, seconds = time_impala(IMPALAS[name], 1)
        times = {"frame": seconds}
    else:
        hidden_size, layers, heads = TRUNKS[name]
        config = PolicyConfig(hidden_size=hidden_size, num_hidden_layers=layers, num_heads=heads)
        trunk = time_trunk(config.blocks(), window, context)
        parameters = trunk.parameters
        N = trunk.workers(step_seconds)["catchup"]
        catch_up = trunk.chunk + math.ceil(N) * trunk.per_token if math.isfinite(N) else math.inf
        times = {"window": trunk.window, "catchup": catch_up, "wavefront": trunk.token}
    return [
        {
            "policy": name,
            "cache": cache,
            "parameters": parameters,
            "seconds": seconds if math.isfinite(seconds) else None,
            "workers": ticks_for(seconds, step_seconds) if math.isfinite(seconds) else None,
        }
        for cache, seconds in times.items()
    ]


def time_env(name: str) -> tuple[float, float]:
    """Seconds of one frame under random actions, and the environment's fps."""
    env = EnvConfig(name).make()
    actions = np.random.default_rng(0).integers(env.n_actions, size=FRAMES)
    env.reset(0)
    seconds = 0.0
    for seed, action in enumerate(actions.tolist(), start=1):
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - start
        if terminated or truncated:
            env.reset(seed)
    fps = env.fps
    env.close()
    return seconds / FRAMES, fps


def time_dispatcher() -> dict[str, float]:
    """Seconds of one tick of the dispatcher, by its number of workers, all of them busy."""
    seconds = {}
    for N in (1, 64, 1024):
        start = time.perf_counter()
        play(TickDispatcher(range(N), N), np.full(TICKS, float(N)), 1.0)
        seconds[f"seconds with {N} workers"] = (time.perf_counter() - start) / TICKS
    return seconds


def time_head() -> dict[str, float]:
    """Seconds of the default policy's head for one decision."""
    with one_thread():
        policy = RealtimePolicy(PolicyConfig(), (4,), np.dtype(np.float32), 3)
        return {"seconds": head_seconds(policy)}


class Nothing:
    """A worker that infers nothing."""

    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        """Zeros."""
        return np.zeros(1, np.float32), 0


def no_policy(worker: int) -> InferenceWorker:
    """The factory of Nothing, where a process can import it."""
    return Nothing()


def time_transport(kind: Kind) -> dict[str, float]:
    """Seconds from a job to its result, the median and the slowest of a hundred, and to start."""
    token = np.zeros((), token_dtype(np.zeros(4, np.float32)))
    ring, clock = ObservationRing(token.dtype, 1, 1, kind == "process"), WallClock(1.0)
    ring.publish(token)
    transport: Transport
    if kind == "thread":
        transport = ThreadTransport(no_policy, ring, clock)
    elif kind == "process":
        transport = ProcessTransport(no_policy, ring, features=1)
    else:
        transport = RayTransport(no_policy, ring, 1)
    trips = []
    try:
        start = clock.now()
        transport.start(range(1))
        started = clock.now() - start
        for number in range(ROUNDS):
            start = clock.now()
            transport.send(Job(number, 0, 0, 1, 0), start)
            while not any(isinstance(event, Done) for event in transport.poll(clock.now())):
                time.sleep(0)
            trips.append(clock.now() - start)
    finally:
        transport.close()
    return {
        "seconds": float(np.median(trips)),
        "slowest of 100": float(np.quantile(trips, 0.99)),
        "seconds to start a worker": started,
    }


def report(
    costs: dict[str, dict[str, float]],
    rows: list[dict[str, Any]],
    step_seconds: float,
    cores: int,
) -> None:
    """Two tables on the console."""
    console = Console()
    parts = Table("part", "", "ms", "share of a tick")
    for part, values in costs.items():
        for name, seconds in values.items():
            what = name.removeprefix("seconds").strip()
            share = "once" if "start" in what else f"{seconds / step_seconds:.1%}"
            parts.add_row(part, what, f"{1000 * seconds:.3f}", share)
    console.print(parts)
    if not rows:
        return
    table = Table(title=f"policies at {1 / step_seconds:g} ticks per second, one thread each")
    for heading in ("policy", "parameters", "cache", "job, ms", "workers", "busy cores", "here"):
        table.add_column(heading, justify="left" if heading in ("policy", "cache") else "right")
    for row in rows:
        about = (row["policy"], f"{row['parameters']:,}", row["cache"])
        if row["seconds"] is None:
            table.add_row(*about, "", "none", "", "no")
            continue
        busy = row["seconds"] / step_seconds
        fits = "yes" if busy <= cores - 1 else "no"
        milliseconds = f"{1000 * row['seconds']:.1f}"
        table.add_row(*about, milliseconds, str(row["workers"]), f"{busy:.2f}", fits)
    console.print(table)
    console.print(f"here: on {cores} cores, of which one is left to the world and the dispatcher")
