"""Export a model as a program that runs without crate_mm, and compare the two before it says so.

python tools/export.py configs/crate_base_in1k.py crate_base.pth --to onnx
python tools/export.py configs/crate_base_in1k.py crate_base.pth --to torch-export --images my/photos --features

The program takes uint8 images, any number at once, and normalises them itself. The JSON file beside it says their size,
the transforms that come before, the classes, and how far it is from the model.
"""

import argparse
from pathlib import Path

import torch

from ..api import Predictor, init_model
from ..checkpoints.remote import ensure_local
from ..config import load_config
from ..datasets import ImageFiles
from ..extras.interop.export import DTYPES, KINDS, export
from ..io.untrusted import sanitized, say
from ..models.tasks.base import Task, image_shape
from .options import Parser, add_cfg_options, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, the name of one that comes with the package, or 'checkpoint'")
    parser.add_argument("checkpoint", help="checkpoint, of training or published; 'checkpoint' takes its model")
    parser.add_argument("--to", required=True, choices=KINDS, help="what is written")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: the checkpoint's name)")
    parser.add_argument("--dynamic", action="store_true", help="images of any size too, where the model can")
    parser.add_argument("--batch", type=positive_int, metavar="B", help="take exactly B images at once (default: any)")
    parser.add_argument("--features", action="store_true", help="one vector an image in the place of the logits")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of products; int8 is ONNX's alone")
    parser.add_argument("--images", metavar="DIR", help="images to compare on (default: random ones)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    add_cfg_options(parser)
    return parser.parse_args()


def images_for(model: Task, folder: str | None, batch: int) -> torch.Tensor:
    """uint8 images ``(batch, C, H, W)`` to compare on: a folder's, repeated if there are fewer, or random ones."""
    shape = image_shape(model)
    if folder is None:
        return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    files, prepare = ImageFiles(folder), Predictor(model).prepare
    return torch.stack([prepare(files[number % len(files)][0], number) for number in range(batch)])


def main() -> None:
    args = parse_args()
    with user_errors():
        source = ensure_local(args.checkpoint)
        out = Path(args.out or source.with_suffix(KINDS[args.to]).name)
        if out.exists() and source.exists() and out.samefile(source):
            raise ValueError(f"{out} is the checkpoint itself: name another file by --out")
        if out.exists() and not args.force:
            raise ValueError(f"{out} exists: --force overwrites it")
        check_writable(str(out))
        config = None if args.config == "checkpoint" else load_config(args.config, args.cfg_options)
        if config is None and args.cfg_options:
            raise ValueError("--cfg-options override a config: name one in the place of 'checkpoint'")
        model = init_model(config, args.checkpoint)
        images = images_for(model, args.images, args.batch or 2)
        mode = "features" if args.features else "tensor"
        dynamic = args.dynamic or ("batch" if args.batch is None else False)
        about = export(model, out, args.to, images, mode, dynamic, args.dtype)
    free, (_, C, H, W) = about["input"]["any"], images.shape
    number = "any number" if "batch" in free else f"exactly {len(images)}"
    size = f"{C} channels and any whole number of patches" if "height" in free else f"{C} x {H} x {W}"
    same = f", same first class for {100 * about['same_first']:.0f} %" if "same_first" in about else ""
    say(
        f"wrote {sanitized(out)}: it takes uint8 images of {size}, {number} at a time; "
        f"of these {len(images)} the largest difference is {about['largest_difference']:.2g}, where outputs spread by "
        f"{about['output_deviation']:.2g}{same}"
    )


if __name__ == "__main__":
    main()
