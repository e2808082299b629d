"""Images with masks: files, refusals, transforms that move both, sources, and scenes."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm.datasets import ADE20K, Cityscapes, MaskFolders, Scenes, SegmentationDataset, VOCSegmentation
from crate_mm.datasets.images import UnreadableImageError
from crate_mm.datasets.masks import overlay, palette, read_mask, to_palette_image
from crate_mm.extras.dataset_check import check_sources, open_root
from crate_mm.registry import DATASETS
from tests.dataset_formats import MASK as LABELS
from tests.dataset_formats import WRITERS, write_pairs


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four images of 3 x 2 pixels with masks of three classes."""
    return write_pairs(tmp_path, 4, LABELS)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_masks_values_are_its_labels_whatever_the_format(tmp_path):
    indexed = to_palette_image(LABELS)
    assert indexed.mode == "P"
    assert read_mask(save(indexed, tmp_path / "p.png")).tolist() == LABELS.tolist()
    assert read_mask(save(Image.fromarray(LABELS), tmp_path / "l.png")).tolist() == LABELS.tolist()
    wide = LABELS.astype(np.uint16) * 200
    assert read_mask(save(Image.fromarray(wide), tmp_path / "16.png")).tolist() == wide.tolist()
    assert read_mask(save(Image.fromarray(LABELS == 1), tmp_path / "1.png")).tolist() == (LABELS == 1).tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_is_not_scaled(tmp_path, bits):
    """PIL gives 85 and 17 for the value 1."""
    rows = b"".join(b"\0" + bytes([0b01_10_11_00 if bits == 2 else 0x12, *([] if bits == 2 else [0x30])]) for _ in "ab")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "few.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert read_mask(tmp_path / "few.png").tolist() == [[1, 2, 3, 0]] * 2


def test_the_palette_is_pascal_vocs():
    assert palette(22).tolist()[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette(22).tolist()[20:] == [[0, 64, 128], [128, 64, 128]]
    assert palette(256)[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette(256), axis=0)) == 256
    gray = np.full((2, 3, 1), 100, np.uint8)
    assert overlay(gray, LABELS, 0.5)[0].tolist() == [[50, 50, 50], [114, 50, 50], [50, 114, 50]]
    assert overlay(gray, LABELS)[1, 0].tolist() == [100, 100, 100], "ignored pixels keep their color"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("RGB", (3, 2)), r"masks/a0\.png is a color image \(RGB\): expected one label per pixel"),
        (Image.fromarray(LABELS[:1]), r"masks/a0\.png has 3 x 1 pixels, its image 3 x 2"),
        (Image.fromarray(LABELS + 3), r"masks/a0\.png has the value 5, which is class 5, but the classes are 0 to 2"),
        (b"\x89PNG\r\n\x1a\n123", r"masks/a0\.png cannot be read: cannot identify"),
        (b"JFIF", r"masks/a0\.png is not a PNG"),
    ],
)
def test_a_wrong_mask_is_named_in_one_sentence(folder, mask, message):
    file = folder / "masks" / "a0.png"
    file.write_bytes(mask) if isinstance(mask, bytes) else mask.save(file)
    source = MaskFolders(str(folder), classes="abc", val_fraction=0.25)
    position = next(i for i in range(3) if source.path(i).endswith("a0.png"))
    with pytest.raises(UnreadableImageError, match=message) as raised:
        source[position]
    assert "\n" not in str(raised.value)
    sample = SegmentationDataset(source)[position]
    assert (sample["unreadable"], sample["sample_idx"] != position) == (position, True), "the next image replaces it"
    assert str(raised.value) == sample["unreadable_reason"]


def test_doctor_reads_masks(folder):
    (folder / "classes.txt").write_text("sky\ntree\nroad\n")
    findings = list(check_sources(open_root(folder)))
    assert ("ok", "train", "3 images in 3 classes") in findings
    assert ("ok", "broken", "none") in findings
    for i in range(4):
        Image.new("RGB", (3, 2)).save(folder / "masks" / f"a{i}.png")
    (fault,) = [text for level, _, text in check_sources(open_root(folder)) if level == "fault"]
    assert "images/a0.png (the mask " in fault


def test_a_missing_mask_is_named_before_anything_is_read(folder):
    (folder / "masks" / "a1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 images in .*/images have no mask: .* in .*/masks for a1\.png"):
        MaskFolders(str(folder), classes="abc")


# Sources --------------------------------------------------------------------------------------------------------------


def test_folders_hold_out_a_fraction_or_have_splits(folder, tmp_path):
    (folder / "classes.txt").write_text("sky\ntree\nroad\n")
    train, val = (MaskFolders(str(folder), split, val_fraction=0.25) for split in ("train", "val"))
    assert train.classes == ["sky", "tree", "road"]
    assert (len(train), len(val)) == (3, 1)
    assert sorted(train.images + val.images) == [str(folder / "images" / f"a{i}.png") for i in range(4)]
    image, labels = val[0]
    assert (image.size, labels.dtype, labels.tolist()) == ((3, 2), np.uint8, LABELS.tolist())
    for kind in ("images", "masks"):
        for i in range(4):
            split = folder / kind / ("train" if i < 3 else "val")
            split.mkdir(exist_ok=True)
            (folder / kind / f"a{i}.png").rename(split / f"a{i}.png")
    assert [len(MaskFolders(str(folder), split)) for split in ("train", "val")] == [3, 1]


def test_folders_refuse_what_is_unknown(folder):
    with pytest.raises(ValueError, match=r"the classes are unknown: write their names to .*classes\.txt"):
        MaskFolders(str(folder))
    with pytest.raises(ValueError, match="data_root is not set: expected a folder with images/ and masks/"):
        MaskFolders(None)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        MaskFolders(str(folder), "test")
    Image.new("L", (3, 2)).save(folder / "images" / "a0.bmp")
    with pytest.raises(ValueError, match="has several images called a0: each needs its own mask"):
        MaskFolders(str(folder), classes="abc")


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        (ADE20K, 150, [[255, 0, 1], [255, 1, 255]]),
        (VOCSegmentation, 21, LABELS.tolist()),
        (Cityscapes, 19, [[255, 255, 0], [255, 1, 255]]),
    ],
)
def test_published_layouts(kind, count, expected, tmp_path):
    WRITERS[kind.__name__](tmp_path, None)
    source = kind(str(tmp_path), "val")
    assert len(source.classes) == count
    image, labels = source[0]
    assert image.size == (labels.shape[1], labels.shape[0])
    assert labels[:2, :3].tolist() == expected
    assert source.images == sorted(source.images)
    with pytest.raises(ValueError, match="data_root is not set"):
        kind(None)
    with pytest.raises(ValueError, match="expected"):
        kind(str(tmp_path / "empty"))


# Transforms -----------------------------------------------------------------------------------------------------------


class Ramp(Scenes):
    """A 6 x 6 image whose value is ten times its label."""

    def __init__(self):
        self.classes, self.length, self.split = [str(i) for i in range(20)], 8, "train"

    def load(self, index):
        labels = np.arange(36).reshape(6, 6) % 19 + 1
        return Image.fromarray((10 * labels).astype(np.uint8)), labels


def drawn(transforms, seed=0, **options):
    return SegmentationDataset(Ramp(), transforms, **options)[(0, seed)]


@pytest.mark.parametrize(
    "transform",
    [
        dict(type="RandomCrop", size=4),
        dict(type="RandomHorizontalFlip"),
        dict(type="RandomResizedCrop", size=4, scale=(0.444, 0.445), ratio=(1.0, 1.0)),
        dict(type="RandomApply", p=0.7, transforms=[dict(type="RandomVerticalFlip")]),
        dict(type="RandomClassCrop", size=4),
        dict(type="RandomRotation", degrees=[90, 90]),
    ],
    ids=lambda t: t["type"],
)
def test_an_image_and_its_mask_move_together(transform):
    results = [drawn([transform], seed) for seed in range(6)]
    for sample in results:
        assert sample["labels"].dtype == torch.uint8
        assert type(sample["labels"]) is torch.Tensor
        assert torch.equal(sample["inputs"][0], 10 * sample["labels"])
    assert torch.equal(drawn([transform], 3)["labels"], results[3]["labels"]), "the seed alone decides"
    if "Random" in transform["type"] and transform["type"] != "RandomRotation":
        assert any(not torch.equal(sample["labels"], results[0]["labels"]) for sample in results)


def test_added_pixels_are_ignored_and_a_fill_is_the_images():
    for transform in (
        dict(type="Pad", padding=2, fill=7),
        dict(type="RandomCrop", size=10, padding=2, fill=7),
        dict(type="RandomApply", p=1.0, transforms=[dict(type="RandomCrop", size=10, padding=2, fill=7)]),
    ):
        sample = drawn([transform])
        assert sample["labels"].shape == (10, 10)
        added = sample["labels"] == 255
        assert added.sum() == 64
        assert torch.equal(sample["inputs"][0][added], torch.full((64,), 7, dtype=torch.uint8))


def test_a_mask_is_resized_to_the_nearest_pixel():
    sample = drawn([dict(type="Resize", size=[12, 12])])
    assert torch.equal(sample["labels"], drawn([])["labels"].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_masks_of_an_evaluation_may_keep_their_size():
    sample = drawn([dict(type="Resize", size=[3, 3])], transform_masks=False)
    assert (sample["inputs"].shape, sample["labels"].shape) == ((1, 3, 3), (6, 6))
    with pytest.raises(ValueError, match="only transforms that keep the whole image are possible"):
        drawn([dict(type="CenterCrop", size=3)], transform_masks=False)


def test_a_crop_is_drawn_until_no_class_covers_it():
    class Halves(Ramp):
        def load(self, index):
            labels = np.zeros((40, 40), int)
            labels[:, 30:] = 1
            return Image.new("L", (40, 40)), labels

    crop = dict(type="RandomClassCrop", size=8, max_share=0.75)
    shares = [
        torch.bincount(SegmentationDataset(Halves(), [crop])[(0, seed)]["labels"].flatten().int()).max() / 64
        for seed in range(20)
    ]
    plain = [
        torch.bincount(
            SegmentationDataset(Halves(), [dict(type="RandomCrop", size=8)])[(0, seed)]["labels"].flatten().int()
        ).max()
        / 64
        for seed in range(20)
    ]
    assert sum(share <= 0.75 for share in shares) > sum(share <= 0.75 for share in plain) + 5
    with pytest.raises(ValueError, match="max_share must be above 0 and at most 1, got 2"):
        drawn([dict(type="RandomClassCrop", size=4, max_share=2)])


def test_refused_datasets():
    with pytest.raises(ValueError, match="the images of Digits have no masks: use a source of images with masks"):
        SegmentationDataset(dict(type="Digits"))
    with pytest.raises(ValueError, match="DecodeResize takes no mask"):
        SegmentationDataset(Ramp(), [dict(type="DecodeResize", size=4)])
    many = Ramp()
    many.classes = range(256)
    with pytest.raises(ValueError, match="256 classes: expected 1 to 255"):
        SegmentationDataset(many)


# Scenes ---------------------------------------------------------------------------------------------------------------


def test_scenes_depend_on_seed_and_position_alone():
    source = DATASETS.build(dict(type="Scenes", length=5, seed=3))
    again, other = Scenes(length=9, seed=3), Scenes(length=9, seed=4)
    for index in (4, 0):
        image, labels = source[index]
        assert np.array_equal(image, again[index][0])
        assert np.array_equal(labels, again[index][1])
        assert not np.array_equal(image, other[index][0])
    assert not np.array_equal(source[0][0], Scenes(split="val", seed=3)[0][0])
    assert (image.mode, image.size, labels.shape) == ("L", (64, 64), (64, 64))
    with pytest.raises(IndexError):
        source[5]
    assert len(list(source)) == 5


def test_scenes_say_what_they_are_made_of(tmp_path, caplog):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    source = Scenes(str(tmp_path))
    logger.removeHandler(caplog.handler)
    assert f"Scenes of train: the objects are scikit-learn's digits, because {tmp_path} has no" in caplog.text
    assert source.classes == [*"0123456789", "ground"]
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    with pytest.raises(ValueError, match="FashionMNIST is missing or incomplete"):
        Scenes(str(tmp_path))
    with pytest.raises(ValueError, match="unknown split 'test'"):
        Scenes(split="test")
    with pytest.raises(ValueError, match="expected length >= 1"):
        Scenes(objects=(3, 2))


def test_every_object_of_a_scene_is_in_its_mask():
    """One object, so that nothing covers it: its pixels alone differ from the scene's ground in the mask."""
    source = Scenes(length=20, objects=(1, 1))
    for index in range(20):
        _, labels = source[index]
        classes = np.unique(labels)
        assert len(classes) == 2
        assert classes[-1] == 10
        assert 0.02 < (labels < 10).mean() < 0.4
