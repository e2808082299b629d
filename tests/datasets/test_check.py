"""What is found in data: counts, classes that differ, and images that are odd."""

import shutil

import numpy as np
import pytest
from PIL import Image

from crate_mm.datasets.sources import Digits
from crate_mm.extras.dataset_check import check_sources, open_root
from tests.conftest import make_image_tree


def found(root, sample=None):
    findings = list(check_sources(open_root(root), sample))
    return {topic: (level, text) for level, topic, text in findings}


@pytest.fixture
def data(tmp_path):
    return make_image_tree(tmp_path / "data", classes=3, train=5, val=2)


def test_a_tree_without_faults(data):
    told = found(data)
    assert told["train"] == ("ok", "15 images in 3 classes")
    assert told["val, classes"] == ("ok", "2 images per class")
    assert told["read"] == ("ok", "21 of 21 images")
    assert told["broken"] == ("ok", "none")
    assert told["size"] == ("ok", "shorter side from 30 to 30 pixels, median size 40 x 30")
    assert told["duplicates"] == ("ok", "none among the images read")
    assert {level for topic, (level, _) in told.items() if topic != "tiny"} == {"ok"}
    assert found(data, 4)["read"] == ("ok", "8 of 21 images (--all reads all)")


def test_oddities_are_named(data):
    train, val = data / "train", data / "val"
    one, two, three, *_ = sorted((train / "n00000000").iterdir())
    one.write_bytes(two.read_bytes()[:300])
    Image.new("RGB", (64, 9), "red").save(three)
    shutil.copy(two, val / "n00000000" / "copy.JPEG")
    shutil.copy(two, train / "n00000001" / "copy.JPEG")
    (train / "n00000002" / "notes.txt").write_text("no image")
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 255, (50, 60), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(train / "n00000002" / "turned.jpg", exif=exif)
    told = found(data)
    assert told["train, classes"] == ("ok", "from 5 images (n00000000) to 6 (n00000001)")
    assert told["train, excluded"] == ("note", "1 files that are not images: 1 .txt")
    assert told["broken"][0] == "note"
    assert told["broken"][1].startswith(f"1: {one} (")
    assert told["tiny"][1].startswith("shorter side below 32 pixels: ")
    assert str(three) in found(data)["tiny"][1]
    assert told["size"][1].startswith("shorter side from 9 to 50 pixels")
    assert told["colors"][1] == "22 RGB, 1 L; converted"
    assert told["orientation"] == (
        "note",
        f"the EXIF rotation is ignored: 1: {train / 'n00000002' / 'turned.jpg'}",
    )
    for topic in ("in several splits", "in several classes"):
        assert told[topic][0] == "note"
        assert told[topic][1].startswith(f"the same file, 1: {two} = {train / 'n00000001' / 'copy.JPEG'} = ")
    assert told["duplicates"] == ("note", "2 among the images read")


def test_classes_that_differ_are_a_fault(data):
    (data / "val" / "n00000002").rename(data / "val" / "n00000009")
    assert found(data)["classes"] == (
        "fault",
        "val and train differ: n00000002 only in train; n00000009 only in val",
    )


def test_more_broken_images_than_a_run_takes_are_a_fault(tmp_path):
    data = make_image_tree(tmp_path / "data", classes=1, train=102, val=1)
    for file in (data / "train" / "n00000000").iterdir():
        file.write_bytes(b"")
    level, text = found(data)["broken"]
    assert level == "fault"
    assert text.endswith("and 97 more; a run stops at more than 100")


def test_folders_of_classes_alone_and_what_is_no_data(data, tmp_path):
    assert found(data / "train")["all"] == ("ok", "15 images in 3 classes")
    with pytest.raises(ValueError, match="is not a folder"):
        open_root(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no class folder"):
        open_root(tmp_path / "empty")


def test_sources_that_are_no_files():
    told = {topic: text for _, topic, text in check_sources({"train": Digits("train"), "test": Digits("test")}, 20)}
    assert told["test"] == "450 images in 10 classes"
    assert told["colors"] == "40 L; converted"


@pytest.mark.parametrize("deeper", ["dataset", "download/dataset"])
def test_a_folder_too_deep_will_not_work(data, tmp_path, deeper):
    """It reads as one class, of all the images."""
    (tmp_path / "above" / deeper).parent.mkdir(parents=True)
    shutil.move(data, tmp_path / "above" / deeper)
    told = [one for one in check_sources(open_root(tmp_path / "above")) if one[0] == "fault"]
    text = f"the only class, {deeper}, has 2 folders and no image: use {tmp_path / 'above' / deeper}"
    assert told == [("fault", "all, classes", f"{text} as the data folder")]
    classes = tmp_path / "above" / deeper / "train"
    told = [one for one in check_sources(open_root(classes)) if one[0] == "fault"]
    assert told == []


def test_a_single_class_of_images_may_have_folders(data):
    shutil.move(data / "train", data / "val" / "n00000000")
    for other in ("n00000001", "n00000002"):
        shutil.rmtree(data / "val" / other)
    assert {level for level, _, _ in check_sources(open_root(data / "val"))} <= {"ok", "note"}
