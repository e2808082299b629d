"""Images from anywhere: none starts a program, waits for ever, or takes all memory; each image counts once."""

import io
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from torchvision import datasets as torchvision_datasets

from crate_mm.api import Predictor, get_model
from crate_mm.datasets import ClassFolders, ClassificationDataset, PackedImages, build_transforms
from crate_mm.datasets import images as opening
from crate_mm.datasets.folders import ImageFolder, ImageNet, walk_tree
from crate_mm.datasets.images import FORMATS, UnreadableImageError, open_image
from crate_mm.datasets.packed import INDEX, write_shards
from crate_mm.datasets.transforms import MAX_OUTPUT_PIXELS
from crate_mm.registry import DATASETS
from tests import dataset_formats

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(pwned) print\nshowpage\n%%EOF\n"


def encoded(kind: str, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, 3).save(data, kind)
    return data.getvalue()


def tree(root: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A stand-in for gs, first in PATH: the file is there once it has been started."""
    mark, program = tmp_path / "gs_ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 10.0\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # PIL looks for it once
    return mark


def test_the_stand_in_would_be_started(ghostscript):
    with pytest.raises(OSError, match="."):
        Image.open(io.BytesIO(EPS)).load()
    assert ghostscript.exists()


def test_no_image_starts_a_program(tmp_path, ghostscript, run_tool):
    root = tree(tmp_path / "d", {f"{split}/a/x.jpg": EPS for split in ("train", "val")})
    file = root / "train/a/x.jpg"
    packed = tmp_path / "packed" / "train"
    packed.mkdir(parents=True)
    write_shards(packed, [("a/x.jpg", EPS, 0)], ["a"])
    decode = build_transforms([{"type": "DecodeRandomResizedCrop", "size": 8}])
    ways = [
        lambda: ImageNet(root)[0],
        lambda: ClassFolders(root)[0],
        lambda: ImageFolder(root / "train")[0],
        lambda: PackedImages(packed.parent)[0],
        lambda: decode(EPS),
        lambda: Predictor(get_model("crate_tiny", num_classes=2, img_size=32))([file]),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="one of the formats JPEG"):
            way()
    done = run_tool("pack_dataset", root, tmp_path / "target", "--workers", 1, "--short-side", 4)
    assert "one of the formats" in done.output
    assert not ghostscript.exists()


def test_every_image_is_opened_in_one_place():
    """Another ``Image.open`` would know more formats, and have no bounds."""
    root = Path(opening.__file__).parents[1]
    sources = [*root.rglob("*.py"), *(root.parent / "tools").glob("*.py")]
    having = [p.name for p in sources if "Image.open(" in p.read_text()]
    assert having == ["images.py"]


@pytest.mark.parametrize("name", ["Flowers102", "OxfordIIITPet"])
def test_torchvisions_readers_start_no_program_either(tmp_path, monkeypatch, ghostscript, name):
    dataset_formats.WRITERS[name](tmp_path, monkeypatch.setattr)
    data = DATASETS.get(name)(str(tmp_path))
    assert data[0][0].mode == "RGB"
    Path(data.path(0)).write_bytes(EPS)
    with pytest.raises(UnreadableImageError, match="one of the formats"):
        data[0]
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_that_photographs_have_are_read(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this PIL has no WebP")
    assert open_image(encoded(kind)).size == (16, 12)


@pytest.mark.parametrize("kind", ["PCX", "DDS", "ICO", "TGA", "SGI"])
def test_other_formats_are_told(kind):
    with pytest.raises(UnreadableImageError, match="one of the formats JPEG.*: convert it"):
        open_image(encoded(kind))


@pytest.mark.parametrize("first", ["DecodeRandomResizedCrop", "Resize"])
@pytest.mark.parametrize("kind", ["zero", "pipe", "folder", "nothing"])
def test_what_is_no_file_is_unreadable(tmp_path, kind, first):
    root = tree(tmp_path, {"train/a/b.jpg": encoded("JPEG", (64, 64))})
    odd = root / "train/a/a.jpg"
    odd.touch()
    dataset = ClassificationDataset(ImageNet(root), [{"type": first, "size": 32}])
    odd.unlink()
    {"zero": lambda: odd.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(odd), "folder": odd.mkdir}.get(
        kind, lambda: None
    )()
    start = time.perf_counter()
    sample = dataset[0]
    assert sample["unreadable"] == 0
    assert time.perf_counter() - start < 10
    reason = {"nothing": "No such file", "folder": "directory"}.get(kind, "not a regular file")
    assert reason in sample["unreadable_reason"] or "not a regular file" in sample["unreadable_reason"]


@pytest.mark.parametrize("size", [(1, 65500), (65500, 1)])
def test_a_thin_image_is_not_made_an_endless_one(tmp_path, size):
    resizes = [{"type": "Resize", "size": 256}, {"type": "RandomShortestSize", "min_size": 256}]
    resizes += [{"type": "RandomResize", "min_size": 255, "max_size": 257}]
    for resize in resizes:
        dataset = ClassificationDataset(
            ImageNet(tree(tmp_path, {"train/a/a.png": encoded("PNG", size), "train/a/b.png": encoded("PNG")})), [resize]
        )
        sample = dataset[0]
        assert sample["unreadable"] == 0
        assert "pixels is larger than the" in sample["unreadable_reason"]


def test_what_a_thin_image_grows_to_is_bounded_by_its_own_size(tmp_path, monkeypatch):
    """Of 6000 x 2 pixels Resize(64) would make 12 million, of 10 x 1000 it makes 400,000."""
    assert MAX_OUTPUT_PIXELS == 33_554_432
    monkeypatch.setattr("crate_mm.datasets.transforms.MAX_OUTPUT_PIXELS", 500_000)
    root = tree(tmp_path, {"train/a/a.png": encoded("PNG", (6000, 2)), "train/a/b.png": encoded("PNG", (10, 1000))})
    dataset = ClassificationDataset(ImageNet(root), [{"type": "Resize", "size": 64}])
    sample = dataset[0]
    assert (sample["unreadable"], tuple(sample["inputs"].shape)) == (0, (3, 6400, 64))
    assert "is larger than the 500,000 allowed" in sample["unreadable_reason"]
    root = tree(tmp_path / "large", {"train/a/a.png": encoded("PNG", (300, 300))})
    large = ClassificationDataset(ImageNet(root), [{"type": "Resize", "size": 1100}])  # a large one may become larger
    assert tuple(large[0]["inputs"].shape) == (3, 1100, 1100)


@pytest.mark.parametrize(
    ("growing", "size"),
    [
        ({"type": "RandomRotation", "degrees": [45, 45], "expand": True}, (2, 40_000)),
        ({"type": "RandomZoomOut", "side_range": [6, 6], "p": 1.0}, (1200, 1200)),
    ],
)
def test_no_transform_makes_an_endless_image(tmp_path, growing, size):
    root = tree(tmp_path, {"train/a/a.png": encoded("PNG", size), "train/a/b.png": encoded("PNG")})
    dataset = ClassificationDataset(ImageNet(root), [growing])
    sample = dataset[0]
    assert sample["unreadable"] == 0
    assert "pixels is larger than the" in sample["unreadable_reason"]


def test_a_transform_that_a_thin_image_breaks_ends_nothing(tmp_path):
    root = tree(tmp_path, {"train/a/a.png": encoded("PNG", (1, 2000)), "train/a/b.png": encoded("PNG", (30, 30))})
    dataset = ClassificationDataset(ImageNet(root), [{"type": "ScaleJitter", "target_size": (64, 64)}])
    assert dataset[0]["unreadable"] == 0
    with pytest.raises(TypeError, match="."):  # a mistake is a mistake
        ClassificationDataset(ImageNet(root), [lambda image: image + 1])[1]


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = encoded("PNG", (20_000, 10_000), "1")
    assert len(bomb) < 100_000
    with pytest.raises(UnreadableImageError, match="20000 x 10000 pixels|decompression bomb"):
        open_image(bomb)


@pytest.mark.parametrize("kind", [*FORMATS, "ICO", "TGA", "SGI", "PCX", "DDS"])
def test_damaged_images_are_unreadable_and_nothing_else(kind):
    data, rng = encoded(kind, (32, 32)), random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(min(len(damaged), 300))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        try:
            image = open_image(bytes(damaged))
        except UnreadableImageError:
            continue
        assert image.mode == "RGB"


def test_images_look_as_they_did(image_tree):
    """As PIL's own opening, and torchvision's own folder, have them."""
    ours, theirs = ImageFolder(image_tree / "train"), torchvision_datasets.ImageFolder(str(image_tree / "train"))
    assert ours.samples == theirs.samples
    assert ours.classes == theirs.classes
    for (mine, label), (image, wanted) in zip(ours, theirs):
        assert label == wanted
        assert np.array_equal(np.asarray(mine), np.asarray(image))


def test_a_link_to_itself_counts_nothing_twice(tmp_path):
    root = tree(tmp_path, {f"{split}/a/x.png": encoded("PNG") for split in ("train", "val")})
    (root / "train/a/latest").symlink_to(".")
    (root / "train/a/zz").symlink_to("..")
    assert len(ClassFolders(root, "train")) == 1


def test_folders_that_links_lead_to_are_read_once_and_where_they_are(tmp_path):
    root = tree(tmp_path / "top", {"b/1.png": b"", "b/c/2.png": b"", "3.png": b""})
    elsewhere = tree(tmp_path / "elsewhere", {"4.png": b""})
    (root / "a").symlink_to(root / "b")
    (root / "z").symlink_to(elsewhere)
    found = [str(Path(folder, name).relative_to(root)) for folder, names in walk_tree(str(root)) for name in names]
    assert found == ["3.png", "b/1.png", "b/c/2.png", "z/4.png"]


def test_a_link_to_itself_is_no_folder(tmp_path):
    root = tree(tmp_path, {"a/x.png": encoded("PNG")})
    (root / "a/y").symlink_to("y")
    assert len(ImageFolder(root)) == 1


def test_a_folder_of_two_classes_by_a_link_is_named(tmp_path):
    root = tree(tmp_path, {"a/x.png": encoded("PNG"), "b/y.png": encoded("PNG"), "b/s/z.png": encoded("PNG")})
    (root / "a/b").symlink_to("../b/s")
    with pytest.raises(ValueError, match="belong to two classes, a and b: remove the link"):
        ImageFolder(root)


@pytest.mark.parametrize("target", [".", "a", "..", "../.."])
def test_a_class_that_is_a_link_to_the_others_is_refused(tmp_path, target):
    root = tree(tmp_path, {"data/train/a/x.png": encoded("PNG"), "data/val/a/x.png": encoded("PNG")}) / "data"
    (root / "train/b").symlink_to(target)
    with pytest.raises(ValueError, match="is a link to a parent folder|the class folders a and b are the same folder"):
        ClassFolders(root, "train")


def test_an_empty_class_is_told(tmp_path):
    root = tree(tmp_path, {"train/a/x.png": encoded("PNG"), "train/b/x.txt": b""})
    with pytest.raises(ValueError, match="no image of the classes b"):
        ImageNet(root)


def change_about(change):
    def apply(columns):
        about = json.loads(columns["about"].tobytes())
        change(about)
        columns["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return apply


def set_column(name, change):
    return lambda columns: columns.update({name: change(columns[name])})


HALF = "é.png".encode()  # of two bytes, the first name's end between them
HOSTILE = {
    "overflow": lambda c: c.update({name: np.full(2, 2**63 - 1, np.int64) for name in ("offset", "size")}),
    "unsigned": set_column("offset", lambda a: a.astype(np.uint64) + np.uint64(2**63)),
    "an endless image": lambda c: (
        c.update(size=c["size"] * 0 + 2**40),
        change_about(lambda about: about.update(bytes=[2**50]))(c),
    ),
    "half a character": lambda c: c.update(names=np.frombuffer(HALF, np.uint8), name_ends=np.array([1, len(HALF)])),
    "nan": set_column("label", lambda a: a * np.nan),
    "fractions": set_column("label", lambda a: a * 0.5),
    "negative": set_column("offset", lambda a: a - 10**6),
    "ends": set_column("name_ends", lambda a: a * 0 - 7),
    "ends beyond": set_column("name_ends", lambda a: a + 1000),
    "no text": set_column("names", lambda a: a * 0 + 255),
    "two dimensions": set_column("size", lambda a: a[:, None]),
    "up": change_about(lambda about: about.update(shards=["../../outside.tar"])),
    "absolute": change_about(lambda about: about.update(shards=["/dev/zero"])),
    "hidden": change_about(lambda about: about.update(shards=[".."])),
    "shards": change_about(lambda about: about.update(shards="abc", bytes=[1, 2, 3])),
    "bytes": change_about(lambda about: about.update(bytes=["many"])),
    "classes": change_about(lambda about: about.update(classes=5)),
    "about": lambda c: c.update(about=np.frombuffer(b"[" * 200_000, np.uint8)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_index_is_refused(tmp_path, what):
    folder = tmp_path / "train"
    folder.mkdir()
    write_shards(folder, [(f"{i}.png", encoded("PNG"), i) for i in range(2)], ["a", "b"])
    assert len(PackedImages(tmp_path)) == 2
    with np.load(folder / INDEX) as index:
        columns = dict(index)
    HOSTILE[what](columns)
    np.savez(folder / INDEX, **columns)
    with pytest.raises(ValueError, match=r"index.npz is damaged \(.*\): pack the images again"):
        PackedImages(tmp_path)


def test_a_compressed_index_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    np.savez_compressed(tmp_path / "train" / INDEX, label=np.zeros(10**4))
    with pytest.raises(ValueError, match="it is compressed"):
        PackedImages(tmp_path)
