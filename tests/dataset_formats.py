"""Write tiny datasets in the published formats of the full datasets, for torchvision's own readers.

Each function writes below ``root``. torchvision verifies checksums of the full datasets: ``patch``, such as pytest's
``monkeypatch.setattr``, replaces them with checksums of the tiny files.
"""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

RNG = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))


def _photo(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def _cifar(root: Path, patch, kind: type, key: str, classes: int, per_file: int) -> None:
    folder, meta = root / kind.base_folder, kind.meta
    sums = {}
    for name, _ in (*kind.train_list, *kind.test_list):
        data = RNG.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        _dump(folder / name, {"data": data, key: RNG.integers(0, classes, per_file).tolist()})
        sums[name] = md5(folder / name)
    _dump(folder / meta["filename"], {meta["key"]: [f"label {i}" for i in range(classes)]})
    for files in ("train_list", "test_list"):
        patch(kind, files, [[name, sums[name]] for name, _ in getattr(kind, files)])
    patch(kind, "meta", {**meta, "md5": md5(folder / meta["filename"])})


def cifar10(root: Path, patch) -> None:
    _cifar(root, patch, datasets.CIFAR10, "labels", 10, 4)


def cifar100(root: Path, patch) -> None:
    _cifar(root, patch, datasets.CIFAR100, "fine_labels", 100, 20)


def flowers102(root: Path, patch, per_split: int = 20) -> None:
    folder, count = root / "flowers-102", 3 * per_split
    for i in range(1, count + 1):
        _photo(folder / "jpg" / f"image_{i:05d}.jpg")
    ids = RNG.permutation(np.arange(1, count + 1))
    savemat(folder / "imagelabels.mat", {"labels": RNG.integers(1, 103, (1, count))})
    train, val, test = ids.reshape(3, 1, per_split)
    savemat(folder / "setid.mat", {"trnid": train, "valid": val, "tstid": test})
    published = datasets.Flowers102._file_dict
    sums = {key: (name, md5(folder / name)) for key, (name, _) in published.items() if key in ("label", "setid")}
    patch(datasets.Flowers102, "_file_dict", {**published, **sums})


def pets(root: Path, patch) -> None:
    folder = root / "oxford-iiit-pet"
    # Names of cat breeds are capitalized. As in the published lists, every breed is in both lists.
    breeds = [f"{'Cat' if i % 3 == 0 else 'dog'}_{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(37)]
    for split in ("trainval", "test"):
        lines = []
        for label, breed in enumerate(breeds, 1):
            name = f"{breed}_{1 if split == 'trainval' else 2}"
            _photo(folder / "images" / f"{name}.jpg")
            lines.append(f"{name} {label} {1 if breed[0] == 'C' else 2} {label}")
        path = folder / "annotations" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def fashion_mnist(root: Path, patch=None, counts: tuple[int, int] = (40, 20)) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in zip(("train", "t10k"), counts):
        # IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, the dimensions (big-endian), the data.
        pixels = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + struct.pack(">III", count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + struct.pack(">I", count) + labels.tobytes()
        )


def image_folder(root: Path, patch=None, classes: int = 2, per_class: int = 10) -> None:
    for c in range(classes):
        for i in range(per_class):
            _photo(root / f"class {c}" / f"{i}.jpg")


def imagenet(root: Path, patch=None) -> None:
    for c in range(1000):
        for split in ("train", "val"):
            _photo(root / split / f"n{c:08d}" / f"{c}.JPEG", (8, 6))


def voc(root: Path, masks: dict[str, np.ndarray], images: dict[str, np.ndarray] | None = None) -> None:
    """Write PASCAL VOC 2012's layout, with images and class masks by name; its list ``val`` names all of them."""
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        pixels = (images or {}).get(name, RNG.integers(0, 256, (*mask.shape, 3), dtype=np.uint8))
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        written = Image.fromarray(mask.astype(np.uint8), "P")
        written.putpalette([value for i in range(256) for value in (i, 255 - i, (37 * i) % 256)])
        written.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(masks) + "\n")


# Three classes and an ignored pixel.
MASK = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


def write_pairs(root: Path, count: int, mask: np.ndarray, *splits: str, names: tuple = ("images", "masks")) -> Path:
    """Write random images a0.png, a1.png, ... and their masks, in a folder for each of ``splits``, if any."""
    for split in splits or ("",):
        for i in range(count):
            _photo(root / names[0] / split / f"a{i}.png", mask.shape[::-1])
            file = root / names[1] / split / f"a{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    return root


def mask_folders(root: Path, patch=None) -> None:
    write_pairs(root, 4, np.kron(MASK, np.ones((20, 20), np.uint8)))
    (root / "classes.txt").write_text("sky\ntree\nroad\n")


def ade20k(root: Path, patch=None) -> None:
    """Write the layout of the scene parsing benchmark. Its masks number classes from 1."""
    folder = root / "ADEChallengeData2016"
    write_pairs(folder, 2, MASK, "training", "validation", names=("images", "annotations"))
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0.1\t9\t9\t0\tname {i}, other" for i in range(1, 151))]
    (folder / "objectInfo150.txt").write_text("\n".join(rows) + "\n")


def cityscapes(root: Path, patch=None) -> None:
    """Write label IDs 7 and 8 (road and sidewalk), and 0, 3, 5 and 29, which are not evaluated."""
    ids = np.array([[0, 5, 7], [29, 8, 3]], np.uint8)
    for split in ("train", "val"):
        for city in ("ulm", "bonn"):
            name = f"{city}_000000_000019"
            _photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (3, 2))
            file = root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(file)


# Source type in a config -> function that writes the dataset.
WRITERS = {
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "Flowers102": flowers102,
    "OxfordIIITPet": pets,
    "FashionMNIST": fashion_mnist,
    "ClassFolders": image_folder,
    "ImageNet": imagenet,
    "ADE20K": ade20k,
    "Cityscapes": cityscapes,
    "MaskFolders": mask_folders,
    "Scenes": fashion_mnist,
    "VOCSegmentation": lambda root, patch=None: voc(root, {"a": MASK, "b": MASK}),
}
