"""How fast is forgetting attention on a GPU, beside attention without gates and other kernels?

In one process and in turn, causal, bf16, model width 2048 (H = 32 at D = 64, 16 at D = 128), 32k
tokens in a batch or one longer sequence:
  sdpa-flash     scaled_dot_product_attention forced to FlashAttention-2, no gates: the yardstick
  sdpa-cudnn     the same, forced to cuDNN
  ours           forgetting_attention, nothing given up
  ours-tolerant  log_pruning_tolerance = -10 where nothing can be pruned: what the search costs
  ours-pruned    the same tolerance on mixed gates, logits bounded by the norms of q and k
  ours-bounded   the same with the logit_bound that QK-norm allows
  fla            parallel_forgetting_attn of flash-linear-attention, its Triton kernels
  flex           FlexAttention, compiled, the running gate in its score_mod. The gate's gradient
                 then is one atomic addition per score. A zero-valued extra key column would carry
                 it without, but pads D to the next power of two, and is not shown.

q and k are N(0, 1), normalised as the QK-norm of FoX (Pro) does; v is N(0, 1). Two draws of gates:
  remember  log f = 0 in every head: nothing can be pruned. All but the pruned ways run on it
  mixed     7 of 8 heads are local, with time constants spaced evenly in log from 2 to 320 tokens;
            each eighth is global, 10k to 100k tokens; the logit of every gate has N(0, 1) added.
            Chosen to leave about 30 % of the work at 16k, as in trained models, where many heads
            forget quickly and about 70 % of the FLOPs are pruned (Lin et al., Adaptive Computation
            Pruning for the Forgetting Transformer, 2025). Each number has its share beside it.

First every way is compared with the definition in float64, the output and each gradient; what is
wrong of ours is not timed and makes the exit status 1. A way that cannot run is listed with the
reason. Times are medians of CUDA events over rounds that run every way in turn, L2 flushed before
each, gate sums and gate gradients inside, compilation outside; ratios are medians of ratios within
a round, below 1 where a way is the faster one. TFLOP/s count the 2 B H T^2 D of a dense causal
forward pass and 2.5 times that for the backward pass, and are called effective where less was
computed. Memory is the growth of the peak by one pass. Decoding reads a full cache for one new
token (ours-append writes it, too), launched from Python and replayed as a CUDA graph; its bytes are
those of live keys, values and running gates.

    python benchmarks/attention_gpu.py --output benchmarks/results/attention_gpu.json

Results are written after each case, the most telling cases first. When --seconds are over it
stops and says what is missing; the same call again goes on with the rest.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["FLA_TILELANG"] = "0"  # fla's Triton kernels also where tilelang is installed

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.files import read_json, whole_file, write_json
from fox.kernels import computed_share, forgetting_attention, forgetting_attention_with_kvcache

OURS = ("ours", "ours-tolerant", "ours-pruned", "ours-bounded")
WAYS = ("sdpa-flash", "sdpa-cudnn", *OURS, "fla", "flex")
DECODE_WAYS = ("sdpa-flash", "sdpa-cudnn", "ours", "ours-append", "ours-bounded")
YARDSTICKS = ("sdpa-flash", "fla", "ours")
PASSES = ("forward+backward", "forward")
TOLERANCE = -10.0
# Relative Frobenius norm of what 16-bit inputs may cost; a wrong term costs far more.
LARGEST_ERROR = {"out": 1.2e-2, "dq": 1.2e-2, "dk": 1.2e-2, "dv": 1.2e-2, "dlog_f": 3e-2}
WRONG = "wrong in the check"

Row = dict[str, Any]
Run = Callable[[], Any]


class Case(NamedTuple):
    """What is measured together, or checked together; what: "decode" or one of PASSES."""

    what: str
    D: int
    T: int
    B: int
    H: int
    H_kv: int
    check: bool = False

    @property
    def name(self) -> str:
        kind = f"check of {self.what}" if self.check else self.what
        return f"{kind} D={self.D} T={self.T} B={self.B} H_kv={self.H_kv}"


class Scale(NamedTuple):
    """How large it all is."""

    device: str
    dtype: torch.dtype
    rounds: int
    flushed: int  # bytes
    checked: int  # tokens
    head_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    width: int
    tokens: int
    decoded: tuple[int, int, int]  # D, T, H
    batches: tuple[int, ...]
    groups: tuple[int, ...]  # H_kv


FULL = Scale(
    "cuda", torch.bfloat16, 30, 2**28, 2048, (128, 64), (16384, 65536, 8192, 32768, 2048),
    2048, 32768, (128, 32768, 32), (1, 8, 32), (8, 32),
)  # fmt: skip
# Triton's interpreter cannot multiply bf16, and takes 20 ms for a tile.
REHEARSAL = Scale(
    "cpu", torch.float16, 1, 1, 64, (16,), (64,), 32, 64, (16, 64, 2), (2,), (1,)
)  # fmt: skip


def cases(scale: Scale) -> list[Case]:
    """Every check, at a length that float64 can hold, then the most telling times first."""
    D, T, H = scale.decoded
    decode = [[Case("decode", D, T, B, H, H_kv) for B in scale.batches] for H_kv in scale.groups]
    times = []
    for T in scale.lengths:
        for D in scale.head_sizes:
            B, H = max(1, scale.tokens // T), scale.width // D
            times += [Case(what, D, T, B, H, H) for what in PASSES]
        times += decode[0] if scale.lengths[0] == T else []
    times += [case for group in decode[1:] for case in group]
    # Heads as in the times: the compilers then meet no other kernels.
    checks = [case for case in times if case.what in PASSES and scale.lengths[0] == case.T]
    checks += [group[0] for group in decode]
    return [case._replace(B=1, T=scale.checked, check=True) for case in checks] + times


def draw(case: Case, scale: Scale) -> list[Tensor]:
    """q and the gradient of the output, (B, T, H, D) or one row to decode; k, v (B, T, H_kv, D)."""
    generator = torch.Generator(scale.device).manual_seed(0)

    def normal(length: int, heads: int) -> Tensor:
        shape = (case.B, length, heads, case.D)
        return torch.randn(shape, generator=generator, device=scale.device, dtype=scale.dtype)

    rows = 1 if case.what == "decode" else case.T
    q, d_out, k, v = (normal(*x) for x in [(rows, case.H)] * 2 + [(case.T, case.H_kv)] * 2)
    for x in (*q, *k):  # one sequence after the other, as a whole cache takes much memory
        x.copy_(F.rms_norm(x, (case.D,)))
    return [q, d_out, k, v]


def draw_gates(gates: str, case: Case, scale: Scale) -> Tensor:
    """log_f (B, T, H), as the head of this file says."""
    B, T, H, device = case.B, case.T, case.H, scale.device
    if gates != "mixed":
        return torch.zeros(B, T, H, device=device)
    constants = torch.empty(H)
    for heads, low, high in ((slice(0, None, 8), 1e4, 1e5), (torch.arange(H) % 8 > 0, 2.0, 320.0)):
        n = constants[heads].numel()
        constants[heads] = low * (high / low) ** ((torch.arange(n) + 0.5) / n)
    generator = torch.Generator(device).manual_seed(1)
    noise = torch.randn(B, T, H, generator=generator, device=device)
    # The mean of exp(-noise) is exp(1/2): so the mean of -log f stays 1 / constant.
    return F.logsigmoid(constants.log().to(device) + 0.5 + noise)


def meant(case: Case, ways: list[str]) -> list[tuple[str, str]]:
    """The ways of a case, each with its gates; a check shows every kernel both draws."""
    found = []
    for way in DECODE_WAYS if case.what == "decode" else WAYS:
        if way.removesuffix("-append") in ways:
            pruned = way in ("ours-pruned", "ours-bounded")
            gates = "none" if way.startswith("sdpa") else "mixed" if pruned else "remember"
            found.append((way, gates))
            if case.check and way in ("ours", "ours-append", "fla", "flex"):
                found.append((way, "mixed"))
    return found


def pruning(way: str, D: int) -> dict[str, float]:
    """What a way of ours gives up."""
    options = {}
    if way in ("ours-tolerant", "ours-pruned", "ours-bounded"):
        options["log_pruning_tolerance"] = TOLERANCE
    if way == "ours-bounded":
        # A normalised row is at most sqrt(D) long, before it is rounded to 16 bits.
        options["logit_bound"] = math.sqrt(D) * (1 + 2.0**-7)
    return options


def sdpa(way: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    flash = way == "sdpa-flash"
    backend = SDPBackend.FLASH_ATTENTION if flash else SDPBackend.CUDNN_ATTENTION
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(backend) if q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def flex(T: int, device: torch.device) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, running: Tensor, mask: Any) -> Tensor:
        def forget(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score - running[b, h, j]  # the row's own term cancels in the softmax

        return flex_attention(q, k, v, score_mod=forget, block_mask=mask)

    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=str(device))
    if device.type == "cuda":
        torch.compiler.reset()  # after 8 shapes the compiler would give up and build all scores
        attend = torch.compile(attend, dynamic=False)

    def whole(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
        running = log_f.cumsum(1).transpose(1, 2).contiguous()
        return attend(*(x.transpose(1, 2) for x in (q, k, v)), running, mask).transpose(1, 2)

    return whole


def attention(way: str, case: Case, inputs: list[Tensor], log_f: Tensor) -> tuple[Run, Row]:
    """One pass, to the output and the gradients of q, k, v and gates; the share it computes."""
    q, d_out, k, v = inputs
    backward, options = case.what != "forward", pruning(way, case.D)
    leaves = [x.detach().requires_grad_(backward) for x in (q, k, v, log_f)]
    attend: Callable[..., Tensor]
    if way.startswith("sdpa"):
        leaves.pop()
        attend = partial(sdpa, way, causal=True)
    elif way == "fla":
        from fla.ops.forgetting_attn import parallel_forgetting_attn as attend
    elif way == "flex":
        attend = flex(case.T, q.device)
    else:
        attend = partial(forgetting_attention, **options, backend="flash")

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            out = attend(*leaves)
        return [out, *torch.autograd.grad(out, leaves, d_out)] if backward else [out]

    ours = way.startswith("ours")
    share = computed_share(q, k, log_f, **options, backend="flash") if ours else 1.0
    return run, {"share": rounded(share)}


def decode_step(way: str, case: Case, inputs: list[Tensor], log_f: Tensor) -> tuple[Run, Row]:
    """One new token for every sequence; the share of the slots that it reads, and their bytes."""
    q, _, k, v = inputs
    running = log_f.double().cumsum(1)
    options = pruning(way, case.D)
    # As the kernel prunes: a single row makes no use of the score of its own key.
    lost = TOLERANCE - math.log(case.T) - 2 * options.get("logit_bound", math.inf)
    live = (running[:, -1:] - running >= lost).unflatten(-1, (case.H_kv, -1)).any(-1)
    slot_bytes = 2 * case.D * k.element_size()
    if way.startswith("sdpa"):
        step = partial(sdpa, way, q, k, v, causal=False)
    else:
        slot_bytes += 8 * case.H // case.H_kv
        last = [x[:, -1:].clone() for x in (k, v, log_f)] if way == "ours-append" else [None] * 3
        filled = torch.full((case.B,), case.T - (last[0] is not None), device=q.device)
        step = partial(
            forgetting_attention_with_kvcache, q, k, v, running, *last, filled.int(),
            **options, backend="flash",
        )  # fmt: skip
    share = rounded(float(live.double().mean()))
    return lambda: [step()], {"share": share, "bytes": int(live.sum()) * slot_bytes}


def prepare(way: str, case: Case, inputs: list[Tensor], log_f: Tensor) -> tuple[Run, Row]:
    step = decode_step if case.what == "decode" else attention
    return step(way, case, inputs, log_f)


def captured(run: Run) -> Run:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def attempt(way: str, function: Run) -> tuple[Any, str]:
    """The result, or why there is none."""
    try:
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a kernel's fault shows up late
        return result, ""
    except Exception as error:  # peers fail in every way, and that they do is a result
        reason = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:300]
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise SystemExit(
                f"{way} broke the GPU's context ({reason}). What was measured before is on disk; "
                f"go on with --without {way}."
            ) from error
        torch.cuda.empty_cache()
    return None, reason


def definition(case: Case, inputs: list[Tensor], log_f: Tensor) -> list[Tensor]:
    """What a way should return, in float64 and from the same rounded numbers."""
    q, d_out, k, v = (x.double() for x in inputs)
    exact = [x.requires_grad_(case.what == PASSES[0]) for x in (q, k, v, log_f.double())]
    out = forgetting_attention(*exact, backend="reference")
    return [out.detach(), *torch.autograd.grad(out, exact, d_out)] if out.requires_grad else [out]


def errors(got: list[Tensor], want: list[Tensor]) -> Row:
    """How far a way is from its definition, and whether that is near enough; NaN is not."""
    found = {
        name: float((x.detach().double() - exact).norm() / exact.norm())
        for name, x, exact in zip(LARGEST_ERROR, got, want, strict=False)
    }
    right = all(error <= LARGEST_ERROR[name] for name, error in found.items())
    shown = {n: float(f"{e:.3g}") if math.isfinite(e) else None for n, e in found.items()}
    return {"right": right, "errors": shown}


def poison(scale: Scale) -> None:
    """Leave NaN in freed memory of every size: what a kernel forgets to write then shows."""
    sizes = [2**n for n in range(4, scale.flushed.bit_length() - 2)]
    _ = [torch.full((n,), math.nan, device=scale.device) for n in 4 * sizes]


def unfit(results: Row, case: Case) -> dict[str, str]:
    """The ways that the check of this pass found failing, or ours that it found wrong, and why."""

    def kind(x: Row) -> tuple[object, ...]:
        return x["what"], x["D"], x["H"] // x["H_kv"]

    found = results["cases"].values()
    checks = [x for x in found if x["check"] and kind(x) == kind(case._asdict())]
    rows = [row for x in checks for row in x["rows"]]
    wrong = {r["way"]: WRONG for r in rows if r["way"].startswith("ours") and not r.get("right")}
    return wrong | {row["way"]: row["failed"] for row in rows if "failed" in row}


def timed(runs: dict[str, Run], scale: Scale, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each run, in turn; a run that had its share of the seconds drops out."""
    times: dict[str, list[float]] = {way: [] for way in runs}
    flush = torch.empty(scale.flushed, dtype=torch.int8, device=scale.device)

    def begin(run: Run) -> Callable[[], float]:
        if scale.device == "cpu":
            began = time.perf_counter()
            run()
            wall = 1e3 * (time.perf_counter() - began)
            return lambda: wall
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        run()
        end.record()
        return lambda: float(end.synchronize() or start.elapsed_time(end))

    due = list(runs)
    for turn in range(scale.rounds):
        ahead = turn % max(1, len(due))  # each run follows each other one at times
        # Launched together and read later: Python's time hides behind the GPU's for all alike.
        for way, read in [(way, begin(runs[way])) for way in due[ahead:] + due[:ahead]]:
            times[way].append(read())
        due = [w for w in due if sum(times[w]) + times[w][-1] <= 1e3 * seconds / len(runs)]
    return times


def rounded(x: float) -> float:
    return float(f"{x:.4g}")


def figures(way: str, times: dict[str, list[float]], suffix: str) -> Row:
    """Median, quartiles, and ratios to others within the same rounds."""
    own = times[way + suffix]
    quartiles = torch.tensor(own).quantile(torch.tensor([0.25, 0.75])).tolist()
    over = {
        other: rounded(statistics.median(a / b for a, b in zip(own, theirs, strict=False)))
        for other in YARDSTICKS
        if (theirs := times.get(other + suffix))
    }
    return {
        "milliseconds": rounded(statistics.median(own)),
        "quartiles": [rounded(x) for x in quartiles],
        "runs": len(own),
        "time_over": over,
    }


def measure(
    case: Case, scale: Scale, ways: list[str], failed: dict[str, str], bandwidth: float,
    seconds: float,
) -> list[Row]:  # fmt: skip
    """Check or time every way that did not fail before."""
    inputs = draw(case, scale)
    rows: list[Row] = []
    runs: dict[str, Run] = {}
    for way, gates in meant(case, ways):
        row: Row = {"way": way, "gates": gates}
        rows.append(row)
        if way in failed:
            row["failed"] = failed[way]
            continue
        log_f = draw_gates(gates, case, scale)
        poison(scale)
        made, reason = attempt(way, partial(prepare, way, case, inputs, log_f))
        got, reason = attempt(way, made[0]) if made else (None, reason)  # compiles
        if reason:
            row["failed"] = reason
        elif case.check:
            row |= errors(got, definition(case, inputs, log_f))
        else:
            runs[way], computed = made
            row |= computed
            if scale.device == "cuda":
                del got
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                runs[way]()
                row["peak_mebibytes"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
            if case.what == "decode":
                rows.append({**row, "launch": "graph"})
                runs[f"{way} graph"], reason = attempt(way, partial(captured, runs[way]))
                if reason:
                    del runs[f"{way} graph"]
                    rows[-1]["failed"] = reason
    times = timed(runs, scale, seconds) if runs else {}
    flops = 2 * case.B * case.H * case.T**2 * case.D * (1 if case.what == "forward" else 3.5)
    for row in (row for row in rows if not case.check and "failed" not in row):
        row |= figures(row["way"], times, " graph" if "launch" in row else "")
        if case.what == "decode":
            row["bandwidth_share"] = rounded(row["bytes"] / row["milliseconds"] / 1e9 / bandwidth)
        else:
            name = "teraflops" if row["share"] == 1 else "effective_teraflops"
            row[name] = rounded(flops / row["milliseconds"] / 1e9)
    return rows


def compile_ahead(todo: list[Case]) -> list[subprocess.Popen[bytes]]:
    """Processes that fill the compilers' caches on disk while the checks run; nothing is timed."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for case in todo:
        for family in ("ours",) if case.what == "decode" else ("ours", "fla", "flex"):
            length = case.T if family == "flex" else None  # compiled anew for each length
            groups.setdefault((family, case.D, length), []).append(case.name)
    single = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, __file__, "--compile"]
    return [
        subprocess.Popen([*command, str(family), *names], env=single, **quiet)
        for (family, *_), names in groups.items()
    ]


def compile_only(family: str, *names: str) -> None:
    for case in (case for case in cases(FULL) if case.name in names):
        inputs = draw(case, FULL)
        for way, gates in meant(case, [way for way in WAYS if way.split("-")[0] == family]):
            log_f = draw_gates(gates, case, FULL)
            made, _ = attempt(way, partial(prepare, way, case, inputs, log_f))
            if made:
                attempt(way, made[0])


def wait(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all are done or the seconds over; what is then missing, the cases compile."""
    deadline = time.monotonic() + seconds
    while workers:
        worker = workers.pop()
        try:
            status = worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            status = worker.wait()
        if status:
            print(f"compiling ahead, status {status}: {worker.args[3:]}", flush=True)


def said(*command: str) -> str:
    """What a program prints, or "unknown" where it is missing or fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def smi(fields: str) -> str:
    return said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def machine(scale: Scale, commit: str | None, bandwidth: float) -> Row:
    from fox.kernels.flash.tuning import choose_plan

    device = torch.device(scale.device)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    clock, bus = (getattr(gpu, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return {
        "gpu": gpu.name if gpu else f"none ({platform.machine()})",
        "driver": smi("driver_version"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        # Two transfers a clock, which is in kHz; bits to bytes.
        "terabytes_per_second": rounded(2e3 * clock * bus / 8e12) or bandwidth,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "fla": version("fla-core"),
        "commit": commit or said("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "tiles": {str(D): str(choose_plan(D, scale.dtype, device)) for D in scale.head_sizes},
        "dtype": str(scale.dtype),
        "command": " ".join(["python", "benchmarks/attention_gpu.py", *sys.argv[1:]]),
    }


def begun(path: Path, here: Row, rehearse: bool) -> Row:
    """What the file holds already, if it is of this GPU and this code."""
    if not path.exists():
        return {"rehearsal": rehearse, "machine": here, "cases": {}, "missing": []}
    found: Row = read_json(path)
    same = ("gpu", "torch", "triton", "fla", "commit", "tiles", "dtype")
    differing = [key for key in same if found["machine"][key] != here[key]]
    if differing:
        raise SystemExit(
            f"{path} holds results of another {' and '.join(differing)}: give another --output, "
            "or delete it."
        )
    return found


def print_table(results: Row) -> None:
    heads = ("ms", "TFLOP/s", "bandwidth", "share", *(f"/{x}" for x in YARDSTICKS), "MiB")
    print(f"{'':<44}" + "".join(f"{head:>12}" for head in heads))
    for name, case in results["cases"].items():
        print(name)
        for row in case["rows"]:
            label = f"  {row['way']} {row['gates']} {row.get('launch', '')}"
            if "milliseconds" not in row:
                print(f"{label:<44}", row.get("failed", "right" if row.get("right") else "WRONG"),
                      row.get("errors", ""))  # fmt: skip
                continue
            rate = row.get("teraflops", row.get("effective_teraflops", ""))
            cells = [row["milliseconds"], rate, row.get("bandwidth_share", ""), row["share"]]
            cells += [row["time_over"].get(x, "") for x in YARDSTICKS]
            cells.append(row.get("peak_mebibytes", ""))
            print(f"{label:<44}" + "".join(f"{cell:>12}" for cell in cells))


def draw_figure(results: Row, path: Path) -> None:
    """Time over SDPA-flash's at each length: a colour for each way, a dash for each head size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 6), sharey=True, layout="constrained")
    found = [x for x in results["cases"].values() if x["what"] in PASSES and not x["check"]]
    lengths = sorted({case["T"] for case in found})
    lines = [(i, way, j, D) for i, way in enumerate(WAYS) for j, D in enumerate((64, 128, 16))]
    for axis, what in zip(axes, reversed(PASSES), strict=True):
        for i, way, j, D in lines:
            points = sorted(
                (case["T"], row["time_over"]["sdpa-flash"])
                for case in found
                for row in case["rows"]
                if (case["what"], case["D"], row["way"]) == (what, D, way)
                and "sdpa-flash" in row.get("time_over", {})
            )
            if points:
                style = {"color": f"C{i}", "linestyle": ("--", "-", ":")[j], "marker": "o"}
                axis.plot(*zip(*points, strict=True), label=f"{way}, D = {D}", **style)
        axis.set(xscale="log", yscale="log", title=what, xlabel="sequence length T")
        axis.set_xticks(lengths, [f"{T // 1024}k" if T >= 1024 else str(T) for T in lengths])
        axis.set_yticks(
            ticks := [0.05, 0.1, 0.2, 0.4, 0.7, 1, 2, 5, 10, 30], [str(y) for y in ticks]
        )
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time / SDPA-flash without gates")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    title = f"{results['machine']['gpu']}, {results['machine']['dtype'].removeprefix('torch.')}"
    figure.suptitle(title + (" (a rehearsal, no measurement)" if results["rehearsal"] else ""))
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/attention_gpu.json")
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="for this call")
    parser.add_argument("--case-seconds", type=float, default=20.0, help="of timing, at most")
    parser.add_argument("--without", nargs="*", choices=WAYS, default=[], help="ways to leave out")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="TB/s, if the GPU hides it")
    parser.add_argument("--commit", help="where git is not at hand to say it")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU: no measurement")
    parser.add_argument("--compile", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    began = time.monotonic()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("this needs a CUDA device; --rehearse shows on a CPU that the script works")
    if arguments.compile:
        compile_only(*arguments.compile)
        return
    scale = REHEARSAL if arguments.rehearse else FULL
    here = machine(scale, arguments.commit, arguments.bandwidth)
    results = begun(arguments.output, here, arguments.rehearse)
    wanted = cases(scale)
    todo = [case for case in wanted if case.name not in results["cases"]]
    ways = [way for way in WAYS if way not in arguments.without]
    workers = [] if arguments.rehearse else compile_ahead(todo)
    try:
        for i, case in enumerate(todo):
            if i and time.monotonic() - began + arguments.case_seconds > arguments.seconds:
                break
            if not case.check:
                wait(workers, 0.4 * arguments.seconds - (time.monotonic() - began))
            failed, peak = unfit(results, case), here["terabytes_per_second"]
            rows = measure(case, scale, ways, failed, peak, arguments.case_seconds)
            clocks = smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
            results["cases"][case.name] = {**case._asdict(), "clocks": clocks, "rows": rows}
            results["missing"] = [c.name for c in wanted if c.name not in results["cases"]]
            write_json(arguments.output, results)
            print(f"{time.monotonic() - began:.0f} s: {case.name} is done", flush=True)
    finally:
        wait(workers, 0.0)

    draw_figure(results, arguments.output.with_suffix(".png"))
    print_table(results)
    print(f"{here}\nwrote {arguments.output} and {arguments.output.with_suffix('.png')}")
    if results["missing"]:
        print(f"out of time; the same call again does: {', '.join(results['missing'])}")
    every = [row for found in results["cases"].values() for row in found["rows"]]
    ours = [row for row in every if row["way"].startswith("ours") and "launch" not in row]
    if any("failed" in row or row.get("right") is False for row in ours):
        sys.exit(1)


if __name__ == "__main__":
    main()
