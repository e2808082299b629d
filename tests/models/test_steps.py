"""The steps of the papers' ablations, each against its equation in float64, and as configs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crate_mm import get_model
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.taps import capture
from crate_mm.models import CRATE, SEGMENTATION_ARCHS
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import MLP, MSSA, ClassAttentionBlock, OvercompleteISTA, SoftmaxAttention
from crate_mm.models.tasks import LinearHead

MICRO = dict(embed_dim=24, depth=2, num_heads=3)
TIED = dict(type="MSSA", tied=True)
SOFTMAX = dict(type="SoftmaxAttention")
ISTA, MLP_ = dict(type="ISTA"), dict(type="MLP")


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


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
@pytest.mark.parametrize("sparsify", [ISTA, MLP_])
def test_the_ablation_of_the_segmentation_paper_is_a_config(compress, sparsify):
    """MSSA or softmax attention, ISTA or MLP; what is measured follows the parts."""
    residual = sparsify is MLP_
    model = CRATE(MICRO, 16, 4, compress=compress, sparsify=sparsify, residual=residual)
    defined = set(defined_measures(model))
    assert ("rc_half" in defined) == (compress is not SOFTMAX)
    assert ("sparsity" in defined) == (sparsify is ISTA)
    assert ("active" in defined) == (sparsify is MLP_)
    assert ("objective" in defined) == (compress is not SOFTMAX and sparsify is ISTA)
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
    plain = build_block(24, 3, dict(type="MSSA"), ISTA, layer_scale=0.5)
    assert plain.gamma_sparsify is None  # that step is not added
    assert not any("gamma" in name for name, _ in build_block(24, 3, dict(type="MSSA"), ISTA).named_parameters())


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
