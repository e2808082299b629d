"""What the taps give: measures in a stream, attention, components."""

import gc

import numpy as np
import pytest
import torch

from crate_mm.analysis import measures
from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.gather import Moments, measure_layers
from crate_mm.analysis.projection import pca_colors, project
from crate_mm.analysis.table import MEASURES
from crate_mm.analysis.taps import capture, find_layers, read_taps
from crate_mm.models import ImageClassifier

MICRO = dict(embed_dim=24, depth=3, num_heads=3)


def build(kind="CRATE"):
    torch.manual_seed(0)
    return ImageClassifier(
        backbone=dict(type=kind, arch=MICRO, img_size=16, patch_size=4),
        head=dict(type="LinearHead", num_classes=5),
    ).eval()


@pytest.fixture
def images():
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_moments_against_torch():
    values, moments = torch.randn(100, dtype=torch.float64) + 1000, Moments()
    for part in values.split([1, 40, 9, 50]):
        moments.update(part)
    assert moments.count == 100
    assert moments.mean == pytest.approx(values.mean().item())
    assert moments.std == pytest.approx(values.std().item())


def test_the_measures_of_layers_are_the_pure_functions(images):
    model, half, unit = build().double(), {}, dict(eps_squared=0.02, unit_length=True)
    images = images.double()
    with measure_layers(model, eps_squared=0.02) as gathered:
        for part in images.split(3):
            model(part)
    with torch.no_grad(), capture(model) as seen:
        model(images)
    for layer, block in enumerate(model.backbone.blocks):
        U = block.compress.proj.weight.T
        z_half, z_out = seen["tap_half"][layer], seen["tap_out"][layer]
        half = {
            "rc_half": measures.subspace_coding_rate(z_half @ U, 3, **unit),
            "sparsity": measures.nonzero_fraction(z_out),
            "rc_in": measures.subspace_coding_rate(seen["tap_w"][layer], 3, **unit),
            "rc_out": measures.subspace_coding_rate(z_out @ U, 3, **unit),
            "r_out": measures.coding_rate(z_out, **unit),
            "objective": measures.sparse_rate_reduction(z_out, U, 3, 0.1, **unit),
        }
        for measure, values in half.items():
            (row,) = [r for r in gathered.rows() if (r.measure, r.layer) == (measure, layer + 1)]
            assert row.mean == pytest.approx(values.mean().item(), rel=1e-10), measure
            assert row.std == pytest.approx(values.std().item(), rel=1e-6), measure
            assert row.count == 7
    assert {r.measure for r in gathered.rows()} == set(MEASURES) - {"active", "sparsity_step1"}
    assert gathered.means("rc_half") == [r.mean for r in gathered.rows() if r.measure == "rc_half"]


def test_a_vit_has_what_makes_sense_for_it(images):
    model = build("ViT")
    with torch.no_grad(), measure_layers(model) as gathered, capture(model, ("tap_act",)) as seen:
        model(images)
    shares = [(activations > 0).float().mean().item() for activations in seen["tap_act"]]
    assert gathered.means("active") == pytest.approx(shares, rel=1e-5)
    message = "ViT has no tap 'tap_half': its taps are tap_act, tap_out, tap_w"
    with pytest.raises(ValueError, match=message), capture(model):
        pass


@pytest.mark.parametrize("kind", ["CRATE", "ViT"])
def test_the_model_is_left_as_it_was(images, kind):
    model = build(kind)
    with torch.no_grad():
        plain = model(images)
        with measure_layers(model):
            assert torch.equal(model(images), plain)
    cls_attention(model, images)
    with pytest.raises(ValueError, match="expected images"), measure_layers(model):
        model(torch.randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match="expected images"):
        cls_attention(model, torch.randn(2, 3, 5, 5))
    assert hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())
    model.train()
    with measure_layers(model):
        model(images, torch.zeros(7, dtype=torch.long), mode="loss")["loss"].backward()
    assert model.training


def test_chosen_layers_only(images):
    model = build()
    assert list(find_layers(model, [-1, 0, 2])) == [0, 2]
    with torch.no_grad(), read_taps(model, {"tap_out": lambda layer, z: 0 * z}):  # a reader changes nothing
        read = model(images)
    with torch.no_grad():
        assert torch.equal(model(images), read)
    with torch.no_grad(), capture(model, ("tap_out",)) as every, capture(model, ("tap_out",), [-1, 0]) as two:
        model(images)
    assert len(every["tap_out"]) == 3
    assert torch.equal(two["tap_out"][0], every["tap_out"][0])
    assert torch.equal(two["tap_out"][1], every["tap_out"][2])
    with measure_layers(model, [1]) as gathered:
        model(images)
    assert {r.layer for r in gathered.rows()} == {2}
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"layer {layer} does not exist: CRATE has 3 layers, 0 to 2"):
            find_layers(model, [layer])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    """After a batch nothing of it is kept: as many tensors are alive after ten batches as after one."""
    model, alive = build(), []

    def count():
        gc.collect()
        alive.append(sum(o.numel() for o in gc.get_objects() if isinstance(o, torch.Tensor)))

    with torch.no_grad(), measure_layers(model) as gathered:
        for _ in range(10):
            model(torch.randn(8, 3, 16, 16))
            count()
    assert gathered.rows()[0].count == 80
    assert max(alive) <= 1.05 * alive[0]


def test_attention_of_crate_is_the_papers(images):
    model = build()
    maps = cls_attention(model, images)
    with torch.no_grad(), capture(model) as seen:
        model(images)
    for layer, w in enumerate(seen["tap_w"]):
        for k in range(3):
            w_k = w[..., 8 * k : 8 * k + 8]
            weights = (w_k @ w_k.mT / 8**0.5).softmax(-1)
            torch.testing.assert_close(maps[layer][:, k], weights[:, 0, 1:])
    assert cls_attention(model, images, [-1]).keys() == {2}
    torch.testing.assert_close(cls_attention(model, images, [-1])[2], maps[2])


def test_attention_of_cbsa_is_its_similarity_with_rows_that_sum_to_one(images):
    torch.manual_seed(0)
    backbone = dict(type="CRATE", arch=MICRO, img_size=16, patch_size=4, compress=dict(type="CBSA", side=2))
    model = ImageClassifier(backbone, dict(type="LinearHead", num_classes=5)).eval()
    with torch.no_grad(), capture(model, ("tap_w",), [1]) as seen:
        model(images)
    compress = model.backbone.blocks[1].compress
    rows = compress.maps(seen["tap_w"][0], model.backbone.layout(images))["similarity"].values[:, :, 0]
    torch.testing.assert_close(cls_attention(model, images, [1])[1], (rows / rows.sum(-1, keepdim=True))[..., 1:])


def test_attention_of_vit_is_its_own(images):
    model = build("ViT")
    maps = cls_attention(model, images, [1])
    layer = model.backbone.encoder.layers[1]
    with torch.no_grad(), capture(model, ("tap_out",), [0]) as seen:
        model(images)
        x = layer.ln_1(seen["tap_out"][0])
        q, k, _ = torch.nn.functional.linear(
            x, layer.self_attention.in_proj_weight, layer.self_attention.in_proj_bias
        ).chunk(3, -1)
    split = [t.unflatten(-1, (3, 8)).transpose(1, 2) for t in (q, k)]
    expected = (split[0] @ split[1].mT / 8**0.5).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(maps[1], expected, rtol=1e-4, atol=1e-6)


def test_attention_needs_a_model_that_has_some():
    with pytest.raises(ValueError, match="Linear has no readable layers: its layers must inherit from Layer"):
        cls_attention(torch.nn.Linear(2, 2), torch.zeros(1, 2))


def test_components_find_the_planes_of_the_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(3, 16, 20)
    tokens[:, :8, 0] = 10  # two kinds of patches, far apart in one direction
    tokens[:, :, 1:4] = torch.randn(3, 16, 3, generator=generator)
    colors, shown = pca_colors(tokens)
    assert colors.shape == (3, 16, 3)
    assert shown.all()
    first = colors[..., 0]
    assert min(abs(np.subtract.outer(first[:, :8].ravel(), first[:, 8:].ravel())).ravel()) > 0.8
    colors, shown = pca_colors(tokens[:, 4:], foreground=True)  # 4 of 12 patches are of the first kind
    assert np.array_equal(shown, np.tile(np.arange(12) < 4, (3, 1)))
    assert (colors[~shown] == 0).all()
    # Images that differ more from one another than their patches do, and of less contrast than others.
    tokens = tokens * torch.tensor([1.0, 0.3, 2.0])[:, None, None] + 100 * torch.eye(20)[5:8, None]
    assert np.array_equal(pca_colors(tokens[:, 4:], foreground=True)[1], shown)
    with pytest.raises(ValueError, match="at least three patches"):
        pca_colors(torch.randn(1, 2, 5))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projections_keep_groups_apart(method):
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (30, 10)), rng.normal(8, 1, (30, 10))])
    points = project(features, method)
    assert points.shape == (60, 2)
    centres = points[:30].mean(0), points[30:].mean(0)
    spread = max(points[:30].std(), points[30:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_an_unknown_projection():
    with pytest.raises(ValueError, match="unknown method 'umap': choose pca, tsne"):
        project(np.eye(5), "umap")
    with pytest.raises(ValueError, match="t-SNE needs at least four images"):
        project(np.eye(3), "tsne")
    for features in (np.ones((9, 3)), np.full((9, 3), np.nan), np.zeros((1, 3))):
        for method in ("pca", "tsne"):
            with pytest.raises(ValueError, match="at least two images with finite features"):
                project(features, method)
