"""Stochastic depth: its formula, its rates by layer, and that it costs nothing where it is not asked for."""

import pytest
import torch

from crate_mm.engine.parallel.blocks import enable_activation_checkpointing
from crate_mm.models import CRATE, ViT
from crate_mm.models.layers import ISTA, MSSA, Block, DropPath, drop_path_rates

MICRO = dict(embed_dim=24, depth=3, num_heads=3)
KINDS = {"CRATE": CRATE, "ViT": ViT}


def backbone(kind, **options):
    torch.manual_seed(0)
    return KINDS[kind](arch=MICRO, img_size=8, patch_size=4, **options)


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
        CRATE(MICRO, 8, 4, drop_path=rate)


def test_no_such_rule():
    with pytest.raises(ValueError, match="unknown drop_path_rule 'linaer': choose linear, constant"):
        ViT(MICRO, 8, 4, drop_path=0.1, drop_path_rule="linaer")


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_nothing_changes(kind):
    plain, with_it = backbone(kind), backbone(kind, drop_path=0.5)
    assert not any(isinstance(module, DropPath) for module in plain.modules())
    assert plain.state_dict().keys() == with_it.state_dict().keys()
    with_it.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain.eval()(images), with_it.eval()(images))
    assert not torch.equal(plain.train()(images), with_it.train()(images))


@pytest.mark.parametrize("kind", KINDS)
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
    model = CRATE(MICRO, 8, 4, drop_path=0.5).train()
    for block in model.blocks:
        block.compile(backend=backend)
    out = model(torch.randn(2, 3, 8, 8))
    assert len(graphs) == 2, "one for the first layer, which drops nothing, and one for all others"
    assert out.isfinite().all()
