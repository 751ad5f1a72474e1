"""The command `fox-realtime play`: a trained agent plays, and everything of it can be seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fox.agents.realtime.agent import Agent
from fox.agents.realtime.config import Interactions, RunConfig
from fox.agents.realtime.loop import Interaction, Step
from fox.agents.realtime.run import evaluate, read_run
from fox.agents.realtime.ticks import Source
from fox.agents.realtime.timeline import WORDS, Film, Recorder, draw_timeline, write_chrome_trace
from fox.files import write_json

SHOWN = 60  # ticks of the timeline, or three delays


def play(
    run: str,
    *,
    ticks: int = 1200,
    interaction: Interactions | None = None,
    workers: int | None = None,
    delay_ticks: int | None = None,
    clock: Literal["wall", "virtual"] | None = None,
    inference_seconds: float | None = None,
    seed: int | None = None,
    output: str | None = None,
) -> None:
    """Play with the last weights of a run, and show what the world and the scheduler did.

    Prints the return and the scheduler's counters, and writes play.json, play.gif, timeline.png and
    trace.json (for ui.perfetto.dev). Nothing is learnt, and nothing is left to chance by
    exploration. What is not given is as in the run.

    Args:
        run: folder of the run.
        ticks: to play.
        interaction: staggered or sequential.
        workers: how many inferences may go on at once.
        delay_ticks: from an observation to its action.
        clock: wall, or virtual: as fast as this machine can; needs inference_seconds.
        inference_seconds: that an inference lasts, at least.
        seed: of the episodes.
        output: folder for the files; RUN/play if not given.

    Raises:
        ValueError: there is no run, or what is asked for does not fit together.
    """
    if ticks < 1:
        raise ValueError(f"expected at least 1 tick to play, but got {ticks}")
    config, weights, version = read_run(Path(run))
    given = {
        "interaction": interaction,
        "workers": workers,
        "delay_ticks": delay_ticks,
        "clock": clock,
        "inference_seconds": inference_seconds,
    }
    agent = Agent(changed(config, given, seed))
    film = Film(agent.step_seconds)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("play", total=ticks)
        watcher = Watcher(film, lambda: bar.advance(task))
        result = evaluate(agent, weights, version, ticks, watch=watcher)
    folder = Path(run) / "play" if output is None else Path(output)
    schedule = agent.config.schedule
    about = {"run": run, "interaction": schedule.interaction, "clock": schedule.clock}
    write_json(folder / "play.json", {**about, **result})
    report(schedule.interaction, result)
    write_chrome_trace(folder / "trace.json", watcher.recorder, agent.step_seconds)
    delay = watcher.recorder.steps[-1].delay
    last = ticks - 1 - min(ticks // 2, delay)  # what is sent later has no fate yet
    first = last - max(SHOWN, 3 * delay)
    draw_timeline(folder / "timeline.png", watcher.recorder, agent.step_seconds, first, last)
    film.save(folder / "play.gif")
    print(f"all in {folder}")


def changed(config: RunConfig, given: dict[str, Any], seed: int | None) -> RunConfig:
    """The run's configuration with what is given (not None) in its place."""
    schedule = {name: value for name, value in given.items() if value is not None}
    other = schedule.get("interaction", config.schedule.interaction) != config.schedule.interaction
    if other and "workers" not in schedule:
        schedule["workers"] = None  # as many as the other interaction needs
    run = config.run if seed is None else replace(config.run, seed=seed)
    return replace(config, schedule=replace(config.schedule, **schedule), run=run)


class Watcher:
    """Records a play as `run.evaluate` asks for it.

    Args:
        film: takes every tick.
        advance: called after every tick.

    Attributes:
        recorder: of the play that was watched.
    """

    def __init__(self, film: Film, advance: Callable[[], None]) -> None:
        self.film, self.advance = film, advance

    def __call__(self, interaction: Interaction) -> Callable[[Step], None]:
        """What is called after every tick."""
        recorder = interaction.transport = self.recorder = Recorder(interaction.transport)

        def look(step: Step) -> None:
            recorder.add_tick(step, interaction.clock.time_of(step.tick))
            self.film.add(step, interaction.env.render84)
            self.advance()

        return look


def report(interaction: str, result: dict[str, Any]) -> None:
    """Two tables on the console: what the play was worth, and what the scheduler counted."""
    console, counters = Console(), result["counters"]
    play = Table("play", "", title=f"{interaction}, workers: {result['workers']}")
    play.add_row("ticks", f"{result['ticks']:,}")
    for name, key, form in (
        ("return per second", "return", "+.3f"),
        ("rewards above 0", "gains", ",d"),
        ("rewards below 0", "losses", ",d"),
        ("episodes that ended", "episodes", ",d"),
        ("coverage", "coverage", ".1%"),
        ("delay, ticks", "delay_ticks", ".2f"),
        ("frames per second", "fps", ".1f"),
        ("overruns of the clock", "overruns", ",d"),
    ):
        play.add_row(name, "none" if result[key] is None else format(result[key], form))
    scheduler = Table("scheduler (counts above 0)", "")
    for source, count in zip(Source, counters["sources"].values(), strict=True):
        if count:
            scheduler.add_row(f"ticks, {WORDS[source]}", f"{count:,}")
    for name, count in counters.items():
        if name not in ("sources", "ticks") and count:
            scheduler.add_row(f"jobs, {name.replace('_', ' ')}", f"{count:,}")
    console.print(play)
    console.print(scheduler)
