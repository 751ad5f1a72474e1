"""What does forgetting attention cost on a CPU, beside causal attention without gates?

Compares, in float32 and at H = 4, D = 64 unless told otherwise:
  plain      scaled_dot_product_attention(is_causal=True), no gates: the yardstick
  blocked    forgetting_attention, nothing given up (no log_pruning_tolerance)
  pruned     the same with log_pruning_tolerance = -10
  reference  the definition, which materialises (T, T) scores
  bias       scaled_dot_product_attention with a materialised (T, T) bias

q and k are drawn from N(0, 1) and normalised as the QK-norm of FoX (Pro) does; v from N(0, 1).
Three draws of gates, log f = logsigmoid(head bias + N(0, 1)):
  remember   bias 9 in every head: nothing can be pruned, so this is the dense cost
  mixed      biases 0.5, 2, 4 and 8, time constants of about 2, 6, 30 and 1800 tokens: three local
             heads and one global head, the picture that trained models show
  forget     bias 2 in every head

Times are medians over repetitions that run every way in turn, and ratios are medians of ratios
within a repetition: of wall time, and of process CPU time, which other work on the machine
disturbs less. Memory is the growth of the peak resident size (Linux) over that of a warm process
that holds the inputs, each way in a process of its own.

    python benchmarks/attention_cpu.py --output benchmarks/results/attention_cpu.json
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels import computed_share, forgetting_attention

GATES = {"remember": (9.0, 9.0, 9.0, 9.0), "mixed": (0.5, 2.0, 4.0, 8.0), "forget": (2.0,) * 4}
QUADRATIC = ("reference", "bias")
WAYS = ("plain", "blocked", "pruned", *QUADRATIC)


def draw(T: int, gates: str, heads: int, head_size: int) -> list[Tensor]:
    """q, k, v (1, T, H, D) and log_f (1, T, H)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, T, heads, head_size, generator=generator) for _ in range(3))
    q, k = (F.rms_norm(x, (head_size,)) for x in (q, k))
    bias = torch.tensor(GATES[gates]).repeat(heads)[:heads]
    return [q, k, v, F.logsigmoid(torch.randn(1, T, heads, generator=generator) + bias)]


def plain(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)


def biased(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    running = log_f.cumsum(1).transpose(1, 2)
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    bias = (running[..., :, None] - running[..., None, :]).masked_fill(later, float("-inf"))
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2)


def attention(way: str) -> Callable[..., Tensor]:
    if way == "plain":
        return plain
    if way == "bias":
        return biased
    tolerance = -10.0 if way == "pruned" else None
    backend = "reference" if way == "reference" else "blocked"
    return lambda *x: forgetting_attention(*x, log_pruning_tolerance=tolerance, backend=backend)


def job(way: str, inputs: list[Tensor], backward: bool) -> Callable[[], None]:
    """One pass over the inputs, with the gradients that the way has."""
    attend = attention(way)
    leaves = [x.requires_grad_(backward) for x in inputs]
    wanted = leaves[:3] if way == "plain" else leaves

    def run() -> None:
        out = attend(*leaves)
        if backward:
            torch.autograd.grad(out, wanted, torch.ones_like(out))

    return run


def peak_mebibytes(way: str, T: int, gates: str, backward: bool, shape: tuple[int, int]) -> float:
    """Growth of the peak resident size of a fresh process by one pass."""
    arguments = [f"--memory={way},{T},{gates},{int(backward)}"]
    arguments += [f"--heads={shape[0]}", f"--head-size={shape[1]}"]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def print_memory(spec: str, shape: tuple[int, int]) -> None:
    way, T, gates, backward = spec.split(",")
    job(way, draw(64, gates, *shape), backward == "1")()
    run = job(way, draw(int(T), gates, *shape), backward == "1")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
    before = resident("VmHWM")
    run()
    print((resident("VmHWM") - before) / 1024)


def resident(field: str) -> int:
    """Kibibytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(
    T: int, gates: str, backward: bool, seconds: float, shape: tuple[int, int]
) -> list[dict[str, object]]:
    """Interleaved repetitions of every way for about `seconds`."""
    inputs = draw(T, gates, *shape)
    ways = [w for w in WAYS if T <= 2048 or w not in QUADRATIC or gates == "remember"]
    jobs = {way: job(way, [x.clone() for x in inputs], backward) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    cpu_times: dict[str, list[float]] = {way: [] for way in ways}
    for run in jobs.values():
        run()
    began = time.perf_counter()
    while len(times["plain"]) < 5 or time.perf_counter() - began < seconds:
        for way, run in jobs.items():
            if way in QUADRATIC and len(times[way]) >= (5 if T <= 2048 else 1):
                continue
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            times[way].append(time.perf_counter() - start)
            cpu_times[way].append(time.process_time() - cpu_start)
    rows: list[dict[str, object]] = []
    for way in ways:
        # The slow ways stop after few repetitions, so the yardstick may have more.
        pairs = zip(times[way], times["plain"], strict=False)
        cpu_pairs = zip(cpu_times[way], cpu_times["plain"], strict=False)
        tolerance = -10.0 if way == "pruned" else None
        q, k, _, log_f = inputs
        share = computed_share(q, k, log_f, log_pruning_tolerance=tolerance)
        rows.append({
            "T": T,
            "gates": gates,
            "pass": "forward+backward" if backward else "forward",
            "way": way,
            "milliseconds": round(1e3 * statistics.median(times[way]), 3),
            "ratio_to_plain": round(statistics.median(a / b for a, b in pairs), 3),
            "cpu_ratio_to_plain": round(statistics.median(a / b for a, b in cpu_pairs), 3),
            "peak_mebibytes": round(peak_mebibytes(way, T, gates, backward, shape), 1),
            "share_of_scores": round(share, 4) if way in ("blocked", "pruned") else 1.0,
            "repetitions": len(times[way]),
        })  # fmt: skip
    return rows


def machine() -> dict[str, object]:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", "benchmarks/attention_cpu.py", *sys.argv[1:]]),
    }


def draw_figure(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharex=True, sharey="row")
    for column, gates in enumerate(GATES):
        for line, what in enumerate(("forward", "forward+backward")):
            axis = axes[line][column]
            for way in WAYS:
                points = [
                    (r["T"], r["ratio_to_plain"])
                    for r in rows
                    if (r["gates"], r["pass"], r["way"]) == (gates, what, way)
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=way)
            axis.set(xscale="log", yscale="log", title=f"{what}, gates: {gates}")
            axis.set_xticks(sorted({r["T"] for r in rows}), sorted({r["T"] for r in rows}))
            axis.set_yticks(
                [0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"]
            )
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel("sequence length T")
    for line in (0, 1):
        axes[line][0].set_ylabel("time / plain causal attention")
    axes[0][0].legend(loc="lower left", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="per length, gates and pass")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/attention_cpu.json")
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.heads, arguments.head_size)
    torch.set_num_threads(arguments.threads)
    if arguments.memory is not None:
        print_memory(arguments.memory, shape)
        return

    rows: list[dict[str, object]] = []
    cases = [(T, g, b) for T in arguments.lengths for g in GATES for b in (False, True)]
    for done, (T, gates, backward) in enumerate(cases, 1):
        for row in measure(T, gates, backward, arguments.seconds, shape):
            rows.append(row)
            print(
                f"[{done}/{len(cases)}] T {row['T']:>5} {row['gates']:<8} {row['pass']:<16} "
                f"{row['way']:<9} {row['milliseconds']:>9} ms  wall x {row['ratio_to_plain']:<6} "
                f"cpu x {row['cpu_ratio_to_plain']:<6} "
                f"{row['peak_mebibytes']:>7} MiB  share {row['share_of_scores']}",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    shaped = {"heads": arguments.heads, "head_size": arguments.head_size, "dtype": "float32"}
    result = {"machine": machine(), "shape": shaped, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    draw_figure(rows, arguments.output.with_suffix(".png"))
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
