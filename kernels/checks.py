"""What the public functions accept: each check names what was expected, what came, and the cure.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size, S cache slots.
"""

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

BACKENDS = ("reference", "blocked", "flash")
FLASH_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where products stay in the dtype of their inputs; costs nothing where they do already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def checked_backend(backend: str | None, q: Tensor) -> str:
    """The backend asked for, or the one for q's device; refuses what it cannot do."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, but got {backend!r}.")
    chosen = backend or ("flash" if q.device.type == "cuda" else "blocked")
    if chosen == "flash" and q.dtype == torch.float64:
        raise ValueError(
            'backend "flash" computes in float32 and takes float32, bfloat16 and float16, '
            'but got float64; backend "blocked" computes in float64.'
        )
    if chosen == "flash" and q.shape[-1] > FLASH_HEAD_DIM:
        raise ValueError(
            f'backend "flash" takes head sizes up to {FLASH_HEAD_DIM}, but got D = {q.shape[-1]}; '
            'backend "blocked" takes any.'
        )
    return chosen


def require_flash(x: Tensor) -> None:
    """Refuses, where the op runs, what Triton does not run on."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            'backend "flash" needs the package triton, which is not installed: pip install triton, '
            'or pass backend="blocked".'
        )
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'backend "flash" runs on GPUs, but got tensors on {x.device}; backend "blocked" runs '
            "on every device. (Tests on a CPU: set TRITON_INTERPRET=1 before triton is imported.)"
        )
    if x.is_cuda and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(x.device)
        if major < 8:
            raise ValueError(
                'backend "flash" needs an NVIDIA GPU of compute capability 8.0 or newer, but got '
                f'{major}.{minor}; backend "blocked" runs on every device.'
            )


def check_heads(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, layout: str, ndim: int, cache: bool = False
) -> None:
    names = ("k_cache", "v_cache") if cache else ("k", "v")
    for name, x in (("q", q), (names[0], k), (names[1], v)):
        if x.ndim != ndim:
            raise ValueError(
                f"{name} must have {ndim} dimensions, as {layout}, but got shape {tuple(x.shape)}."
            )
        if x.dtype not in DTYPES or (x.dtype != q.dtype and not cache):
            raise ValueError(
                "q, k and v must share one dtype of float32, float64, bfloat16 and float16, "
                f"but got {q.dtype}, {k.dtype} and {v.dtype}."
            )
        if x.device != q.device:
            raise ValueError(f"{name} must be on {q.device} like q, but got {x.device}.")
    if k.shape != v.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape, "
            f"but got {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{names[0]} must have the head size of q, D = {q.shape[-1]}, but got {k.shape[-1]}."
        )
    H, H_kv = q.shape[-2], k.shape[-2]
    if H_kv == 0 or H % H_kv:
        raise ValueError(f"H = {H} query heads must be a multiple of H_kv = {H_kv} key heads.")
    check_gates(log_f, k, H, "lambda_cache" if cache else "log_f")


def check_gates(log_f: Tensor, k: Tensor, H: int, name: str = "log_f") -> None:
    shape = (*k.shape[:-2], H)
    if tuple(log_f.shape) not in (shape, tuple(k.shape[:-1])):
        swapped = len(shape) == 3 and tuple(log_f.shape) == (shape[0], shape[2], shape[1])
        cure = f" Heads before time? Pass {name}.transpose(1, 2)." if swapped else ""
        letters = "(B, T_k, H)" if len(shape) == 3 else "(total_k, H)"
        raise ValueError(
            f"{name} must have shape {letters} = {shape} to match q and k, "
            f"but got {tuple(log_f.shape)}.{cure}"
        )
    if not log_f.is_floating_point():
        raise ValueError(f"{name} must hold floats, but got {log_f.dtype}.")
    if log_f.device != k.device:
        raise ValueError(f"{name} must be on {k.device} like q, but got {log_f.device}.")


def check_integers(name: str, x: Tensor, shape: tuple[int, ...], q: Tensor, highest: int) -> None:
    if tuple(x.shape) != shape or x.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} must be an int32 or int64 tensor of shape {shape}, "
            f"but got {x.dtype} of shape {tuple(x.shape)}."
        )
    if x.device != q.device:
        raise ValueError(f"{name} must be on {q.device} like q, but got {x.device}.")
    if _readable(x) and x.numel() and not (int(x.min()) >= 0 and int(x.max()) <= highest):
        raise ValueError(f"{name} must lie in [0, {highest}], but got {x.tolist()}.")


def check_cu_seqlens(which: str, x: Tensor, sequences: int, y: Tensor, longest: int) -> None:
    total = y.shape[0]
    if longest is None:
        raise ValueError(f"max_seqlen_{which} must be the largest length, an int, but got None.")
    check_integers(f"cu_seqlens_{which}", x, (sequences + 1,), y, highest=total)
    if not _readable(x):
        return
    lengths = x.diff()
    if sequences < 0 or x[0] != 0 or x[-1] != total or (lengths < 0).any():
        raise ValueError(
            f"cu_seqlens_{which} must rise from 0 to total_{which} = {total}, but got {x.tolist()}."
        )
    if sequences and int(lengths.max()) > longest:
        raise ValueError(
            f"max_seqlen_{which} must be at least the longest sequence, {int(lengths.max())}, "
            f"but got {longest}."
        )


def _readable(x: Tensor) -> bool:
    """Whether values can be looked at without stopping a device or breaking a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_window(window_size: object) -> None:
    if window_size is None:
        return
    if isinstance(window_size, int) and not isinstance(window_size, bool) and window_size >= 1:
        return
    cure = ""
    if isinstance(window_size, tuple) and len(window_size) == 2:
        left = window_size[0]
        here = left + 1 if isinstance(left, int) and left >= 0 else None
        cure = (
            " flash-attn's (left, right) does not count a row's own key, and a causal row sees "
            f"none to its right: its window_size={window_size} is window_size={here} here."
        )
    elif isinstance(window_size, (int, float)) and window_size in (0, -1, math.inf):
        cure = " Pass None for no window."
    raise ValueError(
        "window_size must be None or the number of keys that a row sees, its own included, an int "
        f"of at least 1, but got {window_size!r}.{cure}"
    )


def check_pruning(
    tolerance: float | None, bound: float | Tensor | None, B: int, H: int, q: Tensor
) -> Tensor | None:
    """The logit bound as a (B, H) float64 tensor, or None."""
    if tolerance is not None and not tolerance <= 0:
        raise ValueError(
            "log_pruning_tolerance must be the natural log of a weight, at most 0, "
            f"but got {tolerance}."
        )
    if bound is None:
        return None
    if tolerance is None:
        raise ValueError("logit_bound serves pruning only: pass log_pruning_tolerance with it.")
    if isinstance(bound, Tensor):
        if tuple(bound.shape) not in ((), (H,), (B, H)):
            raise ValueError(
                f"logit_bound must have shape (), (H,) or (B, H) = ({B}, {H}), "
                f"but got {tuple(bound.shape)}."
            )
        return bound.detach().to(q.device, torch.float64).clamp(min=0).expand(B, H)
    if not bound >= 0:
        raise ValueError(f"logit_bound must be at least 0, but got {bound}.")
    return torch.full((B, H), float(bound), dtype=torch.float64, device=q.device)


def check_appended(
    q: Tensor,
    k_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    log_f: Tensor | None,
    cache_seqlens: int | Tensor | None,
    backend: str,
) -> list[int] | None:
    """The slots filled in each row of the cache before anything is appended.

    None where backend "flash" finds them on the device, and to look would be to wait for it.
    """
    B, S, H_kv, D = k_cache.shape
    filled: list[int] | None = None
    if isinstance(cache_seqlens, int) and not 0 <= cache_seqlens <= S:
        raise ValueError(f"cache_seqlens must lie in [0, {S}], but got {cache_seqlens}.")
    if not isinstance(cache_seqlens, Tensor):
        filled = [S if cache_seqlens is None else cache_seqlens] * B
    else:
        check_integers("cache_seqlens", cache_seqlens, (B,), k_cache, highest=S)
        if backend != "flash" or _readable(cache_seqlens):
            filled = cache_seqlens.tolist()
    if k is None and v is None and log_f is None:
        return filled
    if k is None or v is None or log_f is None:
        given = [n for n, x in (("k", k), ("v", v), ("log_f", log_f)) if x is not None]
        raise ValueError(f"k, v and log_f are appended together, but got only {given}.")
    if cache_seqlens is None:
        raise ValueError("cache_seqlens must say how many slots are filled when k is appended.")
    for name, x in (("k", k), ("v", v)):
        if x.dtype not in DTYPES or x.device != k_cache.device:
            raise ValueError(
                f"{name} must hold floats on {k_cache.device} like the cache, "
                f"but got {x.dtype} on {x.device}."
            )
    T_new = k.shape[1]
    if k.shape != v.shape or tuple(k.shape) != (B, T_new, H_kv, D):
        raise ValueError(
            f"k and v must have shape (B, T_new, H_kv, D) = ({B}, {T_new}, {H_kv}, {D}) to fit "
            f"the cache, but got {tuple(k.shape)} and {tuple(v.shape)}."
        )
    check_gates(log_f, k, q.shape[2])
    if filled is not None and max(filled, default=0) + T_new > S:
        raise ValueError(
            f"the cache has S = {S} slots, but {max(filled)} filled and {T_new} new tokens need "
            f"{max(filled) + T_new}. Build a longer cache."
        )
    return filled
