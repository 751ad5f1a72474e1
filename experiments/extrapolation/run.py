"""Does FoX extrapolate, does the Pro block help, does forgetting cost recall?

Four models (FoX and Transformer, LLaMA and Pro) of equal size learn from the same tokens in the
same order under one recipe, several seeds each; then all read held-out text in windows of 8 times
the training length, and the same four kinds learn to recall. A stopped run goes on by the same
command.

    python experiments/extrapolation/run.py                    two cores, less than an hour
    python experiments/extrapolation/run.py --config experiments/extrapolation/gpu.yaml --jobs 1
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from report import write_report
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from fox import FoxForCausalLM
from fox.eval.per_token_loss import per_token_loss
from fox.files import read_json, write_json
from fox.train.data import TextData

HERE = Path(__file__).parent
TIMES_LONGER = 8  # than in training
TASKS = ("recall", "mqar")
PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
ROPE = {"fgate_type": "none", "use_rope": True}
MODELS: dict[str, dict[str, Any]] = {
    "fox-pro": PRO,
    "fox-llama": {},
    "transformer-pro": PRO | ROPE,
    "transformer-llama": ROPE,
}
Settings = dict[str, Any]  # of fox-train


class Job(NamedTuple):
    """A command that goes on where it stopped; its output tells the progress as NUMBER/NUMBER."""

    name: str
    command: list[str]
    folder: Path
    result: Path  # there when the job is done


def training(name: str, seed: int, settings: Settings, config: Path, work: Path) -> Job:
    """fox-train for one model and seed."""
    folder = work / f"{name}-{seed}"
    fields = MODELS[name] | {"max_position_embeddings": settings["data"]["seq_len"]}
    size = settings["model"]["config"]
    if "use_output_gate" not in fields:
        # What the gate's matrix costs: 5 C^2 + 3 C F = 4 C^2 + 3 C (F + C / 3).
        fields["intermediate_size"] = size["intermediate_size"] + size["hidden_size"] // 3
    command = ["train", "fit", f"--config={config}", f"--seed_everything={seed}"]
    command += [f"--trainer.default_root_dir={folder}", f"--data.folder={work / 'data'}"]
    command += [f"--data.seed={seed}"]
    command += [f"--model.config.{field}={value}" for field, value in fields.items()]
    return Job(f"{name}, seed {seed}", command, folder, folder / "model" / "config.json")


def recalling(task: str, seeds: int, work: Path) -> Job:
    """fox-eval recall for all models and seeds on one task."""
    folder = work / task
    command = ["eval", "recall", f"--output={folder}", "--tasks", task, "--models", *MODELS]
    command += ["--seeds", *map(str, range(seeds))]
    return Job(f"task {task}", command, folder, folder / f"{task}.json")


def run(job: Job, threads: int, progress: Progress) -> None:
    """Runs a job in a process of its own, if it is not done yet; its output goes to log.txt."""
    task = progress.add_task(job.name, total=1.0)
    if not job.result.is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        package, *arguments = job.command
        call = f"from fox.{package}.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", call, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        with (job.folder / "log.txt").open("a", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if steps := re.search(r" (\d+)/(\d+)", line):
                    progress.update(task, completed=int(steps[1]) / int(steps[2]))
        if process.wait() or not job.result.is_file():
            raise RuntimeError(f"{job.name} failed: see {job.folder / 'log.txt'}")
    progress.update(task, completed=1.0)
    progress.console.print(f"{job.name}: done", highlight=False)


def run_all(jobs: Sequence[Job], at_once: int, threads: int) -> None:
    """Runs jobs side by side; the first that fails stops those that have not begun."""
    bars = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*bars, TimeElapsedColumn()) as progress, ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, job, threads, progress) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def evaluate(jobs: Sequence[Job], length: int, work: Path, files: list[str] | None) -> Settings:
    """Losses by position of all trained models, and what recall has found."""
    per_token_loss(
        [str(job.folder / "model") for job in jobs], str(work), length=length, files=files
    )
    losses = read_json(work / "per_token_loss.json")
    for job, found in zip(jobs, losses["models"], strict=True):
        found["model"], _, found["seed"] = job.folder.name.rpartition("-")
        found["validation"] = read_json(job.folder / "validation.json")
        network = FoxForCausalLM.from_pretrained(job.folder / "model")
        found["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    return {
        "losses": losses,
        "recall": {task: read_json(work / task / f"{task}.json") for task in TASKS},
    }


def machine() -> Settings:
    """Hardware, versions and commit: what a number needs beside it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", info)
    commit = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE / "cpu.yaml", help="of fox-train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes side by side")
    parser.add_argument("--work", type=Path, help="for everything; runs/extrapolation-CONFIG")
    parser.add_argument("--results", type=Path, help="for the report; beside this file")
    args = parser.parse_args()
    work = args.work or Path("runs") / f"extrapolation-{args.config.stem}"
    settings = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    clock = work / "seconds.json"
    started = time.perf_counter() - (read_json(clock) if clock.is_file() else 0.0)
    try:
        TextData(**settings["data"], folder=str(work / "data")).prepare_data()
        jobs = [
            training(name, seed, settings, args.config, work)
            for seed in range(args.seeds)
            for name in MODELS
        ]
        tasks = [recalling(task, args.seeds, work) for task in TASKS]
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        run_all([*jobs, *tasks], args.jobs, threads)
        length = TIMES_LONGER * settings["data"]["seq_len"]
        files = settings["data"].get("files")
        result = evaluate(jobs, length, work, [files] if isinstance(files, str) else files)
    finally:  # a run that was stopped adds up the time of its calls
        write_json(clock, time.perf_counter() - started)
    about = {"machine": machine(), "seconds": read_json(clock), "settings": settings}
    write_report(about | result, args.results or HERE / "results" / args.config.stem)


if __name__ == "__main__":
    main()
