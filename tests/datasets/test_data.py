"""Sources, transforms and unreadable images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from crate_mm.datasets import ClassificationDataset, Digits, ImageNet, UnreadableImagesError
from crate_mm.registry import TRANSFORMS


def test_imagenet_folder(image_tree):
    train, val = ImageNet(str(image_tree), "train"), ImageNet(str(image_tree), "val")
    assert (len(train), len(val)) == (12, 6)
    assert train.classes == val.classes == ["n00000000", "n00000001", "n00000002"]
    image, label = val[5]
    assert (image.mode, image.size, label) == ("RGB", (40, 30), 2)
    assert train.path(0) == str(image_tree / "train/n00000000/n00000000_0.JPEG")


def test_imagenet_class_names_follow_the_sorted_folders(tmp_path):
    ids = ["n01440764", *(f"n1{i:07d}" for i in range(998)), "n15075141"]
    for wnid in ids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "a.JPEG").touch()
    classes = ImageNet(str(tmp_path), "val").classes
    assert (classes[0], classes[-1], len(classes)) == ("tench", "toilet tissue", 1000)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (None, "is not a folder: expected .*/train/<class>/<image>.JPEG"),
        ("", r"has no folder 'train' \(it contains nothing\)"),
        ("trains/a/b", r"has no folder 'train' \(it contains trains\)"),
        ("train", "has the wrong layout: .*contains no class folder"),
        ("train/n01", "has the wrong layout: .*no image of the classes"),
    ],
)
def test_a_wrong_layout_is_told(tmp_path, layout, message):
    root = tmp_path / "data"
    if layout is not None:
        (root / layout).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"(?i)" + message):
        ImageNet(str(root), "train")


def test_no_data_root():
    with pytest.raises(ValueError, match="data_root is not set"):
        ImageNet(None)


def test_digits_are_scikit_learns():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1347, 450)
    assert not set(train.numbers) & set(test.numbers)
    assert np.bincount([label for _, label in test]).min() >= 43  # stratified
    image, label = test[0]
    assert (image.mode, image.size) == ("L", (8, 8))
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    number = test.numbers[0]
    np.testing.assert_allclose(np.asarray(image).ravel(), pixels[number] * 255 / 16, atol=0.5)
    assert label == labels[number]
    with pytest.raises(ValueError, match="unknown split 'val'"):
        Digits("val")


def test_samples_are_uint8_tensors_with_their_position(image_tree):
    source = dict(type="ImageNet", root=str(image_tree))
    data = ClassificationDataset(source, [dict(type="RandomResizedCrop", size=20), dict(type="RandomHorizontalFlip")])
    batch = next(iter(DataLoader(data, batch_size=12)))
    assert batch["inputs"].dtype == torch.uint8
    assert batch["inputs"].shape == (12, 3, 20, 20)
    assert batch["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch["sample_idx"].tolist() == list(range(12))
    assert batch["unreadable"].tolist() == [-1] * 12


def test_evaluation_transforms_are_the_papers(image_tree):
    source = dict(type="ImageNet", root=str(image_tree), split="val")
    data = ClassificationDataset(source, [dict(type="Resize", size=24), dict(type="CenterCrop", size=20)])
    image = Image.open(data.describe(3)).convert("RGB")
    plain = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(24), torchvision.transforms.CenterCrop(20), torchvision.transforms.PILToTensor()]
    )
    assert torch.equal(data[3]["inputs"], plain(image))


def test_float_transforms_are_refused(image_tree):
    source = dict(type="ImageNet", root=str(image_tree))
    data = ClassificationDataset(source, [dict(type="ToImage"), dict(type="ToDtype", dtype=torch.float32)])
    with pytest.raises(ValueError, match="float32 images: remove ToDtype and Normalize"):
        data[0]


def test_nested_transforms_and_words_for_interpolation():
    nested = dict(type="RandomApply", p=1.0, transforms=[dict(type="Resize", size=4, interpolation="bicubic")])
    data = ClassificationDataset(Digits("test"), [nested])
    expected = v2.functional.resize(Digits("test")[0][0], [4], interpolation=v2.InterpolationMode.BICUBIC)
    assert torch.equal(data[0]["inputs"], v2.functional.pil_to_tensor(expected))


@pytest.mark.parametrize("name", ["RandAugment", "ColorJitter", "TrivialAugmentWide", "MixUp", "GaussianBlur"])
def test_torchvisions_transforms_are_registered(name):
    assert TRANSFORMS.get(name) is getattr(v2, name)


# Unreadable images -------------------------------------------------------------------------------------------------


def break_images(root: Path, *numbers: int, how=lambda b: b[: len(b) // 2]) -> list[str]:
    files = sorted((root / "train").rglob("*.JPEG"))
    for number in numbers:
        files[number].write_bytes(how(files[number].read_bytes()))
    return [str(files[number]) for number in numbers]


@pytest.mark.parametrize("how", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"GIF89a" + b])
def test_the_next_sample_replaces_an_unreadable_one(image_tree, how):
    break_images(image_tree, 3, 11, how=how)
    data = ClassificationDataset(dict(type="ImageNet", root=str(image_tree)))
    assert (data[3]["sample_idx"], data[3]["labels"], data[3]["unreadable"]) == (4, 1, 3)
    assert (data[11]["sample_idx"], data[11]["labels"], data[11]["unreadable"]) == (0, 0, 11)
    assert data[4]["unreadable"] == -1
    assert torch.equal(data[3]["inputs"], data[4]["inputs"])
    assert data[3]["unreadable_reason"]
    assert data[4]["unreadable_reason"] == ""


def test_too_many_in_a_row_stop_with_the_list(image_tree):
    paths = break_images(image_tree, 0, 1, 2)
    data = ClassificationDataset(dict(type="ImageNet", root=str(image_tree)), max_unreadable=2)
    with pytest.raises(
        UnreadableImagesError, match="3 images in a row cannot be read: .*" + ".*".join(paths) + ".*truncated"
    ):
        data[0]
    assert data[1]["sample_idx"] == 3
