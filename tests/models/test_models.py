"""Backbones, heads and classifier, over every entry of the tables."""

import pytest
import torch
from torchvision.transforms import functional as TF

from crate_mm.analysis.capture import capture
from crate_mm.models import ARCHS, CRATE, ImageClassifier, ImagePreprocessor
from crate_mm.models.heads import POOLS

PARAMETERS = {"tiny": 6_090_856, "small": 13_116_328, "base": 22_796_008, "large": 77_641_192}
MICRO = dict(embed_dim=24, depth=2, num_heads=3)


def classifier(arch=MICRO, pool="cls", num_classes=7, **backbone):
    backbone = {"img_size": 16, "patch_size": 4, **backbone}
    return ImageClassifier(
        backbone=dict(type="CRATE", arch=arch, **backbone),
        head=dict(type="LinearHead", num_classes=num_classes, pool=pool),
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_parameter_counts(arch):
    assert PARAMETERS.keys() == ARCHS.keys()
    with torch.device("meta"):
        model = classifier(arch, num_classes=1000, img_size=224, patch_size=16)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_parameter_gets_a_finite_gradient(arch, pool):
    model = classifier(ARCHS[arch]._replace(depth=2)._asdict(), pool)
    loss = model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), mode="loss")["loss"]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("img_size", "patch_size", "in_channels"), [(8, 2, 1), ((12, 20), 4, 3), ((12, 20), (3, 5), 5), (16, 16, 3)]
)
def test_any_image_patch_and_channels(img_size, patch_size, in_channels):
    model = CRATE(MICRO, img_size, patch_size, in_channels)
    H, W = model.img_size
    h, w = model.embedding.patch_size
    tokens = model(torch.randn(2, in_channels, H, W))
    assert tokens.shape == (2, 1 + (H // h) * (W // w), 24)


def test_step_size_and_lambda_reach_every_layer():
    model = CRATE(MICRO, 16, 4, ista_step_size=0.3, ista_lambda=0.7)
    assert {(b.ista.step_size, b.ista.lambd) for b in model.blocks} == {(0.3, 0.7)}


@pytest.mark.parametrize("arch", ["hug", "Base", dict(embed_dim=24), dict(MICRO, width=3)])
def test_unknown_arch(arch):
    with pytest.raises(ValueError, match=r"unknown arch '\w+': (did you mean base|choose tiny)|arch needs exactly"):
        CRATE(arch)


def test_mean_pooling_is_over_all_tokens():
    model = classifier(pool="mean")
    images = torch.randn(2, 3, 16, 16)
    tokens = model.backbone(images)
    torch.testing.assert_close(model(images), model.head.fc(model.head.norm(tokens.mean(1))))
    assert not torch.equal(model(images), classifier()(images))


def test_modes():
    model, images = classifier().eval(), torch.randn(3, 3, 16, 16)
    labels, ids = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    logits = model(images)
    assert logits.shape == (3, 7)
    (prediction,) = model(images, labels, ids, mode="predict")
    assert torch.equal(prediction["logits"], logits)
    assert torch.equal(prediction["labels"], labels)
    assert torch.equal(prediction["sample_idx"], ids)
    torch.testing.assert_close(
        model(images, labels, mode="loss")["loss"], torch.nn.functional.cross_entropy(logits, labels)
    )
    with pytest.raises(ValueError, match="unknown mode 'train': choose tensor, features, loss, predict"):
        model(images, mode="train")


def test_head_width_follows_the_backbone():
    assert classifier(dict(MICRO, embed_dim=36)).head.fc.in_features == 36


def test_taps_give_each_layers_tokens():
    model, images = classifier(), torch.randn(2, 3, 16, 16)
    plain = model(images)
    with capture(model) as seen:
        tapped = model(images)
        model(images)  # a second pass starts afresh
    assert torch.equal(tapped, plain)
    assert {tap: len(values) for tap, values in seen.items()} == dict(tap_w=2, tap_half=2, tap_out=2)
    z = model.backbone.embedding(images)
    for layer, block in enumerate(model.backbone.blocks):
        w = block.mssa.proj(block.norm_mssa(z))
        half = z + block.mssa(block.norm_mssa(z))
        z = block.ista(block.norm_ista(half))
        torch.testing.assert_close(seen["tap_w"][layer], w)
        torch.testing.assert_close(seen["tap_half"][layer], half)
        torch.testing.assert_close(seen["tap_out"][layer], z)


def test_capture_leaves_no_hook_behind():
    model = classifier()
    with pytest.raises(ValueError, match="expected images"), capture(model):
        model(torch.randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match="Linear has no tap"), capture(torch.nn.Linear(2, 2)):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_preprocessor_is_to_tensor_and_normalize():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    data = ImagePreprocessor(mean, std)({"inputs": images, "labels": torch.tensor([1, 2])})
    torch.testing.assert_close(data["inputs"], TF.normalize(images / 255, mean, std), rtol=1e-5, atol=1e-6)
    assert data["labels"].tolist() == [1, 2]
    assert not ImagePreprocessor(mean, std).state_dict()


@pytest.mark.parametrize("images", [torch.rand(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)])
def test_preprocessor_refuses_other_images(images):
    with pytest.raises(ValueError, match="expected uint8 images of shape"):
        ImagePreprocessor()({"inputs": images})


def test_state_dict_keys_are_a_contract():
    keys = {key.replace("blocks.0", "blocks.N") for key in classifier(dict(MICRO, depth=1)).state_dict()}
    block = "backbone.blocks.N."
    assert keys == {
        "backbone.embedding.cls_token",
        "backbone.embedding.pos_embed",
        *(f"backbone.embedding.{m}.{p}" for m in ("patch_norm", "proj", "norm") for p in ("weight", "bias")),
        *(f"{block}{m}.{p}" for m in ("norm_mssa", "norm_ista", "mssa.out") for p in ("weight", "bias")),
        f"{block}mssa.proj.weight",
        f"{block}ista.dictionary",
        *(f"head.{m}.{p}" for m in ("norm", "fc") for p in ("weight", "bias")),
    }
