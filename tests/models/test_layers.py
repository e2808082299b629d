"""Operators and layers against their equations, written out plainly, in float64; and stochastic depth."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crate_mm import get_model
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.taps import capture
from crate_mm.engine.parallel.blocks import enable_activation_checkpointing
from crate_mm.models import CRATE, SEGMENTATION_ARCHS, ViT
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import (
    ISTA,
    MLP,
    MSSA,
    Block,
    ClassAttentionBlock,
    DropPath,
    OvercompleteISTA,
    SoftmaxAttention,
    TokenEmbedding,
    drop_path_rates,
)  # fmt: skip
from crate_mm.models.tasks import LinearHead

MICRO = dict(embed_dim=24, depth=2, num_heads=3)
THREE_LAYERS = dict(MICRO, depth=3)
TIED = dict(type="MSSA", tied=True)
SOFTMAX = dict(type="SoftmaxAttention")
ISTA_, MLP_ = dict(type="ISTA"), dict(type="MLP")
WITH_DROP_PATH = {"CRATE": CRATE, "ViT": ViT}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# Few tokens (fewer than 2 d) take the two-product form, many the one-product form.
@pytest.mark.parametrize("tokens", [3, 400])
@pytest.mark.parametrize(("eta", "lambd"), [(0.1, 0.1), (0.5, 0.02)])
def test_ista_is_equation_17(tokens, eta, lambd):
    torch.manual_seed(0)
    ista = ISTA(24, step_size=eta, lambd=lambd).double()
    x, D = randn(2, tokens, 24), ista.dictionary
    expected = torch.relu(x + eta * (x @ D - x @ D.T @ D) - eta * lambd)
    torch.testing.assert_close(ista(x), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(ista(x), (x, D), grad)
    plain = torch.autograd.grad(expected, (x, D), grad)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_ista_starts_kaiming_uniform_and_is_sparse():
    D, bound = ISTA(600).dictionary, (6 / 600) ** 0.5
    assert D.abs().max() <= bound
    torch.testing.assert_close(D.std(), torch.tensor(bound / 3**0.5), rtol=0.01, atol=0)
    z = ISTA(32)(torch.randn(4, 50, 32))
    assert (z >= 0).all()
    assert 0.2 < (z == 0).float().mean() < 0.8


@pytest.mark.parametrize("tokens", [3, 400])
def test_ista_keeps_the_identity_out_of_low_precision(tokens):
    ista, x = ISTA(24), torch.randn(2, tokens, 24)
    ista.dictionary.data.zero_()  # what is left is relu(x - eta lambda)
    with torch.autocast("cpu", torch.bfloat16):
        out = ista(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.relu(x - 0.01))


@pytest.mark.parametrize(("heads", "head_dim"), [(3, None), (2, 5), (1, None)])
def test_mssa_is_subspace_attention(heads, head_dim):
    torch.manual_seed(0)
    mssa = MSSA(24, heads, head_dim).double()
    x = randn(2, 7, 24)
    p = head_dim or 24 // heads
    w = x @ mssa.proj.weight.T
    ssa = []
    for k in range(heads):
        w_k = w[..., k * p : (k + 1) * p]
        ssa.append(torch.softmax(w_k @ w_k.mT / p**0.5, dim=-1) @ w_k)
    expected = torch.cat(ssa, dim=-1)
    if heads > 1:
        expected = expected @ mssa.out.weight.T + mssa.out.bias
    torch.testing.assert_close(mssa(x), expected, rtol=1e-12, atol=1e-12)


def test_mssa_has_no_output_projection_for_one_head_of_full_width():
    assert isinstance(MSSA(24, 1).out, nn.Identity)
    assert isinstance(MSSA(24, 1, bias=False).out, nn.Identity)
    assert isinstance(MSSA(24, 1, head_dim=12).out, nn.Linear)
    assert MSSA(24, 2).out.bias is not None
    assert MSSA(24, 3, bias=False).out.bias is None
    assert MSSA(24, 2).proj.bias is None
    with pytest.raises(ValueError, match=r"24 is not divisible by num_heads 5: give head_dim"):
        MSSA(24, 5)


def test_patches_are_flattened_by_row_column_channel():
    embedding = TokenEmbedding((4, 6), (2, 3), in_channels=2, embed_dim=8)
    seen = []
    embedding.patch_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    tokens = embedding(image)
    assert tokens.shape == (1, 1 + 4, 8)
    # The second patch in reading order: rows 0-1, columns 3-5.
    expected = [image[0, c, i, j].item() for i in (0, 1) for j in (3, 4, 5) for c in (0, 1)]
    assert seen[0][0, 1].tolist() == expected


def test_cls_token_comes_first_and_positions_are_added():
    embedding = TokenEmbedding(4, 2, in_channels=1, embed_dim=8)
    tokens = embedding(torch.rand(3, 1, 4, 4))
    torch.testing.assert_close(tokens[:, 0], (embedding.cls_token[0] + embedding.pos_embed[0, :1]).expand(3, -1))
    assert embedding.pos_embed.shape == (1, 5, 8)
    embedding = TokenEmbedding(224, 16, in_channels=3, embed_dim=400)
    for value in (embedding.pos_embed, embedding.cls_token):
        assert abs(value.std().item() - 1) < 0.15


@pytest.mark.parametrize(("img_size", "patch_size"), [(10, 4), ((8, 10), 4), (8, 16)])
def test_patches_must_divide_the_image(img_size, patch_size):
    with pytest.raises(ValueError, match="not a whole number of patches"):
        TokenEmbedding(img_size, patch_size, 3, 8)


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 1, 8, 8), (3, 8, 8)])
def test_an_image_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, 8, 8\), got"):
        TokenEmbedding(8, 4, 3, 8)(torch.rand(shape))


@pytest.mark.parametrize("num_tokens", [3, 200])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_fused_step_is_the_same_function(num_tokens, dtype, rtol):
    ista = ISTA(24).to(dtype).eval()
    x = torch.randn(2, num_tokens, 24, dtype=dtype)
    with torch.no_grad():
        plain = ista(x)
        ista.fuse()
        torch.testing.assert_close(ista(x), plain, rtol=rtol, atol=rtol)
    assert set(ista.state_dict()) == {"dictionary"}


def test_a_fused_step_refuses_to_train():
    ista = ISTA(24)
    ista.fuse()
    with pytest.raises(RuntimeError, match="a fused model is for inference only"), torch.no_grad():
        ista(torch.randn(2, 3, 24))
    ista.eval()
    with pytest.raises(RuntimeError, match="a fused model is for inference only"):
        ista(torch.randn(2, 3, 24))


# Ablations of the papers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "head_dim"), [(3, None), (2, 5), (1, None)])
def test_a_tied_output_projection_is_equation_11(heads, head_dim):
    torch.manual_seed(0)
    mssa = MSSA(24, heads, head_dim, tied=True).double()
    assert [name for name, _ in mssa.named_parameters()] == ["proj.weight"]
    x, p = randn(2, 7, 24), head_dim or 24 // heads
    expected = 0
    for U_k in mssa.subspaces().U.split(p, dim=1):  # sum over k of SSA_k(x) U_k^T
        w = x @ U_k
        expected = expected + torch.softmax(w @ w.mT / p**0.5, dim=-1) @ w @ U_k.T
    torch.testing.assert_close(mssa(x), expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y.sum(), mssa.proj.weight, retain_graph=True)[0] for y in (mssa(x), expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


def test_the_tied_base_model_of_table_3():
    with torch.device("meta"):
        model = get_model("crate_base", compress=TIED)
    assert sum(p.numel() for p in model.parameters()) == 15_708_904


@pytest.mark.parametrize("bias", [True, False])
def test_softmax_attention_is_pytorchs(bias):
    torch.manual_seed(0)
    ours, theirs = (
        SoftmaxAttention(24, 3, bias).double(),
        nn.MultiheadAttention(24, 3, bias=bias, batch_first=True).double(),
    )
    theirs.in_proj_weight.data, theirs.out_proj.weight.data = ours.qkv.weight.data, ours.out.weight.data
    if bias:
        nn.init.normal_(ours.qkv.bias)
        theirs.in_proj_bias.data, theirs.out_proj.bias.data = ours.qkv.bias.data, ours.out.bias.data
    x = randn(2, 7, 24)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.maps(x)["attention"].values, weights, rtol=1e-12, atol=1e-12)
    assert ours.subspaces() is None
    with pytest.raises(ValueError, match="24 is not divisible by num_heads 5"):
        SoftmaxAttention(24, 5)


def test_an_mlp_claims_no_code():
    assert MLP(24, ratio=3).fc1.out_features == 72
    block = build_block(24, 3, dict(type="MSSA"), MLP_, residual=False)
    assert (block.lambd, block.returns_code, "tap_code" in block.taps()) == (None, False, False)


@pytest.mark.parametrize("compress", [dict(type="MSSA"), SOFTMAX, TIED])
@pytest.mark.parametrize("sparsify", [ISTA_, MLP_])
def test_the_ablation_of_the_segmentation_paper_is_a_config(compress, sparsify):
    """MSSA or softmax attention, ISTA or MLP; what is measured follows the parts."""
    residual = sparsify is MLP_
    model = CRATE(MICRO, 16, 4, compress=compress, sparsify=sparsify, residual=residual)
    defined = set(defined_measures(model))
    assert ("rc_half" in defined) == (compress is not SOFTMAX)
    assert ("sparsity" in defined) == (sparsify is ISTA_)
    assert ("active" in defined) == (sparsify is MLP_)
    assert ("objective" in defined) == (compress is not SOFTMAX and sparsify is ISTA_)
    assert model.blocks[0].attention(torch.randn(1, 5, 24)).shape == (1, 3, 5, 5)
    images = torch.randn(2, 3, 16, 16)
    with measure_layers(model) as measures:
        model(images)
    assert {row.measure for row in measures.rows()} == defined
    if sparsify is MLP_:
        with (
            pytest.raises(ValueError, match="CRATE has none of sparsity"),
            measure_layers(model, measures=["sparsity"]),
        ):
            pass


def test_the_segmentation_papers_sizes():
    """Its parameters with 21,841 classes, in millions: 5.74, 14.12 and 38.83."""
    counts = {}
    for arch in ("seg_tiny", "tiny", "base", "demo"):
        with torch.device("meta"):
            model = get_model(f"crate_{arch}", num_classes=21_841, patch_size=8)
        counts[arch] = sum(p.numel() for p in model.parameters())
    assert counts == dict(seg_tiny=5_743_057, tiny=14_118_097, base=38_830_801, demo=38_830_801)
    assert SEGMENTATION_ARCHS["demo"].num_heads == 6


def test_layer_scale_multiplies_what_is_added():
    block = build_block(24, 3, dict(type="MSSA"), MLP_, residual=True, layer_scale=0.5).double()
    z = randn(2, 5, 24)
    half = z + 0.5 * block.compress(block.norm_compress(z))
    torch.testing.assert_close(block(z), half + 0.5 * block.sparsify(block.norm_sparsify(half)))
    block.gamma_sparsify.data.zero_()
    torch.testing.assert_close(block(z), half)
    plain = build_block(24, 3, dict(type="MSSA"), ISTA_, layer_scale=0.5)
    assert plain.gamma_sparsify is None  # that step is not added
    assert not any("gamma" in name for name, _ in build_block(24, 3, dict(type="MSSA"), ISTA_).named_parameters())


def test_both_codes_pass_their_taps():
    block = build_block(24, 3, dict(type="MSSA"), dict(type="OvercompleteISTA"), residual=True)
    assert {"tap_code", "tap_code1"} <= block.taps().keys()
    assert isinstance(block.sparsify, OvercompleteISTA)
    with capture(nn.Sequential(block), ("tap_code1", "tap_code")) as seen:
        nn.Sequential(block)(torch.randn(2, 5, 24))
    assert [seen[tap][0].shape for tap in seen] == [(2, 5, 96), (2, 5, 96)]


def test_class_attention_doubles_the_patches():
    torch.manual_seed(0)
    block = ClassAttentionBlock(24, 3, 0.5).double()
    x = randn(2, 5, 24)
    u = F.layer_norm(x, (24,), eps=1e-6)
    patches = F.layer_norm(x + 0.5 * u, (24,), eps=1e-6)[:, 1:]
    torch.testing.assert_close(block(x)[:, 1:], 2 * patches, rtol=1e-12, atol=1e-12)
    q, k, v = block.attention.qkv(u).chunk(3, dim=-1)
    attended = nn.functional.scaled_dot_product_attention(*(t.unflatten(2, (3, 8)).transpose(1, 2) for t in (q, k, v)))
    cls = block.attention.out(attended.transpose(1, 2).flatten(2)[:, :1])
    cls = F.layer_norm(x[:, :1] + 0.5 * cls, (24,), eps=1e-6)
    torch.testing.assert_close(block(x)[:, :1], cls + 0.5 * block.mlp(cls), rtol=1e-12, atol=1e-12)


def test_a_heads_epsilon_and_start():
    torch.manual_seed(0)
    head = LinearHead(400, 300, norm_eps=1e-6, init_std=0.02)
    assert head.norm.eps == 1e-6
    assert head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not head.fc.bias.any()
    assert LinearHead(4, 3).norm.eps == 1e-5


# Stochastic depth ---------------------------------------------------------------------------------------------------


def backbone(kind, **options):
    torch.manual_seed(0)
    return WITH_DROP_PATH[kind](arch=THREE_LAYERS, img_size=8, patch_size=4, **options)


def test_a_sample_is_dropped_or_divided_by_what_is_left():
    drop, x = DropPath(0.25).double().train(), torch.rand(400, 2, 3, dtype=torch.float64) + 1
    torch.manual_seed(5)
    keeps = torch.rand(400) < 0.75
    torch.manual_seed(5)
    assert torch.equal(drop(x), torch.where(keeps[:, None, None], x / 0.75, 0.0))
    assert 250 < keeps.sum() < 350
    assert drop.eval()(x) is x


@pytest.mark.parametrize("residual", [False, True])
def test_a_block_drops_what_is_added_and_nothing_else(residual):
    torch.manual_seed(0)
    block = Block(24, MSSA(24, 3), ISTA(24), residual=residual, drop_path=0.5).double().train()
    z = torch.randn(16, 5, 24, dtype=torch.float64)
    torch.manual_seed(3)
    first, second = (2.0 * (torch.rand(16, 1, 1) < 0.5) for _ in range(2))
    half = z + first * block.compress(block.norm_compress(z))
    step = block.sparsify(block.norm_sparsify(half))
    torch.manual_seed(3)
    expected = half + second * step if residual else step
    torch.testing.assert_close(block(z), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_of_the_vit_drops_attention_and_mlp():
    layer = backbone("ViT", drop_path=0.5, drop_path_rule="constant").double().train().blocks[0]
    z = torch.randn(16, 5, 24, dtype=torch.float64)
    torch.manual_seed(3)
    first, second = (2.0 * (torch.rand(16, 1, 1) < 0.5) for _ in range(2))
    x = layer.ln_1(z)
    half = z + first * layer.self_attention(x, x, x, need_weights=False)[0]
    hidden = layer.mlp[1](layer.mlp[0](layer.ln_2(half)))
    torch.manual_seed(3)
    torch.testing.assert_close(layer(z), half + second * layer.mlp[3](hidden), rtol=1e-12, atol=1e-12)


def test_rates_by_layer():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 4, "constant") == [0.3] * 4
    assert drop_path_rates(0.3, 1) == [0]
    model = backbone("CRATE", drop_path=0.2)
    assert [getattr(b.drop_path, "probability", 0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])
    model = backbone("ViT", drop_path=0.2)
    assert [getattr(b.dropout, "probability", 0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])
    assert [getattr(b.mlp[-1], "probability", 0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "0.1", True, float("nan")])
def test_no_such_rate(rate):
    with pytest.raises(ValueError, match="drop_path must be a probability from 0 to below 1"):
        CRATE(THREE_LAYERS, 8, 4, drop_path=rate)


def test_no_such_rule():
    with pytest.raises(ValueError, match="unknown drop_path_rule 'linaer': choose linear, constant"):
        ViT(THREE_LAYERS, 8, 4, drop_path=0.1, drop_path_rule="linaer")


@pytest.mark.parametrize("kind", WITH_DROP_PATH)
def test_without_it_nothing_changes(kind):
    plain, with_it = backbone(kind), backbone(kind, drop_path=0.5)
    assert not any(isinstance(module, DropPath) for module in plain.modules())
    assert plain.state_dict().keys() == with_it.state_dict().keys()
    with_it.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain.eval()(images), with_it.eval()(images))
    assert not torch.equal(plain.train()(images), with_it.train()(images))


@pytest.mark.parametrize("kind", WITH_DROP_PATH)
def test_recomputed_blocks_draw_the_same_again(kind):
    images, gradients = torch.randn(8, 3, 8, 8), []
    for recompute in (False, True):
        model = backbone(kind, drop_path=0.5, drop_path_rule="constant").train()
        if recompute:
            enable_activation_checkpointing(model)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.slow
def test_layers_of_different_rates_share_a_compilation():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = CRATE(THREE_LAYERS, 8, 4, drop_path=0.5).train()
    for block in model.blocks:
        block.compile(backend=backend)
    out = model(torch.randn(2, 3, 8, 8))
    assert len(graphs) == 2, "one for the first layer, which drops nothing, and one for all others"
    assert out.isfinite().all()
