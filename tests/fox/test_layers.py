"""The layers by themselves: norms, rotation, bounds, compilation, checkpointing."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fox import ForgettingAttention
from fox.layers import HeadRMSNorm, RMSNorm, SwiGLU, rotate
from fox.model import Block

PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(8, eps=1e-3), torch.randn(2, 3, 8)
    norm.weight.data = torch.rand(8)
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_the_head_norm_treats_each_head_apart(shared):
    norm, x = HeadRMSNorm(3, 4, eps=1e-5, shared=shared), torch.randn(2, 5, 3, 4)
    norm.weight.data = torch.rand_like(norm.weight)
    scale = norm.weight.expand(3, 4) if shared else norm.weight.view(3, 4)
    expected = scale * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_norm_statistics_are_float32_for_16_bit_inputs():
    x = torch.full((1, 1, 8), 300.0, dtype=torch.float16)  # the square overflows float16
    assert torch.equal(RMSNorm(8).half()(x), torch.ones(1, 1, 8, dtype=torch.float16))


def test_the_mlp_gates_with_its_first_rows():
    mlp, x = SwiGLU(4, 6), torch.randn(2, 4)
    gate, up = mlp.gate_proj.weight[:6] @ x.T, mlp.gate_proj.weight[6:] @ x.T
    expected = mlp.down_proj.weight @ (gate * torch.sigmoid(gate) * up)
    torch.testing.assert_close(mlp(x), expected.T)


def test_rotated_products_depend_on_the_distance_only():
    q, k = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)

    def product(i, j):
        at = [rotate(x, torch.tensor([[p]]), 500.0) for x, p in ((q, i), (k, j))]
        return (at[0] * at[1]).sum(-1)

    torch.testing.assert_close(product(7, 3), product(104, 100), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(product(7, 3), product(7, 4), atol=1e-3)
    torch.testing.assert_close(rotate(q, torch.tensor([[0]]), 500.0), q)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_no_logit_passes_the_bound_of_the_qk_norm(num_kv_heads, shared):
    layer = ForgettingAttention(
        32,
        4,
        num_kv_heads,
        qk_norm=True,
        qk_norm_share_param_across_head=shared,
        log_pruning_tolerance=-10.0,
    )
    for norm in (layer.q_norm, layer.k_norm):
        norm.weight.data = torch.randn_like(norm.weight)
    q, k = torch.randn(2, 200, 4, 8), torch.randn(2, 200, num_kv_heads, 8)
    # The worst case: one channel holds everything, at the largest scale.
    q[:, 0], k[:, 0] = 0, 0
    largest = [norm.weight.abs().view(-1, 8).argmax(-1) for norm in (layer.q_norm, layer.k_norm)]
    for h in range(4):
        q[:, 0, h, largest[0][h % len(largest[0])]] = 1e3
        g = h // (4 // num_kv_heads)
        k[:, 0, g, largest[1][g % len(largest[1])]] = 1e3
    q, k = layer.q_norm(q), layer.k_norm(k).repeat_interleave(4 // num_kv_heads, dim=2)
    logits = torch.einsum("bihd,bjhd->bhij", q, k).abs() / 8**0.5
    assert (logits.amax((0, 2, 3)) <= layer.logit_bound()).all()


@pytest.mark.parametrize("fgate_type", ["full", "none"])
def test_a_block_compiles_without_a_graph_break(fox_pro, fgate_type):
    block = Block(fox_pro.config.replace(fgate_type=fgate_type))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 20, 32)
    starts = torch.zeros(2, 20, dtype=torch.bool)
    starts[:, 9] = True
    torch.testing.assert_close(compiled(x), block(x))
    torch.testing.assert_close(
        compiled(x, document_starts=starts), block(x, document_starts=starts)
    )
    compiled(x, document_starts=starts).sum().backward()
    assert block.attn.q_proj.weight.grad is not None


def test_activation_checkpointing_gives_the_same_gradients(fox_pro):
    block, x = fox_pro.model.layers[0], torch.randn(2, 20, 32)
    block(x).square().sum().backward()
    plain = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    checkpoint(block, x, use_reentrant=False).square().sum().backward()
    for grad, parameter in zip(plain, block.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_the_layer_stands_alone_and_takes_single_tokens():
    layer = ForgettingAttention(32, 4, **PRO)
    assert layer(torch.randn(3, 1, 32)).shape == (3, 1, 32)
    assert layer(torch.randn(3, 70, 32)).shape == (3, 70, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 250}, "hidden_size must be a multiple of num_heads, but got 250 and 4"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, but got 4 and 3"),
        ({"fgate_type": "fixed"}, "needs decay_time_min and decay_time_max"),
        ({"fgate_type": "soft"}, "fgate_type must be one of"),
    ],
)
def test_the_layer_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForgettingAttention(**({"hidden_size": 32, "num_heads": 4} | arguments))


def test_a_cache_of_another_layer_is_refused():
    layer, other = ForgettingAttention(32, 4), ForgettingAttention(16, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="k_cache must have the head size"):
        layer(torch.randn(2, 5, 32), cache=other.new_cache(2))
    with torch.no_grad(), pytest.raises(ValueError, match="made for 3 rows, but the text has 2"):
        layer(torch.randn(2, 5, 32), cache=layer.new_cache(3))


@torch.no_grad()
def test_the_layer_decodes_by_itself():
    layer, x = ForgettingAttention(32, 4, **PRO), torch.randn(2, 20, 32)
    cache = layer.new_cache(2)
    parts = [layer(chunk, cache=cache) for chunk in x.split([7, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), atol=1e-5, rtol=1e-5)
