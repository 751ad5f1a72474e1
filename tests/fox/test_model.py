"""The models: loss, padding, packed documents, precisions."""

import pytest
import torch
import torch.nn.functional as F

from fox import ForgettingAttention, FoxForCausalLM

TIGHT = {"atol": 2e-5, "rtol": 2e-5}


def random_ids(B, T, V=31, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def test_a_later_token_changes_no_earlier_logit(variant):
    ids = random_ids(2, 20)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 31
    before, after = variant(ids).logits, variant(changed).logits
    torch.testing.assert_close(before[:, :12], after[:, :12], **TIGHT)
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-5


def test_the_mean_loss_predicts_each_next_token(fox_pro):
    ids = random_ids(2, 9)
    out = fox_pro(ids, labels=ids)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_ignored_labels_do_not_count(fox_pro):
    ids = random_ids(1, 9)
    labels = ids.clone()
    labels[:, 4:] = -100
    short = ids[:, :4]
    torch.testing.assert_close(fox_pro(ids, labels=labels).loss, fox_pro(short, labels=short).loss)


def test_aligned_labels_give_the_unreduced_loss(fox_pro):
    ids = random_ids(2, 9)
    aligned = fox_pro(ids, labels=ids, shift_labels=False, reduction="none").loss
    expected = F.cross_entropy(fox_pro(ids).logits.transpose(1, 2), ids, reduction="none")
    torch.testing.assert_close(aligned, expected)


def test_padding_on_the_left_changes_nothing(variant):
    ids, pads = random_ids(1, 14), 5
    padded = torch.cat([torch.full((1, pads), 7), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :pads] = 0
    logits = variant(padded, attention_mask=mask).logits[:, pads:]
    torch.testing.assert_close(logits, variant(ids).logits, **TIGHT)


def test_padding_on_the_right_changes_nothing(variant):
    ids = random_ids(2, 14)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    logits = variant(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, :9], variant(ids[:1, :9]).logits[0], **TIGHT)
    torch.testing.assert_close(logits[1], variant(ids[1:]).logits[0], **TIGHT)


def test_packed_documents_equal_separate_ones(variant):
    ids = random_ids(1, 24)
    lengths = [7, 1, 16]
    separate = torch.cat([variant(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, [0, 7, 8]] = True
    packed = variant(ids, document_starts=starts).logits
    torch.testing.assert_close(packed, separate, **TIGHT)
    cu_seqlens = torch.tensor([0, 7, 8, 24, 24], dtype=torch.int32)
    flat = variant(ids, cu_seqlens=cu_seqlens).logits
    torch.testing.assert_close(flat, packed, atol=0, rtol=0)


def test_packed_documents_have_the_gradients_of_separate_ones(fox_pro):
    ids = random_ids(1, 24)
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, 10] = True
    fox_pro(ids, document_starts=starts).logits.square().sum().backward()
    packed = [p.grad.clone() for p in fox_pro.parameters()]
    fox_pro.zero_grad()
    for part in (ids[:, :10], ids[:, 10:]):
        fox_pro(part).logits.square().sum().backward()
    for grad, parameter in zip(packed, fox_pro.parameters(), strict=True):
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(grad, parameter.grad, atol=1e-5 * scale + 1e-7, rtol=1e-4)


def test_every_parameter_gets_a_gradient(variant):
    variant.train()
    variant(random_ids(2, 12), labels=random_ids(2, 12)).loss.backward()
    for name, parameter in variant.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("training", [True, False])
def test_pure_bfloat16_runs_and_stays_near_float32(variant, training):
    ids = random_ids(2, 16)
    expected = variant(ids).logits
    half = FoxForCausalLM(variant.config).bfloat16()
    half.load_state_dict(variant.state_dict())
    out = half.train(training)(ids, labels=ids)
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert (out.logits - expected).norm() < 0.1 * expected.norm()
    if training:
        out.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in half.parameters())


def test_autocast_runs_and_stays_near_float32(variant):
    ids = random_ids(2, 16)
    expected = variant(ids).logits
    variant.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = variant(ids, labels=ids)
    assert (out.logits - expected).norm() < 0.1 * expected.norm()
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in variant.parameters())


def test_gates_are_float32_even_in_a_bfloat16_model(fox_pro):
    layer = fox_pro.bfloat16().model.layers[0].attn
    assert layer.log_gates(torch.randn(1, 3, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_gate_biases_spread_the_time_constants():
    layer = ForgettingAttention(16, 4, fgate_type="fixed", decay_time_min=2.0, decay_time_max=64.0)
    expected = torch.tensor([0.43275, 1.76861, 2.97873, 4.15106])
    torch.testing.assert_close(layer.fgate_bias, expected, atol=1e-5, rtol=0)


def test_without_gates_and_rope_the_order_of_the_past_does_not_matter(fox_pro, build):
    config = fox_pro.config.replace(
        fgate_type="none", use_k_shift=False, use_v_shift=False, num_hidden_layers=1
    )
    model, ids = build(config), random_ids(1, 8)
    swapped = ids[:, [3, 1, 2, 0, 4, 5, 6, 7]]
    torch.testing.assert_close(model(ids).logits[:, -1], model(swapped).logits[:, -1], **TIGHT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(3)}, r"whole numbers of shape \(B, T\), but got torch.float32"),
        ({"labels": torch.zeros(2, 3).long()}, r"labels must have the shape .* got \(2, 3\)"),
        ({"attention_mask": torch.ones(2, 3)}, r"attention_mask must have the shape"),
        (
            {"attention_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])},
            "one run of ones in each row, but it has holes",
        ),
        ({"document_starts": torch.zeros(2, 3).bool()}, "document_starts must have the shape"),
        ({"cu_seqlens": torch.tensor([0, 8])}, "cu_seqlens is for one flat row"),
    ],
)
def test_inputs_that_do_not_fit_are_named(fox_pro, arguments, message):
    with pytest.raises(ValueError, match=message):
        fox_pro(**({"input_ids": random_ids(2, 4)} | arguments))
