"""Export a model to ONNX, torch.export or TorchScript and verify its outputs.

python tools/export.py configs/crate_base_in1k.py crate_base.pth --to onnx
python tools/export.py configs/crate_base_in1k.py crate_base.pth --to torch-export --images my/photos --features

The program takes uint8 images, normalizes them itself and runs without crate_mm. A JSON file beside it lists the input
size, the transforms to apply first, the classes, and the largest difference from the model's outputs. The program of a
language model takes windows of token IDs and caches no earlier tokens.
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
from ..models import LanguageModel
from ..models.tasks.base import Task, image_shape
from .options import Parser, add_shared, check_output, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, the name of a packaged config, or 'checkpoint'")
    parser.add_argument(
        "checkpoint", help="training or published checkpoint; with CONFIG 'checkpoint', it also defines the model"
    )
    parser.add_argument("--to", required=True, choices=KINDS, help="output format")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: named after the checkpoint)")
    parser.add_argument("--dynamic", action="store_true", help="accept any image size, if the model supports it")
    parser.add_argument("--batch", type=positive_int, metavar="B", help="fixed batch size (default: any batch size)")
    parser.add_argument("--features", action="store_true", help="output one feature vector per image, not logits")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of matrix products: bfloat16 for torch-export and torchscript, int8 for onnx (default: float32)",
    )
    parser.add_argument("--images", metavar="DIR", help="folder of images for the comparison (default: random images)")
    add_shared(parser, "--force", "--cfg-options")
    return parser.parse_args()


def images_for(model: Task, folder: str | None, batch: int) -> torch.Tensor:
    """Return uint8 images ``(batch, C, H, W)`` for the comparison: from a folder, repeated if too few, or random.

    For a language model, return random token IDs ``(batch, N)``.
    """
    if isinstance(model, LanguageModel):
        if folder is not None:
            raise ValueError("--images is for models of images: a language model is compared on random tokens")
        size = (batch, model.backbone.context_length)
        return torch.randint(0, model.backbone.vocab_size, size, generator=torch.Generator().manual_seed(0))
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
            raise ValueError(f"{out} is the checkpoint itself: name another file with --out")
        check_output(str(out), force=args.force)
        config = None if args.config == "checkpoint" else load_config(args.config, args.cfg_options)
        if config is None and args.cfg_options:
            raise ValueError("--cfg-options needs a config to override: name a config in place of 'checkpoint'")
        model = init_model(config, args.checkpoint)
        images = images_for(model, args.images, args.batch or 2)
        mode = "features" if args.features else "tensor"
        dynamic = args.dynamic or ("batch" if args.batch is None else False)
        manifest = export(model, out, args.to, images, mode, dynamic, args.dtype)
    dynamic_dims = manifest["input"]["any"]
    batch = "any number" if "batch" in dynamic_dims else f"exactly {len(images)}"
    if images.ndim == 2:
        unit, takes = "windows", f"windows of {images.shape[1]} token IDs, without a cache of earlier tokens"
    else:
        _, C, H, W = images.shape
        size = f"{C} channels and any whole number of patches" if "height" in dynamic_dims else f"{C} x {H} x {W}"
        unit, takes = "images", f"uint8 images of {size}"
    agreement = f", same top class for {100 * manifest['same_first']:.0f} %" if "same_first" in manifest else ""
    say(
        f"wrote {sanitized(out)}: it takes {takes}, {batch} at a time; on {len(images)} {unit}, outputs "
        f"differ by at most {manifest['largest_difference']:.2g} (standard deviation of the outputs: "
        f"{manifest['output_deviation']:.2g}){agreement}"
    )
