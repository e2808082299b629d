"""Images keep the order that they have in memory from decoding to the patch embedding, and all numbers stay."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from crate_mm.datasets import ClassificationDataset, ImageNet, collate
from crate_mm.engine import Runner, load_config, read_checkpoint
from crate_mm.models import ImageClassifier, ImagePreprocessor
from crate_mm.registry import FUNCTIONS, head_for
from tests.training import assert_identical

FUNCTIONS.register_module(name="transposing_collate", module=default_collate)
FLIP = dict(type="RandomHorizontalFlip")
FORMS = {
    "decoded and resized": [dict(type="DecodeResize", size=24), dict(type="CenterCrop", size=16)],
    "PIL": [dict(type="Resize", size=24), dict(type="CenterCrop", size=16)],
    "torchvision's crop": [dict(type="RandomResizedCrop", size=(16, 20)), FLIP],
    "fast decoder": [dict(type="DecodeRandomResizedCrop", size=(16, 20)), FLIP],
    "crop of a tensor": [dict(type="DecodeRandomResizedCrop", size=24), dict(type="CenterCrop", size=16)],
}


def channels_last(images: torch.Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_lies_in_memory_as_its_images_do(image_tree, form):
    data = ClassificationDataset(ImageNet(str(image_tree)), FORMS[form])
    samples = [data[i, i] for i in range(4)]
    batch, plain = collate(samples), default_collate(samples)
    assert channels_last(batch["inputs"])
    assert not channels_last(plain["inputs"])
    assert_identical(batch, plain)
    assert not any(batch["inputs"].data_ptr() == sample["inputs"].data_ptr() for sample in samples)


def test_a_worker_hands_the_order_on(image_tree):
    data = ClassificationDataset(ImageNet(str(image_tree)), FORMS["fast decoder"])
    keys = [(i, i) for i in range(4)]
    (batch,) = DataLoader(data, 4, sampler=keys, num_workers=1, collate_fn=collate)
    assert channels_last(batch["inputs"])
    assert_identical(batch, default_collate([data[key] for key in keys]))


@pytest.mark.parametrize(
    "samples",
    [
        [{"inputs": torch.full((3, 4, 5), i, dtype=torch.uint8)} for i in range(2)],
        [{"inputs": torch.full((16,), float(i)), "name": "a"} for i in range(2)],
        [{"wave": torch.full((16,), float(i))} for i in range(2)],
        [{"inputs": torch.rand(3, 4, 5).permute(2, 0, 1), "labels": i} for i in range(2)],  # not an image's at all
    ],
)
def test_a_users_samples_of_any_kind_are_pytorchs_batch(samples):
    assert_identical(collate(samples), default_collate(samples))


def test_images_of_both_orders_make_one_batch():
    first = torch.randint(256, (5, 6, 3), dtype=torch.uint8).permute(2, 0, 1)
    samples = [{"inputs": image} for image in (first, first.contiguous())]
    for mixed in (samples, samples[::-1]):
        assert_identical(collate(mixed), default_collate(mixed))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_preprocessor_gives_the_same_numbers_in_either_order(channels):
    images = torch.randint(256, (3, 5, 7, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    preprocessor = ImagePreprocessor((0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels])
    plain = (images.contiguous() - preprocessor.mean) * preprocessor.scale
    assert preprocessor.normalize(images).is_contiguous()
    assert torch.equal(preprocessor.normalize(images), plain)
    preprocessor.channels_last = True
    kept = preprocessor.normalize(images)
    assert channels_last(kept)
    assert torch.equal(kept, plain)
    assert torch.equal(preprocessor.normalize(images.contiguous()), plain)


@pytest.mark.parametrize("backbone", ["CRATE", "CRATEAlpha", "CRATEMAE", "ToST", "ViT"])
def test_a_backbone_gets_the_order_that_it_takes(backbone):
    """Convolutions round otherwise in another order, so that they get the one that their figures are of."""
    arch = dict(embed_dim=24, depth=1, num_heads=3)
    head = dict(type="LinearHead", num_classes=3, **head_for(backbone))
    model = ImageClassifier(dict(type=backbone, img_size=32, arch=arch), head).eval()
    images, seen = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        given = [model(model.data_preprocessor({"inputs": each})["inputs"]) for each in (images, images.contiguous())]
    assert [channels_last(each) for each in seen] == [backbone == "CRATE", False]
    assert torch.equal(*given)


@pytest.mark.slow
def test_training_is_bit_identical(image_tree, tmp_path):
    def trained(collate_fn: str) -> dict:
        options = {"data_root": str(image_tree), "global_batch_size": 6, "train_cfg.max_epochs": 2}
        cfg = load_config("crate_tiny_in1k", options)
        cfg.model.update(batch_augments=[dict(type="BatchRandomErasing", p=0.9), dict(type="MixUp")])
        cfg.model.head.num_classes = 3
        cfg.model.backbone.update(arch=dict(embed_dim=24, depth=1, num_heads=3), img_size=32, patch_size=8)
        cfg.train_dataloader.update(num_workers=0, collate_fn=dict(type=f"crate_mm.{collate_fn}"))
        cfg.train_dataloader.dataset.transforms[0].size = 32
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.work_dir = str(tmp_path / collate_fn)
        runner, losses = Runner.from_cfg(cfg), []
        step = runner.model.train_step
        runner.model.train_step = lambda *args, **kwargs: losses.append(step(*args, **kwargs)) or losses[-1]
        runner.train()
        return {"losses": losses, "weights": read_checkpoint(tmp_path / collate_fn / "epoch_2.pth")["state_dict"]}

    kept = trained("collate")
    assert len(kept["losses"]) == 4
    assert_identical(kept, trained("transposing_collate"))
