"""Linear cross-entropy: the plain way's numbers, without its memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fox.loss
from fox import FoxForCausalLM
from fox.loss import linear_cross_entropy

REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Seven tokens at a time: several chunks, and a last one that is not full."""
    monkeypatch.setattr(fox.loss, "CHUNK_ELEMENTS", 7 * 31)


def inputs(dtype=torch.float32, N=40, C=12, V=31):
    features = torch.randn(N, C, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, C, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (N,))
    labels[::5] = -100
    return features, weight, labels


def plain(features, weight, labels, reduction):
    return F.cross_entropy(F.linear(features, weight).float(), labels, reduction=reduction)


def loss_and_gradients(loss, upstream, *parameters):
    return loss.detach(), *torch.autograd.grad(loss, parameters, upstream)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_the_loss_and_both_gradients_are_those_of_the_plain_way(precision, reduction):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    features, weight, labels = inputs(dtype)
    upstream = torch.rand(40 if reduction == "none" else ())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = plain(features, weight, labels, reduction)
        loss, losses = linear_cross_entropy(features, weight, labels, reduction)
        token_losses = plain(features, weight, labels, "none")
    want = loss_and_gradients(expected, upstream, features, weight)
    got = loss_and_gradients(loss, upstream, features, weight)
    half = {"atol": 0.02 * float(want[2].abs().max()), "rtol": 0.02}
    close = {"atol": 1e-5, "rtol": 1e-5} if precision == "float32" else half
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b, **close)
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(losses, token_losses)
    assert not losses.requires_grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradients_are_those_of_finite_differences(reduction):
    features, weight, labels = inputs(torch.float64, N=9, C=3, V=5)
    torch.autograd.gradcheck(
        lambda *x: linear_cross_entropy(*x, labels, reduction)[0], (features, weight)
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_products_in_16_bit_are_summed_over_chunks_in_float32(monkeypatch, autocast):
    features, weight, labels = inputs(N=2000)
    exact = torch.autograd.grad(plain(features, weight, labels, "sum"), weight)[0]
    monkeypatch.setattr(fox.loss, "CHUNK_ELEMENTS", 31)  # one token a chunk
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = linear_cross_entropy(features, weight, labels, "sum")
    error = torch.autograd.grad(loss, weight)[0] - exact
    assert error.norm() < (5e-3 if autocast else 1e-6) * exact.norm()


def test_an_infinite_logit_of_a_token_that_does_not_count_is_no_nan():
    weight = torch.tensor([[-1.0], [1.0]])
    features = torch.tensor([[torch.inf], [1.0]])
    loss, losses = linear_cross_entropy(features, weight, torch.tensor([-100, 1]))
    assert losses[0] == 0
    torch.testing.assert_close(loss, F.cross_entropy(torch.tensor([[-1.0, 1]]), torch.tensor([1])))


def test_shapes_that_do_not_fit_are_named():
    features, weight, labels = inputs()
    with pytest.raises(ValueError, match=r"\(40, 12\), \(31, 12\) and \(39,\)"):
        linear_cross_entropy(features, weight, labels[1:])
    with pytest.raises(ValueError, match=r"\(40, 12\), \(31, 11\) and \(40,\)"):
        linear_cross_entropy(features, weight[:, 1:], labels)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def largest_tensor(model, ids, **options):
    with Largest() as largest:
        loss = model(ids, labels=ids, **options).loss
        loss.sum().backward()
    return largest.elements


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_has_the_same_loss_and_gradients_without_logits(fox_pro, tied):
    model = FoxForCausalLM(fox_pro.config.replace(tie_word_embeddings=tied))
    ids = torch.randint(31, (2, 30))
    for reduction in REDUCTIONS:
        outputs, gradients = [], []
        for return_logits in (True, False):
            model.zero_grad()
            out = model(ids, labels=ids, reduction=reduction, return_logits=return_logits)
            out.loss.sum().backward()
            outputs.append((out.loss, out.token_losses))
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            assert (out.logits is None) != return_logits
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_without_logits_no_tensor_of_the_size_of_the_logits_is_made(fox_pro, reduction):
    B, T, V = 2, 64, 4096
    model = FoxForCausalLM(fox_pro.config.replace(vocab_size=V))
    ids = torch.randint(V, (B, T))
    rest = max(p.numel() for p in model.parameters())  # 131,072: B T V is 524,288
    assert largest_tensor(model, ids, reduction=reduction) == B * T * V
    assert largest_tensor(model, ids, reduction=reduction, return_logits=False) <= rest
