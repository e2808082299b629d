"""What it costs to find the images of a tree of class folders: time and memory by the number of classes and images.

python tools/benchmarks/folders.py --classes 1000 10000 --images 50 --json folders.json

The files are links to one small image; none is decoded.
"""

import argparse
import os
import tempfile
import time
import tracemalloc
from pathlib import Path

from machine import report
from PIL import Image

from crate_mm.cli.options import check_writable, one_sentence_errors, positive
from crate_mm.datasets import ClassFolders


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=positive, nargs="+", default=[100, 1000, 10000], help="numbers of classes")
    parser.add_argument("--images", type=positive, default=50, help="images of each class (default: 50)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    return parser.parse_args()


def write_classes(root: Path, classes: int, images: int) -> None:
    """A tree of class folders without splits."""
    image = root.with_suffix(".jpg")
    Image.new("RGB", (4, 4)).save(image)
    for label in range(classes):
        folder = root / f"c{label:05}"
        folder.mkdir(parents=True)
        for i in range(images):
            os.symlink(image, folder / f"{i}.jpg")


def find(root: Path) -> dict[str, float]:
    """Seconds, and megabytes that are kept, for the training split, of which a fifth is set aside."""
    start = time.perf_counter()
    images = ClassFolders(root, "train")
    seconds = time.perf_counter() - start
    tracemalloc.start()
    images = ClassFolders(root, "train")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"training_images": len(images), "seconds": seconds, "megabytes": kept / 1e6}


def main() -> None:
    args = parse_args()
    with one_sentence_errors(), tempfile.TemporaryDirectory() as folder:
        check_writable(args.json)
        write_classes(Path(folder) / "first", 2, 5)
        find(Path(folder) / "first")  # what is loaded once does not count
        rows = (measure(Path(folder) / str(classes), classes, args.images) for classes in args.classes)
        report("Finding images in class folders", rows, vars(args), args.json)


def measure(root: Path, classes: int, images: int) -> dict:
    write_classes(root, classes, images)
    found = find(root)
    per_image = 1e6 * found["seconds"] / (classes * images)
    return {"classes": classes, "images_each": images, **found, "microseconds_an_image": per_image}


if __name__ == "__main__":
    main()
