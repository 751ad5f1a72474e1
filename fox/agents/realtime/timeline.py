"""What happened when: inferences of each worker and the source of each tick, as pictures.

A Chrome trace (chrome://tracing, ui.perfetto.dev), a PNG, and a film of the world as a GIF.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fox.agents.realtime.loop import Step
from fox.agents.realtime.ticks import Done, Event, Job, Joined, Source, Transport
from fox.figures import FOX, INK, TRANSFORMER, new_figure, plain_axes, save_figure
from fox.files import whole_file, write_text

WORDS = {
    Source.POLICY: "policy",
    Source.BETA_LATE: "beta: too late",
    Source.BETA_UNDISPATCHED: "beta: no idle worker",
    Source.BETA_LOST: "beta: worker lost",
    Source.BETA_RESET: "beta: episode begins",
    Source.BETA_HOLE: "beta: delay grew",
}
COLOURS = {
    Source.POLICY: FOX,
    Source.BETA_LATE: "#8e5ba6",
    Source.BETA_UNDISPATCHED: "#b6bdc5",
    Source.BETA_LOST: INK,
    Source.BETA_RESET: "#dfe3e8",
    Source.BETA_HOLE: "#b08900",
}
FATES = {
    "executed": TRANSFORMER,
    "dropped": "#8e5ba6",
    "lost": INK,
    "waiting": "#9db7cc",
    "running": "#dfe3e8",
}
TOLD = ("tick", "action", "reward", "delay", "obs_tick", "version", "episode")  # of a tick


@dataclass(frozen=True, slots=True)
class Inference:
    """One job on its worker.

    Attributes:
        job: which.
        start, end: seconds on the run's clock.
        fate: a key of FATES.
        tick: that executed its action, if one did.
    """

    job: Job
    start: float
    end: float
    fate: str
    tick: int | None = None


class Recorder:
    """A transport that remembers what passes through another one, and the ticks that it serves.

    Args:
        transport: the other one.

    Attributes:
        steps, times: of every tick so far, with the seconds on the run's clock.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport, self.counters = transport, transport.counters
        self.steps: list[Step] = []
        self.times: list[float] = []
        self._held: dict[int, tuple[Job, float]] = {}  # by worker, with the time of sending
        self._ended: list[tuple[Job, float, float, bool]] = []  # start, end, whether lost

    def add_tick(self, step: Step, now: float) -> None:
        """Takes what Interaction.tick() returned."""
        self.steps.append(step)
        self.times.append(now)

    def start(self, workers: "range | list[int]") -> None:
        """As the other one."""
        self.transport.start(workers)

    def send(self, job: Job, now: float) -> None:
        """As the other one."""
        self._held[job.worker] = (job, now)
        self.transport.send(job, now)

    def poll(self, now: float) -> list[Event]:
        """As the other one."""
        events = self.transport.poll(now)
        for event in events:
            if isinstance(event, Joined) or event.worker not in self._held:
                continue
            job, sent = self._held.pop(event.worker)
            if isinstance(event, Done):
                self._ended.append((job, event.start, event.at, False))
            else:
                self._ended.append((job, sent, event.at, True))
        return events

    def kill(self, worker: int) -> None:
        """As the other one."""
        self.transport.kill(worker)

    def close(self) -> None:
        """As the other one."""
        self.transport.close()

    def inferences(self) -> list[Inference]:
        """All jobs so far, in the order in which they were sent."""
        executed = {step.obs_tick: step.tick for step in self.steps}
        last = self.steps[-1].tick
        running = [
            Inference(job, sent, self.times[-1], "running") for job, sent in self._held.values()
        ]
        ended = [
            Inference(job, start, end, "executed", executed[job.obs_tick])
            if job.obs_tick in executed
            else Inference(job, start, end, _fate(job, lost, last))
            for job, start, end, lost in self._ended
        ]
        return sorted(ended + running, key=lambda inference: inference.job.id)


def _fate(job: Job, lost: bool, last: int) -> str:
    """Of a job that no tick has executed up to the last one."""
    if lost:
        return "lost"
    return "waiting" if job.due > last else "dropped"


def write_chrome_trace(path: Path, recorder: Recorder, step_seconds: float) -> None:
    """Trace Event JSON: a row of ticks by source, and one of inferences for each worker.

    Arrows lead from the end of an inference to the tick that executed it; a dropped or lost job is
    marked at its end. Times are microseconds since the first tick.
    """
    zero, at_tick = recorder.times[0], {}
    events = [_thread("ticks", 0)]
    for step, t in zip(recorder.steps, recorder.times, strict=True):
        at_tick[step.tick] = ts = _microseconds(t - zero)
        about = {name: getattr(step, name) for name in TOLD}
        bar = _event("X", WORDS[step.source], "tick", 0, ts, about)
        events.append(bar | {"dur": _microseconds(step_seconds)})
    inferences = recorder.inferences()
    workers = sorted({inference.job.worker for inference in inferences})
    events += [_thread(f"worker {worker}", worker + 1) for worker in workers]
    for inference in inferences:
        job, row, fate = inference.job, inference.job.worker + 1, inference.fate
        start, end = _microseconds(inference.start - zero), _microseconds(inference.end - zero)
        about = asdict(job) | {"fate": fate}
        bar = _event("X", f"observation {job.obs_tick}", "inference", row, start, about)
        events.append(bar | {"dur": round(end - start, 3)})
        if fate in ("dropped", "lost"):
            events.append(_event("i", fate, "drop", row, end, about) | {"s": "t"})
        if inference.tick is not None:
            tail = _event("s", "action", "action", row, end, about)
            point = _event("f", "action", "action", 0, at_tick[inference.tick], about)
            # bp: the arrow ends in the bar around its point, not in the next one
            events += [tail | {"id": job.id}, point | {"id": job.id, "bp": "e"}]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"))
    write_text(path, text + "\n")


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _event(
    kind: str, name: str, category: str, row: int, ts: float, about: dict[str, Any]
) -> dict[str, Any]:
    """An event of the format; kinds: X bar, i instant, s and f the ends of an arrow."""
    place = {"ph": kind, "name": name, "cat": category, "pid": 1, "tid": row}
    return {**place, "ts": ts, "args": about}


def _thread(name: str, row: int) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "args": {"name": name}, "pid": 1, "tid": row}


def draw_timeline(
    path: Path, recorder: Recorder, step_seconds: float, first: int, last: int
) -> None:
    """The ticks first..last: bars of the workers' inferences above the sources of the ticks.

    A thin line leads from the end of an inference to the tick that executes its action.
    """
    seen = [
        (step, 1000 * t)
        for step, t in zip(recorder.steps, recorder.times, strict=True)
        if first <= step.tick <= last
    ]
    steps, times = [step for step, _ in seen], [t - seen[0][1] for _, t in seen]
    width = 1000 * step_seconds
    bars = [
        (inference, 1000 * inference.start - seen[0][1], 1000 * inference.end - seen[0][1])
        for inference in recorder.inferences()
    ]
    bars = [bar for bar in bars if bar[1] < times[-1] + width and bar[2] > 0]
    workers = sorted({inference.job.worker for inference, _, _ in bars})
    figure = new_figure(10.5, 2.3 + min(0.24 * len(workers), 8.0))
    axes = figure.subplots()
    delays = sorted({step.delay for step in steps})
    title = f"Workers: {len(workers)}, delay: {' to '.join(map(str, delays))} ticks"
    plain_axes(axes, title, f"ms since tick {steps[0].tick}", "")
    axes.grid(visible=False, axis="y")
    for inference, start, end in bars:
        y, colour = inference.job.worker + 1, FATES[inference.fate]
        axes.barh(y, end - start, 0.64, start, color=colour, edgecolor="white", linewidth=0.4)
        if inference.tick is not None:
            until = (inference.tick - steps[0].tick) * width
            axes.plot([end, until], [y, y], color=colour, linewidth=0.8)
    sources = [COLOURS[step.source] for step in steps]
    axes.barh([-0.4] * len(steps), width, 0.8, times, align="edge", color=sources)
    axes.set_xlim(0, times[-1] + width)
    every = -(-len(workers) // 20) or 1
    axes.set_yticks([0, *(w + 1 for w in workers[::every])])
    axes.set_yticklabels(["ticks", *(f"worker {w}" for w in workers[::every])])
    axes.set_ylim(max(workers, default=0) + 1.6, -0.6)
    colours = {f"inference, {fate}": colour for fate, colour in FATES.items()}
    here = {f"inference, {inference.fate}" for inference, _, _ in bars}
    colours = {name: colour for name, colour in colours.items() if name in here}
    colours |= {
        f"tick, {WORDS[source]}": COLOURS[source] for source in {step.source for step in steps}
    }
    for name, colour in colours.items():
        axes.barh(0, 0, color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    save_figure(figure, path)


class Film:
    """Frames of the world with tick, return, delay and source below, as a GIF.

    Args:
        step_seconds: of a tick; frames are taken so that there are at most 20 in a second.
    """

    SIDE, STRIP, TEXT = 336, 84, 42  # pixels of the world, ticks in the strip of sources, pixels

    def __init__(self, step_seconds: float) -> None:
        self.every = max(1, round(0.05 / step_seconds))
        self._centiseconds = max(2, round(100 * self.every * step_seconds))
        self._steps: list[Step] = []
        self._worlds: list[np.ndarray] = []

    def add(self, step: Step, show: Callable[[], np.ndarray]) -> None:
        """Takes a tick, and what `show` (env.render84) shows after it; costs next to nothing."""
        if len(self._steps) % self.every == 0:
            self._worlds.append(show())
        self._steps.append(step)

    def save(self, path: Path) -> None:
        """Draws the frames and writes the GIF.

        Raises:
            ModuleNotFoundError: pillow is not installed.
        """
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "films need pillow: pip install 'fox-transformer[plots]'"
            ) from error
        font, frames = ImageFont.load_default(15), []
        returns = np.cumsum([step.reward for step in self._steps])
        for number, world in enumerate(self._worlds):
            now = number * self.every
            frame = Image.new("RGB", (self.SIDE, self.SIDE + self.TEXT), "white")
            large = Image.fromarray(world).resize((self.SIDE, self.SIDE), Image.Resampling.NEAREST)
            frame.paste(large.convert("RGB"), (0, 0))
            pen = ImageDraw.Draw(frame)
            for place, step in enumerate(self._steps[max(0, now + 1 - self.STRIP) : now + 1]):
                left, top = 4 * place, self.SIDE
                pen.rectangle((left, top, left + 3, top + 7), fill=COLOURS[step.source])
            words = f"tick {step.tick}   return {returns[now]:g}   delay {step.delay}   "
            pen.text((6, self.SIDE + 16), words + WORDS[step.source], fill=INK, font=font)
            frames.append(frame.quantize(32, dither=Image.Dither.NONE))
        with whole_file(path) as temporary:
            frames[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=frames[1:],
                duration=10 * self._centiseconds,
                loop=0,
            )
