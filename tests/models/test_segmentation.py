"""The task Segmentation: sizes, loss, sliding window, refusals."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.datasets import ClassificationDataset, Digits, Scenes, SegmentationDataset
from crate_mm.models import Backbone, InputSpec, LinearDecoder, Segmentation, TokenLayout
from crate_mm.models.backbone import registered_backbones
from crate_mm.models.families.causal import CausalBackbone
from crate_mm.registry import HEADS
from crate_mm.testing import check_task

ARCH = dict(embed_dim=24, depth=2, num_heads=3)
SIZES = dict(arch=ARCH, img_size=16, patch_size=8, in_channels=1)
GRAY = dict(mean=(0.4,), std=(0.25,))


def build(backbone="CRATE", head=None, **options):
    torch.manual_seed(0)
    head = head or dict(type="LinearDecoder", num_classes=11)
    backbone = backbone if isinstance(backbone, dict) else dict(type=backbone)
    return Segmentation({**SIZES, **backbone}, head, preprocessor=GRAY, **options).eval()


def batch(count=3, size=16):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(11, (count, size, size), generator=generator).to(torch.uint8)
    labels[0, :5] = 255
    images = torch.randint(256, (count, 1, size, size), generator=generator).to(torch.uint8)
    return {"inputs": images, "labels": labels, "sample_idx": torch.arange(count)}


def decoders():
    HEADS.names()  # imports crate_mm.models
    return [name for name, kind in HEADS.module_dict.items() if "embed_dim" in inspect.signature(kind).parameters]


@pytest.mark.parametrize("head", decoders())
def test_each_decoder_meets_the_contract(head):
    check_task(build(head=dict(type=head, num_classes=11)), batch())


@pytest.mark.parametrize("backbone", ["CRATE", "CRATEAlpha", "CRATEMAE", "ToST", "CBT", "AoT", "ViT"])
def test_each_backbone_with_a_grid_meets_the_contract(backbone):
    check_task(build(backbone), batch())


def test_the_backbones_of_the_test_above_are_all_of_the_package():
    kinds = registered_backbones()
    own = {name for name in kinds if kinds[name].__module__.startswith("crate_mm.models")}
    own = {name for name in own if not issubclass(kinds[name], CausalBackbone)}  # of text
    assert own == {"CRATE", "CRATEAlpha", "CRATEMAE", "ToST", "CBT", "AoT", "ViT"}


@pytest.mark.parametrize("backbone", [dict(type="CRATE"), dict(type="ToST"), dict(type="ViT", registers=2)])
def test_the_logits_are_the_decoders_enlarged_bilinearly(backbone):
    """The tokens before the patches are not as many in the layers: ToST has no CLS token there, a ViT has registers."""
    task, images = build(backbone), torch.randn(2, 1, 16, 16)
    tokens = task.backbone(images)
    assert tokens.shape == (2, 5, 24)
    masks = task.head(tokens[:, 1:], (2, 2))
    assert masks.shape == (2, 11, 2, 2)
    patch = F.linear(task.head.norm(tokens[1, 3]), task.head.fc.weight, task.head.fc.bias)
    torch.testing.assert_close(masks[1, :, 1, 0], patch)
    expected = F.interpolate(masks, (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(task(images), expected)


@pytest.mark.parametrize("backbone", ["CRATE", "ViT"])
def test_images_may_have_any_size(backbone):
    task = build(backbone)
    assert task(torch.randn(2, 1, 24, 40)).shape == (2, 11, 24, 40)
    images = torch.randn(2, 1, 21, 17)
    padded = torch.zeros(2, 1, 24, 24)
    padded[..., :21, :17] = images
    assert torch.equal(task(images), task(padded)[..., :21, :17])
    assert task(images, mode="features").shape == (2, 24)


def test_the_loss_is_the_mean_over_labelled_pixels():
    task, data = build(), batch()
    inputs = task.data_preprocessor(data)
    logits, labels = task(inputs["inputs"]), data["labels"]
    log_p, known = logits.log_softmax(1), labels != 255
    picked = log_p.gather(1, torch.where(known, labels, 0).long()[:, None])[:, 0]
    torch.testing.assert_close(task(**inputs, mode="loss")["loss"], -picked[known].mean())
    assert task.count(data) == 3 * 16 * 16 - 5 * 16
    data["labels"].fill_(255)
    assert task(**task.data_preprocessor(data), mode="loss")["loss"] == 0


# Sliding window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [16, 24, (16, 40), 100])
def test_a_window_that_covers_the_image_is_the_whole_image(window):
    images = torch.randn(2, 1, 16, 16)
    task = build(window=window)
    assert torch.equal(task.logits(images), task(images))


def test_windows_without_overlap_are_separate_images():
    task, images = build(window=16), torch.randn(1, 1, 32, 48)
    logits = task.logits(images)
    for top in (0, 16):
        for left in (0, 16, 32):
            part = square(images, top, left, 16)
            torch.testing.assert_close(square(logits, top, left, 16), task(part))


def square(images, top, left, side):
    return images[..., top : top + side, left : left + side]


def test_logits_are_averaged_where_windows_overlap():
    """Of 21 pixels, windows of 16 with a stride of 8 begin at 0 and 5; of 32 at 0, 8 and 16."""
    task, images = build(window=16, stride=8).double(), torch.randn(1, 1, 21, 32, dtype=torch.float64)
    total, count = torch.zeros(11, 21, 32, dtype=torch.float64), torch.zeros(21, 32, dtype=torch.float64)
    for top in (0, 5):
        for left in (0, 8, 16):
            total[:, top : top + 16, left : left + 16] += task(square(images, top, left, 16))[0]
            count[top : top + 16, left : left + 16] += 1
    assert count.min() == 1
    assert count.max() == 4
    torch.testing.assert_close(task.logits(images)[0], total / count, rtol=1e-12, atol=1e-12)


class Pointwise(Backbone):
    """A token for each patch of 4 x 4 pixels: its mean. It does not look at other patches."""

    embed_dim = 2

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(1, 2)

    @property
    def input_spec(self):
        return InputSpec(1, (8, 8), any_size=True)

    def layout(self, inputs):
        return TokenLayout(0, inputs.shape[-2] // 4, inputs.shape[-1] // 4)

    def forward(self, images):
        return self.proj(F.avg_pool2d(images, 4).flatten(2).mT)


def test_the_sliding_window_equals_the_whole_image_where_patches_are_independent():
    """Away from the windows' edges, where the enlargement sees no neighbor."""
    decoder = LinearDecoder(2, 3)
    task = Segmentation(Pointwise(), decoder, window=(16, 16), stride=(8, 8), preprocessor=GRAY).eval()
    images = torch.randn(1, 1, 16, 32)
    whole, windows = task(images), task.logits(images)
    assert torch.equal(windows[..., :6], whole[..., :6])
    assert torch.equal(windows[..., -6:], whole[..., -6:])
    assert not torch.equal(windows, whole)


def test_predictions_have_the_size_of_the_masks():
    task, data = build(window=16, stride=8), batch(2, 24)
    data["labels"] = torch.zeros(2, 48, 48, dtype=torch.uint8)
    (result,) = task(**task.data_preprocessor(data), mode="predict")
    logits = task.logits(task.data_preprocessor(data)["inputs"])
    enlarged = F.interpolate(logits, (48, 48), mode="bilinear", align_corners=False)
    assert torch.equal(result["predicted"], enlarged.argmax(1).to(torch.uint8))
    del data["labels"]
    assert task(**task.data_preprocessor(data), mode="predict")[0]["predicted"].shape == (2, 24, 24)


# Refusals -------------------------------------------------------------------------------------------------------------


class NoGrid(Pointwise):
    def layout(self, inputs):
        return None


def test_refused_models():
    with pytest.raises(ValueError, match="NoGrid does not define its grid of patches: its layout is None"):
        Segmentation(NoGrid(), LinearDecoder(2, 3), preprocessor=GRAY)
    with pytest.raises(ValueError, match="the head LinearHead is not a mask decoder: use LinearDecoder"):
        build(head=dict(type="LinearHead", num_classes=3))
    with pytest.raises(ValueError, match=r"stride \(17, 17\) must be at least 1 and at most the window, \(16, 16\)"):
        build(window=16, stride=17)
    with pytest.raises(ValueError, match="stride needs a window"):
        build(stride=16)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        LinearDecoder(24, 0)


def test_refused_data():
    task, scenes = build(), SegmentationDataset(Scenes(length=2, size=16))
    task.check_data(scenes, "train")
    with pytest.raises(ValueError, match="gives no masks: expected labels"):
        task.check_data(ClassificationDataset(Digits()), "train")
    wrong = build(head=dict(type="LinearDecoder", num_classes=3))
    with pytest.raises(ValueError, match=r"the data has 11 classes .* the head 3: set --cfg-options"):
        wrong.check_data(scenes, "train")
    image, labels = scenes.images.load(0)
    scenes.images.load = lambda index: (image, labels + 1)
    with pytest.raises(
        ValueError,
        match="the mask of scene 0 of train has the value 11, which is class 11, but the classes are 0 to 10",
    ):
        task.check_data(scenes, "train")


def test_a_frozen_backbone_gets_no_gradient():
    task = build(freeze_backbone=True).train()
    task(**task.data_preprocessor(batch()), mode="loss")["loss"].backward()
    assert not task.backbone.training
    assert all(p.grad is None for p in task.backbone.parameters())
    assert all(p.grad is not None for p in task.head.parameters())
