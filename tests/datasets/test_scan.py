"""Training, testing, prediction and packing see the same files of a folder."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger
from PIL import Image

from crate_mm.datasets import ClassFolders, ImageFiles, ImageNet, PackedImages
from crate_mm.datasets.folders import ImageFolder, split_positions
from crate_mm.datasets.images import IMAGE_SUFFIXES, open_image
from crate_mm.datasets.scan import find_splits, is_ignored, is_image

# What is written into class folders: a good name of an image, or what is none.
IMAGES = st.builds(
    lambda stem, end: stem + end,
    st.sampled_from(["a", "b c", "d.e", "é", "g,h"]),
    st.sampled_from([".jpg", ".JPG", ".jfif", ".png", ".Gif", ".bmp", ".webp", ".tif", ".avif", ".jpeg"]),
)
OTHERS = st.sampled_from(
    ["._a.jpg", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "a.txt", "b.heic", "no_ending", "jpg", "a.jpg~"]
)
LEFT_FOLDERS = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN"]


@pytest.fixture
def said(caplog):
    """What is logged, MMEngine's way."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.removeHandler(caplog.handler)


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_image(path.name) and not is_ignored(path.name):
        kind = Image.registered_extensions()[path.suffix.lower()]
        Image.new("RGB", (4, 3), (200, 30, 60)).save(path, "JPEG" if kind == "MPO" else kind)
    else:
        path.write_bytes(b"\0\5\x16\7Mac OS X")


@settings(max_examples=15, deadline=None)
@given(
    names=st.lists(IMAGES | OTHERS, unique_by=lambda name: name.lower(), max_size=6),
    left=st.sets(st.sampled_from(LEFT_FOLDERS)),
)
def test_every_reader_sees_the_same_images(tmp_path_factory, names, left):
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for name in ["one.jpg", "two.jpg", *names]:
            write(root / split / "cat" / name)
            write(root / split / "dog" / "below" / name)
        for folder in left:
            for place in (root / split, root / split / "cat"):
                (place / folder).mkdir()
                shutil.copy(root / split / "cat/one.jpg", place / folder / "copy.jpg")
    wanted = {Path(place, name) for place in ("cat", "dog/below") for name in ["one.jpg", "two.jpg", *names]}
    wanted = sorted(path for path in wanted if is_image(path.name) and not path.name.startswith("."))
    readers = [ImageFolder(root / "train"), ImageNet(root, "train"), ClassFolders(root, "train")]
    for reader in readers:
        assert reader.classes == ["cat", "dog"]
    readers.append(ImageFiles(root / "train"))
    for reader in readers:
        found = sorted(Path(reader.path(i)).relative_to(root / "train") for i in range(len(reader)))
        assert found == wanted
        assert all(reader[i][0].size == (4, 3) for i in range(len(reader)))


def test_all_endings_that_are_listed_are_read(tmp_path):
    """And those that torchvision takes, and what phones and browsers save, are among them."""
    assert {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"} <= set(IMAGE_SUFFIXES)
    assert {".jfif", ".gif", ".jpe", ".mpo"} <= set(IMAGE_SUFFIXES)
    for suffix in IMAGE_SUFFIXES:
        kind = Image.registered_extensions()[suffix]
        file, mode = tmp_path / f"image{suffix}", "F" if suffix == ".pfm" else "RGB"
        Image.new(mode, (4, 3)).save(file, "JPEG" if kind == "MPO" else kind)
        assert open_image(file).size == (4, 3), suffix


def test_what_is_left_out_is_counted_in_one_line(tmp_path, said):
    for name in ("a.jpg", "b.txt", "c.TXT", "d.heic", "e", "._f.jpg"):
        write(tmp_path / "cat" / name)
    write(tmp_path / "beside.jpg")
    ImageFolder(tmp_path)
    (line,) = said()
    assert line == (
        f"{tmp_path}: excluded 4 files that are not images (2 .txt, 1 .heic, 1 no extension) and "
        "1 images outside the class folders"
    )


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "val"], {"train": "train", "val": "val"}),
        (["Training", "VALIDATION"], {"train": "Training", "val": "VALIDATION"}),
        (["TRAIN", "valid", "Test"], {"train": "TRAIN", "val": "valid", "test": "Test"}),
        (["train", "dev", ".test", "cats"], {"train": "train", "val": "dev"}),
        (["train", "val", "validation", "Train"], {"train": "train", "val": "val"}),
        (["cats", "dogs"], {}),
    ],
)
def test_splits_are_known_by_their_common_names(tmp_path, folders, splits):
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert {split: path.name for split, path in find_splits(tmp_path).items()} == splits


def test_two_folders_for_one_split_are_refused(tmp_path):
    for folder in ("train", "valid", "Validation"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=r"has 2 folders for the split 'val', Validation, valid: rename the right one"):
        ClassFolders(tmp_path, "val")


def test_the_test_folder_stands_in_for_validation_and_it_is_said(tmp_path, said):
    for split in ("Train", "Test"):
        write(tmp_path / split / "cat" / f"{split}.png")
    assert ClassFolders(tmp_path, "val").path(0).endswith("Test/cat/Test.png")
    assert said() == [f"{tmp_path} has no folder for 'val': using Test"]


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    for vehicle in ("bus", "train"):
        for i in range(5):
            write(tmp_path / vehicle / f"{i}.png")
    with pytest.raises(ValueError, match="has the split folder 'train' but not the other split: .*divided=False"):
        ClassFolders(tmp_path, "train")
    train, val = (ClassFolders(tmp_path, split, divided=False) for split in ("train", "val"))
    assert (train.classes, len(train), len(val)) == (["bus", "train"], 8, 2)


def test_a_share_is_the_same_in_every_run_and_counts_each_class_once():
    """scikit-learn's split of each class, by its size alone."""
    train, val = split_positions(10, 0.2)
    assert sorted(train + val) == list(range(10))
    assert sorted(val) == [2, 8]  # a run of before must find its validation images again
    folders = ClassFolders.__new__(ClassFolders)
    folders.classes, folders.root = [f"c{i}" for i in range(3000)], "x"
    folders.samples = [(f"{c}/{i}", c) for c in range(3000) for i in range(10)]
    kept = folders._share("val", 0.2)
    assert kept[:3] == [("0/2", 0), ("0/8", 0), ("1/2", 1)]
    assert len(kept) == 6000


@pytest.mark.parametrize("reader", [ImageNet, ClassFolders, ImageFiles])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, reader):
    for split in ("train", "val"):
        write(tmp_path / "data" / split / "cat" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(reader("~/data")) == (2 if reader is ImageFiles else 1)


def test_packing_takes_the_same_images(tmp_path, monkeypatch, run_tool):
    """From the home folder, and with a name that is no text."""
    for split in ("Training", "validation"):
        for name in ("a.jpg", "b.JFIF", "._a.jpg", "c.gif", "notes.txt", "caf\udce9.png"):
            write(tmp_path / "data" / split / "cat" / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = run_tool("pack_dataset", "~/data", "~/packed", "--workers", 1)
    assert ran.code == 0, ran.output
    packed = PackedImages("~/packed", "train")
    names = [Path(packed.path(i)).name for i in range(len(packed))]
    assert names == ["a.jpg", "b.JFIF", "c.gif", r"caf\udce9.png"]
    assert not os.path.exists("~")
