"""Sizes that a file names and no weight of it bounds: they are bounded before memory or time is taken for them."""

import copy

import pytest
import torch
from PIL import Image

from crate_mm import Predictor, init_model
from crate_mm.checkpoints import CheckpointError, check_transforms
from crate_mm.inference.transforms import EvalTransform
from crate_mm.registry import MODELS

TOST = {
    "type": "ImageClassifier",
    "backbone": {"type": "ToST", "arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}, "img_size": 32},
    "head": {"type": "LinearHead", "num_classes": 2},
}


def described(path, img_size, transforms):
    """A checkpoint that says images of a size, on which none of its weights depends."""
    model = copy.deepcopy(TOST)
    state = MODELS.build(copy.deepcopy(model)).state_dict()
    model["backbone"]["img_size"] = img_size
    torch.save({"meta": {"model": model, "test_transforms": transforms}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("img_size", [5696, [1024, 8192]])
def test_a_described_model_of_huge_images_is_refused(tmp_path, img_size):
    with pytest.raises(CheckpointError, match=r"describes a model of images of \d+ x \d+ pixels, more than 4,194,304"):
        init_model(None, described(tmp_path / "x.pth", img_size, []))


DEPTHS = {
    "a depth": {"type": "CRATE", "arch": {"embed_dim": 16, "depth": 10**9, "num_heads": 2}, "drop_path": 0.1},
    "a list of depths": {"type": "CRATE", "depths": [2**20, 1]},
}


@pytest.mark.parametrize("what", DEPTHS)
def test_a_described_depth_is_bounded_before_rates_are_listed_for_it(tmp_path, what):
    path = described(tmp_path / "x.pth", 32, [])
    contents = torch.load(path)
    contents["meta"]["model"]["backbone"] = DEPTHS[what]
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match=r"model whose backbone.*depths? is more than 1,048,576: give a config"):
        init_model(None, path)


def test_large_images_go_through_in_smaller_batches(tmp_path):
    images = [Image.new("RGB", (8, 8))] * 17
    for size, lengths in ((2048, [16, 1]), (32, [17])):
        model = init_model(None, described(tmp_path / f"{size}.pth", size, [{"type": "Resize", "size": [32, 32]}]))
        assert [len(batch) for batch in EvalTransform(model).batches(images, 64)] == lengths


def test_transforms_make_no_larger_images_than_the_model_takes(tmp_path):
    model = init_model(None, described(tmp_path / "x.pth", 32, [{"type": "Resize", "size": [1024, 1040]}]))
    with pytest.raises(ValueError, match="make images of 1024 x 1040 pixels, more than 1,048,576: give transforms"):
        Predictor(model)([Image.new("RGB", (8, 8))])
    larger = [{"type": "Resize", "size": [64, 64]}]  # a user's own are not bounded by the file's
    assert len(Predictor(model, transforms=larger)([Image.new("RGB", (8, 8))])) == 1


BLUR = {"type": "GaussianBlur", "kernel_size": 4095, "sigma": 100.0}
SLOW = {
    "large kernels on large images": [{"type": "Resize", "size": [4096, 4096]}, BLUR],
    "a kernel within": [{"type": "RandomApply", "transforms": [BLUR]}],
    "many": [{"type": "Resize", "size": 4096}, *[{"type": "GaussianBlur", "kernel_size": [9, 9]}] * 20],
    "many large resizes": [{"type": "Resize", "size": 8192}] * 16,
    "resizes within one another": [{"type": "Compose", "transforms": [{"type": "Resize", "size": 1024}] * 1000}],
    "operations of one": [{"type": "RandAugment", "num_ops": 8192}],
    "a kernel by sigma": [{"type": "ElasticTransform", "sigma": 500.0}],
}


@pytest.mark.parametrize("what", SLOW)
def test_transforms_that_take_long_together_are_refused(what):
    with pytest.raises(CheckpointError, match="x.pth was tested with transforms that take too long for an image"):
        check_transforms(SLOW[what], "x.pth")


def test_usual_transforms_are_taken():
    blur = {"type": "GaussianBlur", "kernel_size": 23, "sigma": [0.1, 2.0]}
    check_transforms([{"type": "Resize", "size": 256}, blur, {"type": "CenterCrop", "size": 224}], "x.pth")
    check_transforms([{"type": "Resize", "size": 1024}] * 32, "x.pth")
    check_transforms([{"type": "ElasticTransform"}], "x.pth")
