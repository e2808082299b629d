"""Measure the loader's images per second on one core, by stage, and compare with torchvision and PyTorch.

python tools/benchmarks/loader.py --json loader.json
"""

import argparse
import tempfile
from pathlib import Path

import torch
from machine import median_ratio, report, time_in_turns
from photographs import write_tree
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.datasets import ClassificationDataset, ImageNet, PackedImages, collate
from crate_mm.datasets.packed import write_shards
from crate_mm.extras.encoding import encode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive_int, default=64, help="number of images per round (default: 64)")
    parser.add_argument("--width", type=positive_int, default=500, help="width of the photographs (default: 500)")
    parser.add_argument("--height", type=positive_int, default=375, help="height of the photographs (default: 375)")
    parser.add_argument(
        "--short-sides",
        type=positive_int,
        nargs="*",
        default=[400, 320],
        help="short sides for packing, as in pack_dataset (default: 400 320)",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=9, help="number of times that each variant is timed (default: 9)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        check_writable(args.json)
        torch.set_num_threads(1)
        root = write_tree(Path(folder), args.images, size=(args.width, args.height))
        stages = {
            "training": over_all(loaders(root, args.short_sides), args.images),
            "evaluation": over_all(evaluations(root), args.images),
            "collating": collators(root, args.images),
        }
        rows = (row for stage, forms in stages.items() for row in measure(stage, forms, args))
        title = f"photographs of {args.width} x {args.height}, one core"
        report(title, rows, vars(args), args.json)


def over_all(forms: dict, images: int) -> dict:
    """Turn functions that load the i-th image into functions that load all images."""
    return {name: lambda f=form: [f(i) for i in range(images)] for name, form in forms.items()}


def measure(stage: str, forms: dict, args: argparse.Namespace) -> list[dict]:
    """Time variants that load all images, in turns, and compare each with the first."""
    seconds = time_in_turns(forms, args.rounds)
    first = next(iter(seconds.values()))
    return [
        {
            "stage": stage,
            "form": name,
            "images_per_s": args.images / sorted(times)[len(times) // 2],
            "times_the_first": median_ratio(first, times),
        }
        for name, times in seconds.items()
    ]


def loaders(root: Path, short_sides: list[int]) -> dict:
    """Return variants of loading for training, from a file to the input of the collate function."""
    crop, flip = v1.RandomResizedCrop(224), v1.RandomHorizontalFlip()
    usual = v1.Compose([crop, flip, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    official = ImageFolder(root / "train", usual)
    source = ImageNet(str(root))
    uint8 = ClassificationDataset(source, [dict(type="RandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")])
    fast = [dict(type="DecodeRandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")]
    dataset = ClassificationDataset(source, fast)
    v2_crop = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    def from_torchvision_io(i: int) -> torch.Tensor:
        data = torch.frombuffer(bytearray(source.read(i)[0]), dtype=torch.uint8)
        return v2_crop(decode_jpeg(data, ImageReadMode.RGB))

    packed = {side: ClassificationDataset(pack(source, root / str(side), side), fast) for side in short_sides}
    return {
        "PIL, crop, flip, ToTensor, Normalize (the official code's)": lambda i: official[i],
        "PIL, crop, flip, uint8": lambda i: uint8[i, i],
        "torchvision.io, transforms v2, uint8": from_torchvision_io,
        "crate_mm: DecodeRandomResizedCrop, flip, uint8": lambda i: dataset[i, i],
        **{f"the same, packed with --short-side {side}": lambda i, d=data: d[i, i] for side, data in packed.items()},
    }


def pack(source: ImageNet, folder: Path, short_side: int) -> PackedImages:
    """Pack the images of a source as ``tools/pack_dataset.py`` does."""
    (folder / "train").mkdir(parents=True)
    images = ((path, encode(path, short_side, quality=90)[1], label) for path, label in source.samples)
    write_shards(folder / "train", images, source.classes)
    return PackedImages(folder)


def evaluations(root: Path) -> dict:
    """Return variants of loading for evaluation, from a file to the input of the collate function."""
    ways = {"PIL, resize, centre crop, uint8": "Resize", "crate_mm: DecodeResize, centre crop, uint8": "DecodeResize"}
    crop = dict(type="CenterCrop", size=224)
    source = ImageNet(str(root))
    datasets = {way: ClassificationDataset(source, [dict(type=name, size=256), crop]) for way, name in ways.items()}
    return {way: lambda i, d=data: d[i] for way, data in datasets.items()}


def collators(root: Path, images: int) -> dict:
    """Return variants of collating, from samples to a batch."""
    data = ClassificationDataset(ImageNet(str(root)), [dict(type="DecodeRandomResizedCrop", size=224)])
    samples = [data[i, i] for i in range(images)]
    ways = {"PyTorch's default_collate": default_collate, "crate_mm: collate": collate}
    return {way: lambda f=function: f(samples) for way, function in ways.items()}


if __name__ == "__main__":
    main()
