"""Backbones, heads and classifier, over every entry of the tables."""

import pytest
import torch
from torchvision.transforms import functional as TF

from crate_mm import Predictor, get_model
from crate_mm.analysis.taps import capture
from crate_mm.models import CRATE, ImageClassifier, ImagePreprocessor, Positions, ViT

MICRO = dict(embed_dim=24, depth=2, num_heads=3)


def classifier(arch=MICRO, pool="cls", num_classes=7, kind="CRATE", freeze_backbone=False, **backbone):
    backbone = {"img_size": 16, "patch_size": 4, **backbone}
    return ImageClassifier(
        backbone=dict(type=kind, arch=arch, **backbone),
        head=dict(type="LinearHead", num_classes=num_classes, pool=pool, norm=kind == "CRATE"),
        freeze_backbone=freeze_backbone,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="hug"), "unknown arch 'hug': choose tiny, small"),
        (dict(img_size=(16, 32), patch_size=(4, 8)), "torchvision's ViT takes square patches"),
        (dict(img_size=(16, 30), patch_size=4), "img_size \\(16, 30\\) is not a whole number of patches of 4"),
        (dict(img_size=18, patch_size=4), "img_size 18 is not a whole number of patches of 4"),
        (dict(arch=dict(MICRO, num_heads=5)), "embed_dim 24 is not divisible by num_heads 5"),
    ],
)
def test_vit_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{"arch": MICRO, **arguments})


def test_vit_reads_an_image_that_is_not_square_row_by_row():
    model, seen = ViT(MICRO, (8, 16), 4).eval(), []
    assert model.resizable()["encoder.pos_embedding"] == Positions((2, 4))
    torch.nn.init.zeros_(model.encoder.pos_embedding)
    model.encoder.dropout.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.zeros(1, 3, 8, 16)
    image[..., 4:8, 8:12] = 1.0  # the third patch of the second row
    assert model(image).shape == (1, 9, 24)
    patches = seen[0][0, 1:] - model.conv_proj.bias
    assert patches.abs().amax(1).nonzero().flatten().tolist() == [6]


def test_vit_refuses_other_images():
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        ViT(MICRO, 8, 4, in_channels=1)(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("img_size", "patch_size", "in_channels"), [(8, 2, 1), ((12, 20), 4, 3), ((12, 20), (3, 5), 5), (16, 16, 3)]
)
def test_any_image_patch_and_channels(img_size, patch_size, in_channels):
    model = CRATE(MICRO, img_size, patch_size, in_channels, ista_step_size=0.3, ista_lambda=0.7)
    assert {(b.sparsify.step_size, b.sparsify.lambd) for b in model.blocks} == {(0.3, 0.7)}
    H, W = model.img_size
    h, w = model.embedding.patch_size
    tokens = model(torch.randn(2, in_channels, H, W))
    assert tokens.shape == (2, 1 + (H // h) * (W // w), 24)


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
    with pytest.raises(ValueError, match="unknown mode 'train': choose loss, predict, tensor, features"):
        model(images, mode="train")


def test_features_are_what_the_head_pools():
    model, images = classifier(pool="mean").eval(), torch.randn(3, 3, 16, 16)
    features = model(images, mode="features")
    assert torch.equal(features, model.backbone(images).mean(1))
    assert torch.equal(model.head.fc(model.head.norm(features)), model(images))


def test_flip_test_averages_probabilities():
    model, images = classifier().eval(), torch.randn(3, 3, 16, 16)
    model.flip_test = True
    (prediction,) = model(images, torch.zeros(3, dtype=torch.long), torch.arange(3), mode="predict")
    mean = (model(images).softmax(-1) + model(images.flip(-1)).softmax(-1)) / 2
    torch.testing.assert_close(prediction["logits"].softmax(-1), mean)
    assert not torch.allclose(mean, model(images).softmax(-1))


@pytest.mark.parametrize("kind", ["CRATE", "ViT"])
def test_a_frozen_backbone_has_no_graph(kind):
    model = classifier(kind=kind, freeze_backbone=True).train()
    assert not any(m.training for m in model.backbone.modules())
    assert model.head.training
    loss = model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), mode="loss")["loss"]
    assert not model.backbone(torch.randn(2, 3, 16, 16)).requires_grad
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), mode="loss")
    assert not [shape for shape in kept if 17 in shape], "no layer's tokens are kept for a backward pass"
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"head.{name}" for name, _ in model.head.named_parameters()}


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
        w = block.compress.proj(block.norm_compress(z))
        half = z + block.compress(block.norm_compress(z))
        z = block.sparsify(block.norm_sparsify(half))
        torch.testing.assert_close(seen["tap_w"][layer], w)
        torch.testing.assert_close(seen["tap_half"][layer], half)
        torch.testing.assert_close(seen["tap_out"][layer], z)


def test_capture_leaves_no_hook_behind():
    model = classifier()
    with pytest.raises(ValueError, match="expected images"), capture(model):
        model(torch.randn(2, 3, 5, 5))
    with (
        pytest.raises(ValueError, match="Linear has no readable layers: its layers must inherit from Layer"),
        capture(torch.nn.Linear(2, 2)),
    ):
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
        *(f"{block}{m}.{p}" for m in ("norm_compress", "norm_sparsify", "compress.out") for p in ("weight", "bias")),
        f"{block}compress.proj.weight",
        f"{block}sparsify.dictionary",
        *(f"head.{m}.{p}" for m in ("norm", "fc") for p in ("weight", "bias")),
    }


@pytest.mark.parametrize("name", ["crate_tiny", "vit_tiny", "tost_tiny_12"])
def test_without_classes_the_model_gives_features(name):
    """What the Linear would take; training and predicting are refused."""
    torch.manual_seed(0)
    model, images = get_model(name, 0, img_size=32), torch.randn(2, 3, 32, 32)
    classifier = get_model(name, 7, img_size=32)
    classifier.load_state_dict(model.state_dict(), strict=False)
    taken = []
    classifier.head.fc.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        classifier(images)
        features = model(images)
    assert features.shape == (2, model.backbone.embed_dim)
    assert torch.equal(features, taken[0])
    for mode in ("loss", "predict"):
        with pytest.raises(ValueError, match=r"the head has num_classes=0, .* set model\.head\.num_classes=N"):
            model(images, labels=torch.tensor([0, 1]), mode=mode)
    with pytest.raises(ValueError, match="Predictor is for classifiers: ImageClassifier predicts no classes"):
        Predictor(model)
