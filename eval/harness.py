"""Tasks of lm-evaluation-harness and of LongBench, zero-shot, for any model.

Each task's result is kept as soon as it is there: a second call does only what is left. A task
whose data is not at hand gives one line, and the others go on.
"""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from fox.eval.longbench import PREFIX, TASKS, longbench, read_records
from fox.eval.models import EvalModel, load_model, tail_names
from fox.eval.progress import progress
from fox.eval.store import Store, run_key
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure
from fox.files import write_csv, write_json

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from matplotlib.axes import Axes

TOKENS_PER_BATCH = 8192
# The paper's tasks; its average is over all but wikitext.
PAPER = {
    "wikitext": "word_perplexity",
    "lambada_openai": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "copa": "acc",
    "sciq": "acc",
    "openbookqa": "acc_norm",
    "boolq": "acc",
}
SHARES = ("acc", "acc_norm", "exact_match")  # of right answers
AVERAGES = {
    "paper's average": [name for name in PAPER if name != "wikitext"],
    "LongBench's average": [PREFIX + name for name in TASKS],
}
GROUPS = {"paper": list(PAPER), "longbench": [PREFIX + name for name in TASKS]}

Run = Callable[[str, EvalModel], list[dict[str, Any]]]


def harness(
    model: list[str],
    output: str,
    *,
    tasks: list[str] = ["paper"],  # noqa: B006, jsonargparse shows it
    task_folder: str | None = None,
    data: str | None = None,
    max_length: int = 16384,
    limit: int | None = None,
) -> None:
    """Tasks of lm-eval and LongBench; data must be at hand, set HF_HUB_OFFLINE=1 without network.

    Args:
        model: one or more models: folders, .ckpt files or hub names.
        output: folder for harness.jsonl, .csv, .json and .png.
        tasks: names of lm-eval's tasks; "paper" is the eleven of the FoX paper, "longbench" the 14
            English tasks of LongBench, of which one alone is longbench_<name>.
        task_folder: lm-eval's YAML files of tasks, in the place of those that it ships.
        data: folder with LongBench's <name>.jsonl; the hub's cache if not given.
        max_length: tokens of a text at most; longer ones lose their beginning, LongBench's prompts
            their middle.
        limit: documents per task, for a quick look.

    Raises:
        ValueError: no task could run, or limit or max_length is too small.
        ModuleNotFoundError: lm_eval is not installed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, but got {limit}")
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, but got {max_length}")
    names = list(dict.fromkeys(name for task in tasks for name in GROUPS.get(task, [task])))
    files = {name: local_files(name, task_folder, data) for name in names}
    run = runner(task_folder, data, max_length, limit)
    folder, missing = Path(output), {}
    results: list[dict[str, Any]] = []
    for path, tail in zip(model, tail_names(model), strict=True):
        loaded = load_model(path)
        weights = loaded.fingerprint()
        rows: list[dict[str, Any]] = []
        for name in names:
            key = run_key(weights, name, files[name], max_length, limit)
            store = Store(folder / "harness.jsonl", key)
            if not store.rows and name not in missing:
                try:
                    store.append(run(name, loaded))
                except MissingTask as error:
                    missing[name] = str(error)
                    print_line(f"{name}: left out, {error}")
            rows += store.rows
        results.append({"name": tail, "path": path, "tasks": rows, "averages": averages(rows)})
    if not any(result["tasks"] for result in results):
        raise ValueError(f"none of the tasks could run: {', '.join(names)}")
    about = {"max_length": max_length, "limit": limit, "missing": missing}
    write_json(folder / "harness.json", {**about, "models": results})
    write_csv(
        folder / "harness.csv",
        [{"model": x["name"], **row} for x in results for row in x["tasks"]],
    )
    report(results)
    draw(results, folder / "harness.png")


class MissingTask(Exception):
    """A task that cannot run here, and why, in one line."""


def local_files(name: str, task_folder: str | None, data: str | None) -> list[tuple[str, str]]:
    """Paths and digests of the user's files that a task is made of."""
    if name in GROUPS["longbench"]:
        paths = [] if data is None else [Path(data) / f"{name.removeprefix(PREFIX)}.jsonl"]
    else:
        paths = [] if task_folder is None else sorted(Path(task_folder).rglob("*"))
    return [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
        if path.is_file() and path.suffix != ".pyc"
    ]


def runner(task_folder: str | None, data: str | None, max_length: int, limit: int | None) -> Run:
    """run(task, model) -> one row per metric: task, metric, value, standard_error, samples, main.

    Raises:
        ModuleNotFoundError: lm_eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the harness needs lm-eval: pip install 'fox-transformer[lm-eval]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager: list[TaskManager] = []  # made at need: it reads hundreds of files

    def run(name: str, model: EvalModel) -> list[dict[str, Any]]:
        if name in GROUPS["longbench"]:
            short = name.removeprefix(PREFIX)
            with missing_data():
                records = read_records(short, data)[:limit]
            row = longbench(model, short, records, max_length)
            return [{"task": name, **row, "main": True}]
        if not manager:
            manager.append(
                TaskManager(include_path=task_folder, include_defaults=task_folder is None)
            )
        with missing_data():
            loaded = manager[0].load([name])
        return run_lm_eval(loaded, model, max_length, limit)

    return run


@contextmanager
def missing_data() -> Iterator[None]:
    """What libraries raise where data or a package is not at hand, as MissingTask."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        # A KeyError spells its message in quotes.
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise MissingTask(message.split("\n")[0] or type(error).__name__) from None


def run_lm_eval(
    loaded: Any, model: EvalModel, max_length: int, limit: int | None
) -> list[dict[str, Any]]:
    """Every metric of the loaded tasks, one row each."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    found: Any = evaluate(
        lm=language_model(model, max_length),
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    rows = []
    for name, metrics in found["results"].items():
        values = {
            key.removesuffix(",none"): value
            for key, value in metrics.items()
            if isinstance(value, float | int) and "stderr" not in key and "," in key
        }
        main = PAPER.get(name, "acc" if "acc" in values else next(iter(values), None))
        samples = found["n-samples"].get(name, {}).get("effective")
        rows += [
            {
                "task": name,
                "metric": metric,
                "value": value,
                "standard_error": share_error(value, samples) if of_answers(metric) else None,
                "samples": samples,
                "main": metric == main,
            }
            for metric, value in values.items()
        ]
    return rows


def of_answers(metric: str) -> bool:
    """Whether a metric, which may name a filter behind a comma, is a share of right answers."""
    return metric.split(",")[0] in SHARES


def share_error(share: float, samples: int | None) -> float | None:
    """Standard error of a share of right answers."""
    return math.sqrt(share * (1 - share) / (samples - 1)) if samples and samples > 1 else None


def language_model(model: EvalModel, max_length: int) -> "TemplateLM":
    """The model as lm-eval wants it; its BOS token, if it has one, stands before every text."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    bos = [] if model.bos is None else [model.bos]
    start = (bos or model.eos or [0])[0]  # before texts without a context

    class Model(TemplateLM):
        """Answers lm-eval's three kinds of requests."""

        @property
        def eot_token_id(self) -> int:
            return start

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> list[int]:
            ids = model.tokenizer.encode(string, add_special_tokens=False).ids
            return ids if add_special_tokens is False else bos + ids

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            texts = [(context + end)[-max_length - 1 :] for _, context, end in requests]
            order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
            answers: dict[int, tuple[float, bool]] = {}
            with progress(f"continuations, {model.name}", len(texts)) as advance:
                while order:
                    size = max(1, TOKENS_PER_BATCH // len(texts[order[0]]))
                    batch, order = order[:size], order[size:]
                    ends = [min(len(requests[n][2]), len(texts[n]) - 1) for n in batch]
                    scores = model.continuation_log_probs([texts[n] for n in batch], ends)
                    for number, score in zip(batch, scores, strict=True):
                        answers[number] = score
                        advance("")
            return [answers[number] for number in range(len(texts))]

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            totals = []
            with progress(f"texts, {model.name}", len(requests)) as advance:
                for request in requests:
                    ids = self.tok_encode(request.args[0], add_special_tokens=False)
                    windows = get_rolling_token_windows(ids, start, max_length, 1)
                    total = 0.0
                    for context, ends in map(make_disjoint_window, windows):
                        losses = model.next_token_losses(torch.tensor([context + ends]))
                        total -= losses[0, -len(ends) :].sum().item()
                    totals.append(total)
                    advance("")
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            answers = []
            with progress(f"answers, {model.name}", len(requests)) as advance:
                for context, options in (request.args for request in requests):
                    until = options.get("until") or []
                    until = [until] if isinstance(until, str) else until
                    new_tokens = options.get("max_gen_toks", 256)
                    if (room := max_length - new_tokens) < 1:
                        raise ValueError(
                            f"max_length must leave room for a prompt beside {new_tokens} new "
                            f"tokens, but got {max_length}"
                        )
                    ids = self.tok_encode(context)[-room:] or [start]
                    new = model.generate(ids, new_tokens, until)
                    ends = "|".join(map(re.escape, until)) or r"\Z"
                    answers.append(re.split(ends, model.tokenizer.decode(new), maxsplit=1)[0])
                    advance("")
            return answers

    return Model()


def averages(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each average of main metrics all of whose tasks are there."""
    main = {row["task"]: row["value"] for row in rows if row["main"]}
    return {
        name: fmean(main[task] for task in tasks)
        for name, tasks in AVERAGES.items()
        if set(tasks) <= main.keys()
    }


def report(results: list[dict[str, Any]]) -> None:
    """A table of the main metrics, tasks down and models across, averages last."""
    table = Table("task", "metric", *(result["name"] for result in results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        for row in result["tasks"]:
            if row["main"]:
                shown = f"{row['value']:.1%}" if is_share(row) else f"{row['value']:.2f}"
                cells.setdefault((row["task"], row["metric"]), {})[result["name"]] = shown
        for name, value in result["averages"].items():
            cells.setdefault((name, ""), {})[result["name"]] = f"{value:.1%}"
    for (task, metric), values in cells.items():
        table.add_row(task, metric, *(values.get(result["name"], "") for result in results))
    Console(highlight=False, markup=False).print(table)


def is_share(row: dict[str, Any]) -> bool:
    """Whether a metric is a score in [0, 1], not a perplexity."""
    return of_answers(row["metric"]) or row["task"] in GROUPS["longbench"]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of the main metrics: scores with standard errors, and perplexities in a panel beside."""
    main = [
        {**row, "model": number}
        for number, result in enumerate(results)
        for row in result["tasks"]
        if row["main"]
    ]
    panels = [[row for row in main if is_share(row)], [row for row in main if not is_share(row)]]
    panels = [panel for panel in panels if panel]
    tasks = max(len({row["task"] for row in panel}) for panel in panels)
    figure = new_figure(6.4 * len(panels), 1.6 + tasks * (0.2 + 0.18 * len(results)))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        bars(axes, panel, [result["name"] for result in results])
        scores = is_share(panel[0])
        title = "Zero-shot scores" if scores else "Other metrics"
        plain_axes(axes, title, "score (bar: standard error)" if scores else "value", "")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def bars(axes: "Axes", rows: list[dict[str, Any]], models: list[str]) -> None:
    """Horizontal bars, grouped by task, one colour per model, each with its value."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    height = 0.8 / len(models)
    for number, name in enumerate(models):
        own = [row for row in rows if row["model"] == number]
        places = [tasks.index(row["task"]) + (number + 0.5) * height - 0.4 for row in own]
        values = [row["value"] for row in own]
        errors = [row["standard_error"] or 0.0 for row in own]
        colour = PALETTE[number % len(PALETTE)]
        axes.barh(places, values, height, xerr=errors, color=colour, ecolor=FAINT, label=name)
        for place, row, error in zip(places, own, errors, strict=True):
            shown = f" {row['value']:.1%}" if is_share(row) else f" {row['value']:,.2f}"
            axes.text(row["value"] + error, place, shown, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.margins(x=0.12)


def print_line(line: str) -> None:
    Console(soft_wrap=True, highlight=False, markup=False).print(line)
