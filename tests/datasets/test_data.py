"""Sources, transforms, unreadable images, and which samples make a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from crate_mm.datasets import ClassificationDataset, Digits, GlobalBatchSampler, ImageNet, UnreadableImagesError
from crate_mm.registry import DATASETS, TRANSFORMS


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
        Image.new("RGB", (2, 2)).save(tmp_path / "val" / wnid / "a.JPEG")
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


def test_fake_images_for_benchmarks():
    data = ClassificationDataset(dict(type="FakeData", size=5, image_size=(3, 16, 16), num_classes=4))
    assert data.metainfo == {"classes": ["0", "1", "2", "3"]}
    assert data[0]["inputs"].shape == (3, 16, 16)


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


# Batches -----------------------------------------------------------------------------------------------------------


def as_rank(sampler, rank, world_size):
    sampler.rank, sampler.world_size = rank, world_size
    return sampler


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 12])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size, shuffle):
    def batches(world_size):
        ranks = [as_rank(GlobalBatchSampler(range(100), 12, 3, shuffle), r, world_size) for r in range(world_size)]
        parts = [list(s) for s in ranks]
        shares = [12 // world_size + (rank < 12 % world_size) for rank in range(world_size)]
        assert [len(part) for part in parts] == [len(s) for s in ranks] == [8 * n for n in shares]
        dealt = [[pair for part, n in zip(parts, shares) for pair in part[i * n : (i + 1) * n]] for i in range(8)]
        assert {len(batch) for batch in dealt} == {len(set(batch)) for batch in dealt} == {12}
        return [set(batch) for batch in dealt]

    assert batches(world_size) == batches(1)
    assert len(set().union(*batches(1))) == 96


def test_epochs_and_seeds_differ_and_repeat():
    def draw(seed, epoch):
        sampler = GlobalBatchSampler(range(100), 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (256, 0), (2**24, 0)]}) == 6
    assert dict(draw(0, 0))[5] != dict(draw(0, 1))[5]  # another augmentation


def test_a_dataset_smaller_than_a_batch():
    with pytest.raises(ValueError, match="global_batch_size 2048 is more than the 100 training samples"):
        GlobalBatchSampler(range(100), 2048)


@pytest.mark.parametrize("workers", [1, 2])
def test_augmentation_depends_on_seed_and_sample_not_on_workers(image_tree, workers):
    transforms = [dict(type="RandomResizedCrop", size=8), dict(type="RandAugment")]
    data = ClassificationDataset(dict(type="ImageNet", root=str(image_tree)), transforms)

    def load(epoch, workers):
        sampler = GlobalBatchSampler(data, 12, seed=0)
        sampler.set_epoch(epoch)
        loader = DataLoader(data, batch_size=3, sampler=sampler, num_workers=workers)
        return torch.cat([batch["inputs"] for batch in loader])

    assert torch.equal(load(0, workers), load(0, 0))
    assert not torch.equal(load(0, 0).sort(0).values, load(1, 0).sort(0).values)


def test_plain_torch_datasets_are_sources():
    data = ClassificationDataset([(Image.new("L", (4, 4)), 1)])
    assert data.classes is None
    assert data[0]["labels"] == 1
    assert data.describe(0) == "sample 0 of list"
    assert issubclass(DATASETS.get("ImageFolder"), torchvision.datasets.ImageFolder)
