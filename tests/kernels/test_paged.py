"""paged_attention is attention to the pages of one's own head, wherever they lie."""

import math

import pytest
import torch

from fox.kernels import paged_attention, sort_pages

B, K, G, D, S = 2, 3, 2, 16, 64


def pool(pages, seed=0):
    """q, pages in a random order, a bias with hidden slots, and owners with `pages` pages each."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(B * K).repeat_interleave(torch.tensor(pages))
    owner = owner[torch.randperm(len(owner), generator=generator)]
    q = torch.randn(B, K * G, D, generator=generator)
    k, v = torch.randn(2, len(owner), S, D, generator=generator)
    bias = -20 * torch.rand(len(owner), G, S, generator=generator)
    bias[torch.rand(bias.shape, generator=generator) < 0.3] = -math.inf
    bias[:1] = -math.inf  # a page that shows nothing
    return q, k, v, bias, owner


def definition(q, k, v, bias, owner, scale):
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(B):
        for h in range(K * G):
            mine = owner == b * K + h // G
            scores = scale * k[mine].double() @ q[b, h].double() + bias[mine, h % G].double()
            if (scores > -math.inf).any():
                weight = scores.flatten().softmax(0)
                out[b, h] = weight @ v[mine].double().flatten(0, 1)
    return out


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("pages", [[3, 1, 2, 5, 1, 4], [2, 0, 1, 0, 0, 7], [0] * 6])
def test_every_head_sees_its_own_pages_alone(backend, pages):
    inputs = pool(pages)
    out = paged_attention(*inputs, softmax_scale=0.3, backend=backend)
    expected = definition(*inputs, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
    wide = paged_attention(*(x.double() for x in inputs[:4]), inputs[4], softmax_scale=0.3)
    torch.testing.assert_close(wide, expected)


def test_narrow_pages_are_read_in_float32():
    q, k, v, bias, owner = pool([1, 2, 3, 1, 2, 3])
    narrow = [x.bfloat16() for x in (q, k, v)]
    out = paged_attention(*narrow, bias, owner)
    expected = definition(*narrow, bias, owner, 1 / 4)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, atol=1e-2, rtol=1e-2)


def test_pages_sorted_by_owner():
    owner = torch.tensor([2, 0, 2, 4, 0])
    order, borders = sort_pages(owner, 6)
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert borders.tolist() == [0, 2, 2, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 6, 8)}, r"of one head size, but got \(2, 6, 8\) and \(6, 64, 16\)"),
        ({"v_pages": torch.zeros(5, 64, 16)}, "k_pages and v_pages must have the same shape"),
        (
            {"bias": torch.zeros(6, 4, 64)},
            r"shape \(P, G, S\) = \(6, G, 64\), G a divisor of H = 6",
        ),
        (
            {"owner": torch.zeros(6)},
            r"owner must be int64 of shape \(P,\) = \(6,\), but got torch.f",
        ),
        ({"backend": "flash"}, "runs on GPUs, but got tensors on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    names = ("q", "k_pages", "v_pages", "bias", "owner")
    inputs = dict(zip(names, pool([1] * 6), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        paged_attention(**inputs)
