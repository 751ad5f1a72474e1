"""Tiles: those chosen by default, and those measured and remembered."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import forgetting_attention
from fox.kernels.flash import tuning
from fox.kernels.flash.tuning import Plan, Tile

Inputs = Callable[..., list[Tensor]]
TRIED = {
    "forward": [Tile(32, 16, 4, 1), Tile(32, 64, 4, 1)],
    "dq": [Tile(64, 16, 4, 1)],
    "dkdv": [Tile(64, 32, 4, 1)],
}


def test_what_was_measured_is_remembered_and_used(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(tuning, "CANDIDATES", TRIED)
    before = tuning.choose_plan(16, torch.float16, device)
    seconds = itertools.count(9, -1)  # the last candidate is the fastest
    monkeypatch.setattr(tuning, "_seconds", lambda call, device: call() and next(seconds))
    plan = tuning.tune(16, dtype=torch.float16, device=device, T=64, H=1)
    assert plan == Plan(*(tiles[-1] for tiles in TRIED.values())) != before
    assert tuning.choose_plan(60, torch.float16, device) == plan
    assert tuning.choose_plan(16, torch.float32, device) != plan
    assert tuning.choose_plan(128, torch.float16, device) != plan
    tuning._remembered.cache_clear()
    assert tuning.choose_plan(16, torch.float16, device) == plan


def test_a_tile_that_does_not_fit_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    from triton.runtime.errors import OutOfResources

    def seconds(call: Callable[[], object], device: torch.device) -> float:
        if monkeypatch_calls.pop():
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    monkeypatch.setattr(tuning, "CANDIDATES", TRIED)
    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch_calls = [False, False, False, False, True, False, True]
    plan = tuning.tune(16, device=device, T=32, H=1)
    assert plan.forward == TRIED["forward"][0]


def test_a_spoilt_memory_is_named_with_its_cure(device: torch.device) -> None:
    tuning.MEMORY.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tiles.json does not hold .*: delete it, and tune again"):
        tuning.choose_plan(16, torch.float16, device)


@pytest.mark.parametrize("plan", [
    Plan(Tile(16, 16, 4, 1), Tile(64, 16, 4, 1), Tile(16, 64, 4, 1)),
    Plan(Tile(32, 64, 4, 1), Tile(16, 32, 4, 1), Tile(64, 16, 4, 1)),
    Plan(Tile(128, 32, 4, 1), Tile(128, 128, 4, 1), Tile(128, 32, 4, 1)),
], ids=str)  # fmt: skip
def test_tiles_of_every_shape_agree(
    monkeypatch: pytest.MonkeyPatch, random_inputs: Inputs, device: torch.device, plan: Plan
) -> None:
    inputs = [
        x.to(device).requires_grad_()
        for x in random_inputs(70, 150, B=1, H=2, H_kv=1, gates="steep resets")
    ]
    options = {"window_size": 90, "log_pruning_tolerance": -25.0}
    exact = forgetting_attention(*inputs, window_size=90, backend="reference")
    want = torch.autograd.grad(exact.square().sum(), inputs)
    monkeypatch.setattr("fox.kernels.flash.ops.choose_plan", lambda *_: plan)
    out = forgetting_attention(*inputs, backend="flash", **options)
    got = torch.autograd.grad(out.square().sum(), inputs)
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
