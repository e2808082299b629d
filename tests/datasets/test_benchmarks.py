"""The transfer datasets, in their published formats, read by torchvision."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_mm.datasets import ClassFolders, ImageFiles
from crate_mm.registry import DATASETS
from tests import dataset_formats as formats

# Class, arguments, number of tiny samples, classes, mode and size of an image.
SPLITS = [
    ("CIFAR10", dict(train=True), 20, 10, "RGB", (32, 32)),
    ("CIFAR10", dict(train=False), 4, 10, "RGB", (32, 32)),
    ("CIFAR100", dict(train=True), 20, 100, "RGB", (32, 32)),
    ("CIFAR100", dict(train=False), 20, 100, "RGB", (32, 32)),
    ("Flowers102", dict(split="train"), 20, 102, "RGB", (40, 30)),
    ("Flowers102", dict(split="test"), 20, 102, "RGB", (40, 30)),
    ("OxfordIIITPet", dict(split="trainval"), 37, 37, "RGB", (40, 30)),
    ("OxfordIIITPet", dict(split="test"), 37, 37, "RGB", (40, 30)),
    ("FashionMNIST", dict(train=True), 40, 10, "L", (28, 28)),
    ("FashionMNIST", dict(train=False), 20, 10, "L", (28, 28)),
]
NAMES = sorted({row[0] for row in SPLITS})


@pytest.mark.parametrize(("name", "split", "count", "classes", "mode", "size"), SPLITS)
def test_torchvision_reads_the_published_format(tmp_path, monkeypatch, name, split, count, classes, mode, size):
    formats.WRITERS[name](tmp_path, monkeypatch.setattr)
    dataset = DATASETS.build(dict(type="ClassificationDataset", source=dict(type=name, root=tmp_path, **split)))
    assert len(dataset) == count
    assert len(dataset.classes) == classes
    image, label = dataset.source[count - 1]
    assert (image.mode, image.size) == (mode, size)
    assert isinstance(label, int)
    assert {label for _, label in dataset.source} <= set(range(classes))
    sample = dataset[0]
    assert sample["inputs"].shape == (3 if mode == "RGB" else 1, size[1], size[0])
    assert dataset.describe(0)


def test_cifar_pixels_are_channels_first(tmp_path, monkeypatch):
    formats.cifar10(tmp_path, monkeypatch.setattr)
    stored = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    source = DATASETS.build(dict(type="CIFAR10", root=tmp_path, train=False))
    assert np.array_equal(np.asarray(source[2][0]), stored["data"][2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert source[2][1] == stored["labels"][2]
    assert source.classes[3] == "label 3"


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_is_told(tmp_path, name):
    message = rf"{name} is missing or incomplete in data_root {tmp_path}: expected {tmp_path}/.*, from .*download=True"
    with pytest.raises(ValueError, match=message):
        DATASETS.build(dict(type=name, root=str(tmp_path)))
    with pytest.raises(ValueError, match=f"data_root is not set: give the folder that holds {name}'s"):
        DATASETS.build(dict(type=name, root=None))


def test_damaged_data_is_told(tmp_path, monkeypatch):
    formats.cifar10(tmp_path, monkeypatch.setattr)
    with open(tmp_path / "cifar-10-batches-py" / "test_batch", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"CIFAR10 is missing or incomplete in data_root"):
        DATASETS.build(dict(type="CIFAR10", root=tmp_path))


def test_download_is_passed_on(tmp_path, monkeypatch):
    from torchvision.datasets import cifar

    def fetch(url, root, **kwargs):
        assert url.startswith("https://")
        formats.cifar10(Path(root), monkeypatch.setattr)

    monkeypatch.setattr(cifar, "download_and_extract_archive", fetch)
    assert len(DATASETS.build(dict(type="CIFAR10", root=tmp_path, download=True))) == 20

    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", fail)
    with pytest.raises(ValueError, match="CIFAR10 cannot be downloaded: no network"):
        DATASETS.build(dict(type="CIFAR10", root=tmp_path / "other", download=True))


def test_a_folder_is_split_by_a_fraction(tmp_path):
    formats.image_folder(tmp_path, classes=3, per_class=10)
    train, val = ClassFolders(str(tmp_path), "train", 0.3), ClassFolders(str(tmp_path), "val", 0.3)
    assert train.classes == val.classes == ["class 0", "class 1", "class 2"]
    assert (len(train), len(val)) == (21, 9)
    assert [val.targets.count(c) for c in range(3)] == [3, 3, 3]
    assert {path for path, _ in train.samples} | {path for path, _ in val.samples} == set(
        map(str, tmp_path.rglob("*.jpg"))
    )
    assert ClassFolders(str(tmp_path), "val", 0.3).samples == val.samples
    assert val[4][1] == val.targets[4]
    assert Path(val.path(4)).parent.name == f"class {val.targets[4]}"


def test_a_folder_is_split_by_folders(tmp_path):
    formats.image_folder(tmp_path / "train", classes=2, per_class=5)
    formats.image_folder(tmp_path / "val", classes=2, per_class=2)
    assert (len(ClassFolders(str(tmp_path), "train")), len(ClassFolders(str(tmp_path), "val"))) == (10, 4)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ([], dict(root="{root}/nowhere"), "is not a folder: expected"),
        ([], dict(root=None), "data_root is not set"),
        ([], dict(root="{root}"), "has the wrong layout"),
        (["train/a/1.jpg"], dict(root="{root}"), "has the split folder 'train' but not the other split"),
        (["a/1.jpg", "b/1.jpg", "b/2.jpg"], dict(root="{root}"), "class 'a' of .* has one image"),
        (["a/1.jpg", "a/2.jpg"], dict(root="{root}", val_fraction=1.5), "val_fraction must be between 0 and 1"),
        (["a/1.jpg"], dict(root="{root}", split="test"), "unknown split 'test': choose train, val"),
    ],
)
def test_a_wrong_folder_is_told(tmp_path, files, arguments, message):
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    if arguments["root"]:
        arguments = {**arguments, "root": arguments["root"].format(root=tmp_path)}
    with pytest.raises(ValueError, match=message):
        ClassFolders(**arguments)


def test_images_without_labels(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("L", (5, 4)).save(tmp_path / "deep" / "er" / "b.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "a.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    files = ImageFiles(str(tmp_path))
    assert [Path(files.path(i)).name for i in range(len(files))] == ["a.JPG", "b.png"]
    assert [(files[i][0].mode, files[i][1]) for i in range(2)] == [("RGB", -1), ("RGB", -1)]
    assert ImageFiles(str(tmp_path), channels=1)[0][0].mode == "L"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in"):
        ImageFiles(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is not a folder"):
        ImageFiles(str(tmp_path / "nowhere"))
    for name, content in (("ImageFiles", "of the images"), ("ImageFolder", "that holds the class folders")):
        with pytest.raises(ValueError, match=f"data_root is not set: give the folder {content}"):
            DATASETS.build(dict(type=name, root=None))  # as a config without data_root builds it
