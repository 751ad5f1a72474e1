"""Decoding on pages in Triton against the definition in float64."""

import math

import pytest
import torch
from torch import Tensor

from fox.kernels.flash import paged
from fox.kernels.flash.paged import flash_paged
from fox.kernels.paged import sort_pages

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SLOTS = 64
RAGGED = [3, 0, 1, 9, 2, 4]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgot to write shows as NaN."""
    create = torch.empty

    def created(*args: object, **kwargs: object) -> Tensor:
        x = create(*args, **kwargs)
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", created)


def draw_pages(
    counts: list[int],
    B: int,
    G: int,
    D: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """q, k_pages, v_pages, bias and owner: counts[o] pages of owner o, in any order.

    The last page of each owner is filled in part, and what lies behind is NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    P = sum(counts)
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    owner = owner[torch.randperm(P, generator=generator)]
    q = torch.randn(B, len(counts) // B * G, D, generator=generator)
    k, v = (torch.randn(P, SLOTS, D, generator=generator) for _ in range(2))
    bias = torch.empty(P, G, SLOTS).uniform_(-6.0, 0.0, generator=generator)
    for page in {int(o): page for page, o in enumerate(owner)}.values():
        filled = 1 + page % SLOTS
        bias[page, :, filled:] = -math.inf
        k[page, filled:], v[page, filled:] = math.nan, math.nan
    return [q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), bias.to(device),
            owner.to(device)]  # fmt: skip


def definition(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, bias: Tensor, owner: Tensor, scale: float
) -> Tensor:
    """Each query head by itself, on the slots that it sees."""
    B, H, D = q.shape
    G = bias.shape[1]
    out = q.new_zeros(B, H, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            pages = owner == b * (H // G) + h // G
            seen = bias[pages, h % G] > -math.inf
            k, v = (x[pages][seen].double() for x in (k_pages, v_pages))
            if len(k):
                scores = scale * (k @ q[b, h].double()) + bias[pages, h % G][seen].double()
                out[b, h] = scores.softmax(0) @ v
    return out


def check(inputs: list[Tensor], scale: float = 0.3) -> None:
    got = flash_paged(*inputs, scale)
    want = definition(*inputs, scale)
    assert got.shape == want.shape
    assert got.dtype == inputs[0].dtype
    tolerance = max(TOLERANCE[x.dtype] for x in inputs[:2])
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("G", "D", "dtype"),
    [
        (1, 16, torch.float32),
        (2, 48, torch.float32),
        (3, 64, torch.float16),
        (8, 128, torch.float32),
        (1, 256, torch.float16),
        (2, 60, torch.float16),
        (40, 16, torch.float16),
    ],
)
def test_pages_give_what_the_definition_gives(
    device: torch.device, G: int, D: int, dtype: torch.dtype
) -> None:
    inputs = draw_pages(RAGGED, 3, G, D, device, dtype)
    check(inputs, scale=D**-0.5)


@pytest.mark.parametrize("share", [1, 2, 5, 100])
def test_any_share_of_pages_per_program_gives_the_same(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setattr(paged, "_share", lambda *_: share)
    check(draw_pages(RAGGED, 2, 2, 16, device))


def test_more_parts_than_are_merged_at_a_time_give_the_same(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "_share", lambda *_: 1)
    check(draw_pages([1, 140], 1, 1, 16, device))


def test_q_may_be_of_another_dtype_than_the_pages(device: torch.device) -> None:
    q, *pages = draw_pages(RAGGED, 3, 2, 16, device, torch.bfloat16)
    check([q.float(), *pages])
    q, k, *rest = draw_pages(RAGGED, 3, 2, 16, device)
    check([q.half(), k * 2**17, *rest], scale=0.3 / 2**17)  # float16 cannot hold these keys


def test_views_of_any_strides_are_read_right(device: torch.device) -> None:
    q, k, v, bias, owner = draw_pages(RAGGED, 3, 2, 48, device)
    pool = torch.stack([k, v], dim=2)
    q, bias = (x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (q, bias))
    table = torch.stack([owner, owner.flip(0)], dim=1)
    check([q, pool[:, :, 0], pool[:, :, 1], bias, table[:, 0]])
    check([q, pool[:, :, 0], pool[:, :, 1], bias, table[:, 0].int()])


def test_keys_that_fell_far_weigh_nothing_beside_near_ones(device: torch.device) -> None:
    inputs = draw_pages(RAGGED, 3, 2, 16, device)
    bias = inputs[3]
    bias[::2][bias[::2] > -math.inf] = -16384.0  # whole pages
    bias[1::2, 0, ::2] -= 1e5
    bias[1::2, 1, 7] -= 1e5
    got = flash_paged(*inputs, 0.3).double()
    near = definition(*inputs[:3], bias.masked_fill(bias < -1e4, -math.inf), inputs[4], 0.3)
    sees_near = near.abs().sum(-1) > 0
    assert sees_near.any()
    torch.testing.assert_close(got[sees_near], near[sees_near], atol=1e-5, rtol=1e-5)
    assert not sees_near.all()  # the others weigh far ones, by what float32 has left of scores
    torch.testing.assert_close(got, definition(*inputs, 0.3), atol=2e-2, rtol=2e-2)


def test_what_one_head_of_a_group_does_not_see_the_others_may(device: torch.device) -> None:
    inputs = draw_pages(RAGGED, 3, 3, 16, device)
    inputs[3][:, 0, ::3] = -math.inf
    inputs[3][:, 1] = -math.inf
    check(inputs)
    out = flash_paged(*inputs, 0.3).unflatten(1, (2, 3))
    assert (out[:, :, 1] == 0).all()
    assert (out[0, 0, 0] != 0).any()


def test_a_head_without_pages_is_zero(device: torch.device) -> None:
    out = flash_paged(*draw_pages([0, 2, 0, 0], 2, 2, 16, device), 0.3)
    assert (out[0, :2] == 0).all()
    assert (out[0, 2:] != 0).all()
    assert (out[1] == 0).all()


def test_a_page_that_nobody_sees_changes_nothing(device: torch.device) -> None:
    q, k, v, bias, owner = draw_pages([2, 2], 1, 2, 16, device)
    nan = torch.full_like(k[:1], math.nan)
    more = [torch.cat([nan, k]), torch.cat([nan, v])]
    hidden = torch.cat([torch.full_like(bias[:1], -math.inf), bias])
    owners = torch.cat([owner[:1], owner])
    torch.testing.assert_close(
        flash_paged(q, *more, hidden, owners, 0.3), flash_paged(q, k, v, bias, owner, 0.3)
    )


def test_without_pages_or_rows_there_is_nothing_to_do(device: torch.device) -> None:
    out = flash_paged(*draw_pages([0, 0], 1, 2, 16, device), 0.3)
    assert out.shape == (1, 4, 16)
    assert (out == 0).all()
    q, *rest = draw_pages([0, 0], 1, 2, 16, device)
    assert flash_paged(q[:0], *rest, 0.3).shape == (0, 4, 16)


def test_pages_sorted_before_give_the_same_bits_as_pages_sorted_here(device: torch.device) -> None:
    inputs = draw_pages(RAGGED, 3, 2, 16, device)
    order, borders = sort_pages(inputs[4], len(RAGGED))
    assert borders.diff().tolist() == RAGGED
    for o in range(len(RAGGED)):
        mine = order[borders[o] : borders[o + 1]]
        assert mine.tolist() == (inputs[4] == o).nonzero().flatten().tolist()
    out = flash_paged(*inputs, 0.3)
    assert torch.equal(flash_paged(*inputs, 0.3, order, borders), out)
    assert torch.equal(flash_paged(*inputs, 0.3), out)


def test_programs_fill_the_gpu_whoever_the_pages_belong_to() -> None:
    for pages in range(1, 5000, 7):
        programs = math.ceil(pages / paged._share(pages, processors=132))
        assert min(pages, 2 * 132) <= programs <= 4 * 132


def test_the_paged_op_keeps_the_contract_of_torch(device: torch.device) -> None:
    inputs = draw_pages([1, 2], 1, 2, 16, device)
    sorted_pages = sort_pages(inputs[4], 2)
    for more in ((), sorted_pages):
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(flash_paged, (*inputs, 0.3, *more), test_utils=tests)
    compiled = torch.compile(flash_paged, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, 0.3), flash_paged(*inputs, 0.3))


@pytest.mark.gpu
@pytest.mark.parametrize("D", [16, 60, 64, 128, 256])
@pytest.mark.parametrize(
    ("dtype", "page_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_long_and_short_memories_on_a_gpu(
    device: torch.device, D: int, dtype: torch.dtype, page_dtype: torch.dtype
) -> None:
    for G in (1, 5, 40):
        q, *pages = draw_pages([2000, 1, 7, 0, 90, 300], 2, G, D, device, page_dtype)
        check([q.to(dtype), *pages], scale=D**-0.5)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(device: torch.device) -> None:
    inputs = draw_pages(RAGGED, 3, 2, 64, device, torch.bfloat16)
    flash_paged(*inputs, 0.3)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        flash_paged(*inputs, 0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
