"""One agent's run in its folder: play and learn, go on after a stop, evaluate.

The folder holds config.json, metrics.csv, learning.png, evaluation.json, replay/ (the log, which is
written tick by tick) and checkpoint/ (learner.pt and world.pt, renamed into place).
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fox.agents.claim import claimed, read_config
from fox.agents.metrics import table
from fox.agents.realtime.agent import Agent, Place, playing
from fox.agents.realtime.behaviour import Exploration
from fox.agents.realtime.config import RunConfig
from fox.agents.realtime.loop import Interaction, Step
from fox.agents.realtime.meter import BETAS, Meter
from fox.agents.realtime.policy import check_head
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.updates import InlineTeacher, ProcessTeacher, Teacher, checkpoint_path
from fox.agents.signals import Stopped
from fox.agents.weights import WeightBuffers
from fox.files import read_json, whole_file, write_json

EVALUATION = 1_000_000  # added to a run's seed: other episodes than those that it has learnt from
# What may be given anew to a run.
FREE = {"run.folder", "run.ticks", "run.evaluation_ticks", "run.report_ticks"}
FREE |= {"run.checkpoint_ticks", "schedule.workers", "schedule.transport"}
COLUMNS = (
    *("tick", "seconds", "fps", "overruns", "dropped", "skipped", "epsilon"),
    *("return", "gains", "losses", "episodes", "coverage", "delay_ticks", "weight_age", "gap_cv"),
    *(name.lower() for name in BETAS),
    *("updates", "loss", "q", "td_error", "grad_norm", "trained"),
)

Tell = Callable[[dict[str, Any]], None]


def run_agent(config: RunConfig, tell: Tell, asked: Callable[[], bool]) -> dict[str, Any]:
    """Plays and learns to the end of the run, from wherever it is; evaluates it once.

    Args:
        config: of the run; its folder may hold a part of the same run.
        tell: is given every row of metrics.csv, and rows of the evaluation.
        asked: whether to stop; looked at after every tick.

    Returns:
        the evaluation, as in evaluation.json.

    Raises:
        ValueError: the folder holds another run, or a setting does not fit.
        Stopped: `asked` said so.
    """
    torch.set_num_threads(1)  # a policy of one tick is too small to share
    folder = Path(config.run.folder)
    agent = Agent(config)
    if config.schedule.interaction == "sequential":
        # What an action leads to, beta's ticks included, is told by the next decision.
        learner = replace(config.learner, n_step=agent.size()[0])
        agent.config = replace(config, learner=learner)
    _check(agent)
    with (
        claimed(folder, config.as_dict(), FREE),
        closing(_opened(agent, folder)) as replay,
    ):
        if replay.count < config.run.ticks:
            _play_and_learn(agent, replay, folder, tell, asked)
        return _evaluated(agent, replay.count, folder, tell, asked)


def read_run(folder: Path) -> tuple[RunConfig, np.ndarray, int]:
    """The config of the run in a folder, its newest saved weights (numel,), and their version.

    Raises:
        ValueError: there is no run, or nothing was saved yet.
    """
    return read_config(folder, "fox-realtime", RunConfig.of), *read_weights(folder)


def read_weights(folder: Path) -> tuple[np.ndarray, int]:
    """The newest saved weights (numel,) of a run, and their version.

    Raises:
        ValueError: nothing was saved yet.
    """
    path = checkpoint_path(folder)
    if not path.is_file():
        raise ValueError(f"the run in {folder} has saved no weights yet: let it train on")
    state = torch.load(path, weights_only=True)
    return state["weights"].numpy(), state["version"]


def evaluate(
    agent: Agent,
    flat: np.ndarray,
    version: int,
    ticks: int,
    tell: Tell = lambda row: None,
    asked: Callable[[], bool] = lambda: False,
    watch: Callable[[Interaction], Callable[[Step], None]] = lambda interaction: lambda step: None,
) -> dict[str, Any]:
    """Plays without exploration and without learning, in other episodes than the run's own.

    Args:
        agent: who plays; its configuration decides clock, workers and delay.
        flat, version: weights (numel,) and their version.
        ticks: how many.
        tell: is given a row every report_ticks.
        asked: whether to stop.
        watch: is given the interaction before the first tick, and returns what is called after
            every tick.

    Returns:
        ticks, version, workers, the row of Meter over all ticks, fps, overruns, the transport's
        counters (events) and the scheduler's.

    Raises:
        Stopped: `asked` said so.
    """
    d, workers = agent.size()
    weights = WeightBuffers(len(flat), workers, agent.config.schedule.shares)
    weights.publish(flat, version)
    meter, part = Meter(agent.step_seconds), Meter(agent.step_seconds)
    with playing(agent, weights, d, place=Place(episode=EVALUATION)) as interaction:
        events = interaction.transport.counters
        look = watch(interaction)
        start = time.perf_counter()
        for tick in range(1, ticks + 1):
            step = interaction.tick()
            look(step)
            meter.add(step, version)
            part.add(step, version)
            if asked():
                raise Stopped(f"stopped in the evaluation, after tick {tick:,} of {ticks:,}")
            if tick % agent.config.run.report_ticks == 0:
                tell({"evaluated": tick, **part.row()})
        seconds = time.perf_counter() - start
    counters = asdict(interaction.dispatcher.counters)
    counters["sources"] = {source.name: count for source, count in counters["sources"].items()}
    return {
        "ticks": ticks,
        "version": version,
        "workers": workers,
        **meter.row(),
        "fps": ticks / seconds,
        "overruns": interaction.clock.overruns,
        "events": dict(events),
        "counters": counters,
    }


def _play_and_learn(
    agent: Agent, replay: Replay, folder: Path, tell: Tell, asked: Callable[[], bool]
) -> None:
    run = agent.config.run
    d, workers = agent.size()
    virtual = agent.config.schedule.clock == "virtual"
    weights = WeightBuffers(len(agent.weights), workers, shared=not virtual)
    teacher: Teacher = (InlineTeacher if virtual else ProcessTeacher)(agent, weights, folder)
    exploration = _exploration(agent)
    place, meter = _place(folder, replay), Meter(agent.step_seconds)
    begun = playing(agent, weights, d, exploration=exploration, replay=replay, place=place)
    with (
        begun as interaction,
        table(folder / "metrics.csv", COLUMNS) as write,
    ):
        since = time.perf_counter()
        while interaction.k < run.ticks and not asked():
            meter.add(interaction.tick(), weights.version)
            teacher.advance()
            k = interaction.k
            if k % run.report_ticks == 0:
                now = time.perf_counter()
                row = {
                    "tick": k,
                    "seconds": k * agent.step_seconds,
                    "fps": meter.ticks / (now - since),
                    "overruns": interaction.clock.overruns,
                    "dropped": interaction.transport.counters["Overwritten"],
                    "skipped": weights.skipped,
                    "epsilon": exploration.epsilon(k),
                    **meter.row(),
                    **teacher.metrics,
                }
                since = now
                write(row)
                tell(row)
                interaction.dispatcher.trace.clear()
            if k % run.checkpoint_ticks == 0:
                teacher.save()
                _save_world(folder, interaction)
        _save_world(folder, interaction)
    teacher.close()
    if interaction.k < run.ticks:
        raise Stopped(f"stopped after tick {interaction.k:,} of {run.ticks:,}")


def _evaluated(
    agent: Agent, trained_ticks: int, folder: Path, tell: Tell, asked: Callable[[], bool]
) -> dict[str, Any]:
    """evaluation.json, as it is if it is of these ticks, else made anew."""
    path = folder / "evaluation.json"
    wanted = {"trained_ticks": trained_ticks, "ticks": agent.config.run.evaluation_ticks}
    if path.is_file() and wanted.items() <= read_json(path).items():
        return read_json(path)
    weights, version = read_weights(folder)
    result = evaluate(agent, weights, version, wanted["ticks"], tell, asked)
    write_json(path, {**wanted, **result})
    return {**wanted, **result}


def _check(agent: Agent) -> None:
    """Refuses what would end badly, before the run has a folder."""
    config = agent.config
    learner, (d, _) = config.learner, agent.size()
    needed = learner.burn_in + learner.train + learner.n_step + d
    for name in ("warmup_ticks", "replay_ticks"):
        if getattr(config.run, name) <= needed:
            raise ValueError(
                f"a learner's sequence has {needed} ticks (burn_in + train + n_step + delay), but "
                f"run.{name} is {getattr(config.run, name)}: raise it"
            )
    _exploration(agent)
    if config.schedule.clock == "wall":
        check_head(agent.policy(), agent.step_seconds)


def _exploration(agent: Agent) -> Exploration:
    config = agent.config
    return Exploration(agent.n_actions, config.run.seed, **asdict(config.exploration))


def _opened(agent: Agent, folder: Path) -> Replay:
    """The run's log, new or to go on with; no other process can write to it."""
    if (folder / "replay" / "count.npy").is_file():
        return Replay.open(folder / "replay", write=True)
    return Replay.create(folder / "replay", agent.dtype, agent.config.run.replay_ticks)


def _save_world(folder: Path, interaction: Interaction) -> None:
    state = {"world": interaction.env.get_state()}
    with whole_file(folder / "checkpoint" / "world.pt") as temporary:
        torch.save(state, temporary)


def _place(folder: Path, replay: Replay) -> Place:
    """Where to go on: the log tells the tick; the world is that of the last checkpoint."""
    if replay.count == 0:
        return Place()
    path = folder / "checkpoint" / "world.pt"
    world = torch.load(path, weights_only=True)["world"] if path.is_file() else None
    # Whatever was in flight is gone, so an episode begins, even where the world goes on.
    return Place(replay.count, int(replay.newest("episode")) + 1, world)
