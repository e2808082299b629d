"""Positions and patch embeddings at another size, against numbers worked out by hand."""

import pytest
import torch

from crate_mm.checkpoints import CheckpointError, as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.resize import Patch, resize_patch_kernel, resize_position_embedding
from crate_mm.engine import load_config, resolve_config
from crate_mm.models import ImageClassifier, PatchKernel

MICRO = dict(embed_dim=24, depth=2, num_heads=3)
KERNELS = {
    "CRATE": [f"backbone.embedding.{name}" for name in ("proj.weight", "patch_norm.weight", "patch_norm.bias")],
    "ViT": ["backbone.conv_proj.weight"],
}
# Two numbers of a row become four, bilinearly: the corners are not aligned, and the border's are kept.
UP = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
# Four become two, averaged over: what is twice as far apart is taken with weights 1, 3, 3, 1, cut off at the border.
DOWN = torch.tensor([[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]], dtype=torch.float64)


def description(kind="CRATE", **backbone):
    backbone = {"type": kind, "arch": MICRO, "img_size": 16, "patch_size": 4, **backbone}
    half = (0.5,) * backbone.get("in_channels", 3)
    return dict(
        backbone=backbone,
        head=dict(type="LinearHead", num_classes=7, norm=kind == "CRATE"),
        preprocessor=dict(mean=half, std=half),
    )


def build(kind="CRATE", **backbone):
    return ImageClassifier(**description(kind, **backbone))


def checkpoint(kind="CRATE", described=True, **backbone):
    weights = {name: torch.randn_like(value) for name, value in build(kind, **backbone).state_dict().items()}
    meta = {"model": {"type": "ImageClassifier", **description(kind, **backbone)}} if described else {}
    return as_checkpoint({"meta": meta, "state_dict": weights})


@pytest.mark.parametrize(("matrix", "side"), [(UP, 2), (DOWN, 4)], ids=["up", "down"])
def test_positions_bilinearly(matrix, side):
    positions = torch.randn(1, 1 + side * side, 3, dtype=torch.float64)
    new = matrix.shape[0]
    resized = resize_position_embedding(positions, (side, side), (new, new), "bilinear")
    grid = positions[0, 1:].view(side, side, 3)
    expected = torch.einsum("ir,js,rsd->ijd", matrix, matrix, grid).reshape(new * new, 3)
    torch.testing.assert_close(resized[0, 1:], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(resized[:, 0], positions[:, 0])


@pytest.mark.parametrize(("matrix", "side"), [(UP, 2), (DOWN, 4)], ids=["up", "down"])
def test_kernels_bilinearly_whatever_their_order(matrix, side):
    new, image = matrix.shape[0], torch.randn(5, 3, side, side, dtype=torch.float64)
    expected = torch.einsum("ir,js,dcrs->dcij", matrix, matrix, image)
    patch, size = Patch(side, side, 3), (new, new)
    conv = resize_patch_kernel(image, "d C h w", patch, size, "bilinear")
    torch.testing.assert_close(conv, expected, rtol=1e-12, atol=1e-12)
    flat = image.permute(0, 2, 3, 1).flatten(1)  # row, column, channel
    flat = resize_patch_kernel(flat, "d (h w C)", patch, size, "bilinear")
    torch.testing.assert_close(flat, expected.permute(0, 2, 3, 1).flatten(1), rtol=1e-12, atol=1e-12)
    vector = resize_patch_kernel(image[0].permute(1, 2, 0).flatten(), "(h w C)", patch, size, "bilinear")
    torch.testing.assert_close(vector, expected[0].permute(1, 2, 0).flatten(), rtol=1e-12, atol=1e-12)


def test_a_patch_that_is_no_square():
    """Rows are not taken for columns: one row of two becomes one row of four."""
    kernel = torch.tensor([[1.0, 10, 3, 30]], dtype=torch.float64)  # two columns of two channels
    wide = resize_patch_kernel(kernel, "d (h w C)", Patch(1, 2, 2), (1, 4), "bilinear")
    assert wide.tolist() == [[1, 10, 1.5, 15, 2.5, 25, 3, 30]]


def test_a_patch_of_pixels_twice_as_large_gives_a_crate_the_same_tokens():
    """Where kernels are smooth: a constant kernel sees an image of four times the pixels as it saw the small one."""
    small, large = build(img_size=8, patch_size=2).double(), build(img_size=16, patch_size=4).double()
    small.backbone.embedding.proj.bias.data.zero_()
    kernel = torch.randn(24, 1, 3, dtype=torch.float64).expand(-1, 4, -1).flatten(1)
    small.backbone.embedding.proj.weight.data.copy_(kernel)
    meta = {"model": {"type": "ImageClassifier", **description(img_size=8, patch_size=2)}}
    saved = as_checkpoint({"meta": meta, "state_dict": small.state_dict()})
    transfer_backbone(large, saved, patches="bilinear")
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tokens = small.backbone.embedding(images)
    larger = large.backbone.embedding(images.repeat_interleave(2, -1).repeat_interleave(2, -2))
    torch.testing.assert_close(larger, tokens, rtol=1e-3, atol=1e-3)  # but for the norms' epsilon


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_transfer_to_another_patch_size(kind, mode):
    source, model = checkpoint(kind), build(kind, patch_size=8)
    result = transfer_backbone(model, source, "bilinear", mode)
    positions = "backbone.embedding.pos_embed" if kind == "CRATE" else "backbone.encoder.pos_embedding"
    change = f"4 x 4 -> 8 x 8 pixels per patch, {mode}"
    assert result.resized == {
        positions: "4 x 4 -> 2 x 2 patches, bilinear",
        **dict.fromkeys(KERNELS[kind], change),
    }
    kernels = {n: k for n, k in model.backbone.resizable().items() if isinstance(k, PatchKernel)}
    orders = {f"backbone.{name}": kernel.order for name, kernel in kernels.items()}
    for name in KERNELS[kind]:
        expected = resize_patch_kernel(source.weights[name], orders[name], Patch(4, 4, 3), (8, 8), mode)
        assert torch.equal(model.state_dict()[name], expected), name


@pytest.mark.parametrize("kind", KERNELS)
def test_another_patch_size_is_refused_unless_asked_for(kind):
    model = build(kind, patch_size=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = "patches of 4 x 4 pixels, the model of 8 x 8: resize_patches='bilinear' in the config resizes"
    with pytest.raises(CheckpointError, match=message):
        transfer_backbone(model, checkpoint(kind))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result = transfer_backbone(model, checkpoint(kind), patches="new")
    assert {name for name in result.dropped if "head" not in name} == set(KERNELS[kind])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in KERNELS[kind])


def test_as_many_numbers_of_another_patch_are_not_mixed_up():
    """2 x 8 and 4 x 4 pixels are as many numbers."""
    with pytest.raises(CheckpointError, match="patches of 2 x 8 pixels, the model of 4 x 4"):
        transfer_backbone(build(), checkpoint(patch_size=(2, 8)))
    result = transfer_backbone(build(), checkpoint(patch_size=(2, 8)), patches="bilinear")
    assert result.resized["backbone.embedding.proj.weight"] == "2 x 8 -> 4 x 4 pixels per patch, bilinear"


def test_what_a_checkpoint_does_not_say_is_not_guessed():
    with pytest.raises(CheckpointError, match="192 elements per patch, the model 48, and its patch size is unknown"):
        transfer_backbone(build(), checkpoint(described=False, patch_size=8), patches="bilinear")
    assert "backbone.embedding.proj.weight" in transfer_backbone(build(), checkpoint(described=False)).loaded


def test_a_checkpoint_that_contradicts_itself_is_refused():
    source = checkpoint()
    source.model["backbone"]["patch_size"] = 8
    with pytest.raises(CheckpointError, match="its model config has patches of 8 x 8 pixels in 3 channels, but"):
        transfer_backbone(build(), source, patches="bilinear")


def test_defaults_of_a_description_are_its_familys():
    source = checkpoint(img_size=32, patch_size=16)
    del source.model["backbone"]["patch_size"]
    result = transfer_backbone(build(), source, patches="bilinear")
    assert result.resized["backbone.embedding.proj.weight"] == "16 x 16 -> 4 x 4 pixels per patch, bilinear"


@pytest.mark.parametrize(("key", "value"), [("resize_positions", "nearest"), ("resize_patches", "linear")])
def test_no_such_mode(key, value):
    with pytest.raises(ValueError, match=f"{key} must be .*'bilinear'.*, got '{value}'"):
        resolve_config(load_config("debug", {key: value}), world_size=1)
    with pytest.raises(ValueError, match=f"'{value}'"):
        transfer_backbone(build(), checkpoint(), **{key.removeprefix("resize_"): value})
