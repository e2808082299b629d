"""Images a second that one core loads, by stage, against torchvision's usual pipeline, on photographs.

python tools/benchmarks/loader.py --json loader.json
"""

import argparse
import io
import tempfile
from pathlib import Path

import simplejpeg
import torch
from machine import median_ratio, report, time_in_turns
from photographs import write_tree
from PIL import Image
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from crate_mm.cli.options import check_writable, one_sentence_errors, positive
from crate_mm.datasets import ClassificationDataset, ImageNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=64, help="how many are loaded in a round (default: 64)")
    parser.add_argument("--width", type=positive, default=500, help="of the photographs (default: 500)")
    parser.add_argument("--height", type=positive, default=375, help="of the photographs (default: 375)")
    parser.add_argument("--rounds", type=positive, default=9, help="how often each form is timed (default: 9)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors(), tempfile.TemporaryDirectory() as folder:
        check_writable(args.json)
        torch.set_num_threads(1)
        root = write_tree(Path(folder), args.images, size=(args.width, args.height))
        stages = (("decoding", decoders), ("loading", loaders))
        rows = (row for stage, forms in stages for row in measure(stage, forms(root), args))
        title = f"photographs of {args.width} x {args.height}, one core"
        report(title, rows, vars(args), args.json)


def measure(stage: str, forms: dict, args: argparse.Namespace) -> list[dict]:
    """Time forms that load the i-th image, in turns; the first is what the others are compared with."""
    indices = range(args.images)
    seconds = time_in_turns({name: lambda f=form: [f(i) for i in indices] for name, form in forms.items()}, args.rounds)
    first = next(iter(seconds.values()))
    return [
        {
            "stage": stage,
            "form": name,
            "images_per_s": args.images / sorted(taken)[len(taken) // 2],
            "times_the_first": median_ratio(first, taken),
        }
        for name, taken in seconds.items()
    ]


def decoders(root: Path) -> dict:
    """Bytes to pixels."""
    encoded = [Path(path).read_bytes() for path, _ in ImageFolder(root / "train").samples]
    as_tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    return {
        "PIL": lambda i: Image.open(io.BytesIO(encoded[i])).convert("RGB"),
        "torchvision.io": lambda i: decode_jpeg(as_tensors[i], ImageReadMode.RGB),
        "libjpeg-turbo (simplejpeg)": lambda i: simplejpeg.decode_jpeg(encoded[i], "RGB"),
    }


def loaders(root: Path) -> dict:
    """File to what the collate function gets."""
    crop, flip = v1.RandomResizedCrop(224), v1.RandomHorizontalFlip()
    usual = v1.Compose([crop, flip, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    official = ImageFolder(root / "train", usual)
    source = ImageNet(str(root))
    uint8 = ClassificationDataset(source, [dict(type="RandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")])
    fast = [dict(type="DecodeRandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")]
    ours = ClassificationDataset(source, fast)
    encoded = ClassificationDataset(source, [dict(type="EncodedRandomResizedCrop", size=224)])
    v2_crop = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    def from_torchvision_io(i: int) -> torch.Tensor:
        data = torch.frombuffer(bytearray(source.read(i)[0]), dtype=torch.uint8)
        return v2_crop(decode_jpeg(data, ImageReadMode.RGB))

    return {
        "PIL, crop, flip, ToTensor, Normalize (the official code's)": lambda i: official[i],
        "PIL, crop, flip, uint8": lambda i: uint8[i, i],
        "torchvision.io, transforms v2, uint8": from_torchvision_io,
        "crate_mm: DecodeRandomResizedCrop, flip, uint8": lambda i: ours[i, i],
        "crate_mm: EncodedRandomResizedCrop, decoded on the device later": lambda i: encoded[i, i],
    }


if __name__ == "__main__":
    main()
