"""Compare checkpoints side by side in one self-contained HTML file, which opens from disk without network access.

python tools/report.py configs/crate_tiny_digits.py random epoch_1.pth epoch_40.pth --out report.html
python tools/report.py configs/crate_base_in1k.py crate_base.pth --images /my/photos --out report.html
python tools/report.py configs/compare/crate.py crate.pth --also configs/compare/vit.py vit.pth --out report.html
python tools/report.py configs/causal_crate_mini_python.py random last.pth --num-images 200 --shown 4 --out text.html

CONFIG selects the data. If it defines no model, each checkpoint's own model is used. CHECKPOINT is a file from crate_mm
or a third party, or 'random' for the newly initialized model. --also adds checkpoints of another config. The data of
that config must be the same images, prepared for its models.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..api import default_class_names
from ..checkpoints import Checkpoint
from ..checkpoints.download import hash_file
from ..checkpoints.remote import ensure_local
from ..datasets.base import dataset_of, require_images
from ..datasets.images import open_image
from ..datasets.transforms import to_uint8
from ..engine.checkpointing.results import dataset_name
from ..extras.report.collect import ReportDataset, ReportModel
from ..extras.report.write import run_data as shared_run_data
from ..extras.report.write import write_report
from ..inference.standalone import build_loader, load_config_and_checkpoint, subset, use_folder
from ..io.untrusted import public, sanitized, say
from ..models import LanguageModel
from .analyze import build_model
from .options import Parser, add_shared, check_writable, positive_int, user_errors

MAX_MASK_CLASSES = 1024  # per ground-truth mask: each class is transformed separately; scenes have fewer than 300
MAX_CONFIG_CHARS = 20_000  # of a model config quoted on the page


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument("checkpoint", nargs="+", help="checkpoint file, or 'random'")
    parser.add_argument(
        "--also", nargs="+", action="append", default=[], metavar=("CONFIG", "CHECKPOINT"),
        help="another config and its checkpoints; may be repeated",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="HTML file to write")
    parser.add_argument("--images", metavar="DIR", help="use the images below a folder in place of the config's data")
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="ground-truth masks of --images: PNG files of the same names, a class per pixel",
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="data split (default: test)")
    parser.add_argument("--num-images", type=positive_int, default=1000, help="images to measure (default: 1000)")
    parser.add_argument("--shown", type=positive_int, default=16, help="images shown in detail (default: 16)")
    parser.add_argument("--eps-squared", type=float, default=0.01, help="eps^2 of the coding rates (default: 0.01)")
    parser.add_argument("--raw-length", action="store_true", help="do not scale tokens to length 1")
    parser.add_argument("--megabytes", type=positive_int, default=15, help="size limit of the page (default: 15)")
    parser.add_argument(
        "--weights-megabytes", type=float, default=1, metavar="MB",
        help="embed a model's weights up to this size, so that the page can run the model; 0: never (default: 1)",
    )  # fmt: skip
    parser.add_argument("--title", default="", help="title of the page")
    parser.add_argument("--seed", type=int, default=0, help="seed of 'random' and of the image sample (default: 0)")
    add_shared(parser, "--cfg-options")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.out)
        if args.masks and not (args.images and Path(args.masks).is_dir()):
            raise ValueError("--masks needs --images, and must be a folder of ground-truth masks of these images")
        models, datas = load_models(args)
        size = write_report(models, datas, args.out, partial(run_data, args, datas), vars(args), args.title)
        say(f"wrote {sanitized(args.out)}, {size / 1e6:.1f} MB")


def load_models(args: argparse.Namespace) -> tuple[list[ReportModel], list[ReportDataset]]:
    """Return the models, and the data of each config."""
    models: list[ReportModel] = []
    datas: list[ReportDataset] = []
    groups = [[args.config, *args.checkpoint], *args.also]
    for config, *checkpoints in groups:
        if not checkpoints:
            raise ValueError(f"--also takes a config and its checkpoints, got {sanitized(config)} alone")
        loader, names_of_files = None, Counter(map(name_of_file, checkpoints))
        for file in checkpoints:
            source = None if file == "random" else file
            cfg, checkpoint = load_config_and_checkpoint(config, source, args.cfg_options, full_model=True)
            model = build_model(cfg, checkpoint, args.seed, full_model=True)
            of_text = isinstance(model, LanguageModel)
            if loader is None:
                loader = load_data(cfg, args, of_text)
                truth = true_masks(loader.dataset, args.masks) if args.masks else lambda _: None
                datas.append(ReportDataset(data_name(cfg, args), loader.dataset, partial(subset, loader), truth))
            if not of_text:
                check_size(datas, model, config)
            name = name_of_file(file)
            if names_of_files[name] > 1 and file != "random":  # the same file name in several runs
                name = f"{sanitized(Path(ensure_local(file)).resolve().parent.name)}/{name}"
            label = name if len(groups) == 1 else f"{Path(config).stem}: {name}"
            while label in {report_model.label for report_model in models}:
                label += "'"
            names = (checkpoint and checkpoint.class_names) or dataset_of(loader.dataset).classes
            names = names or (default_class_names(model.num_classes) if model.is_classifier else None)
            run = checkpoint_data(config, cfg, file, checkpoint)
            models.append(ReportModel(label, model, len(datas) - 1, names, file == "random", run))
    return models, datas


def name_of_file(file: str) -> str:
    """Return a checkpoint's name on the page: its file's stem, or 'random'."""
    return file if file == "random" else Path(public(file)).stem


def load_data(cfg: Config, args: argparse.Namespace, of_text: bool = False) -> DataLoader:
    """Return a loader of the config's data, or of the images of a folder with the config's test transforms."""
    if of_text:
        if args.images:
            raise ValueError("--images is for models of images: a language model is shown on its config's text")
        return build_loader(cfg, args.split)
    if args.images:
        if not cfg.get("test_dataloader"):
            raise ValueError("--images needs a config with a test_dataloader, whose transforms apply to the images")
        cfg = cfg.copy()
        use_folder(cfg, args.images)
    loader = build_loader(cfg, "test" if args.images else args.split)
    require_images(loader.dataset, "test" if args.images else args.split)
    return loader


def true_masks(dataset: Dataset, folder: str) -> Callable[[int], Tensor | None]:
    """Return a function that loads an image's ground-truth mask, ``(H, W)``, transformed as the image is.

    The region of each class is transformed as an image and thresholded at half brightness, because interpolation
    between the numbers of two classes could give the number of a third class.
    """

    def truth(position: int) -> Tensor | None:
        file = Path(folder) / f"{Path(dataset_of(dataset).describe(position)).stem}.png"
        if not file.is_file():
            return None
        image, _ = dataset.source[position]
        classes = np.array(open_image(file, mode=None))
        if classes.ndim != 2 or classes.shape != (image.height, image.width):
            raise ValueError(
                f"mask {sanitized(file)} has shape {classes.shape}, its image {(image.height, image.width)}"
            )
        labels = np.unique(classes[classes > 0])
        if len(labels) > MAX_MASK_CLASSES:
            raise ValueError(
                f"mask {sanitized(file)} has {len(labels):,} classes: expected at most {MAX_MASK_CLASSES:,}"
            )
        mask = torch.zeros(to_uint8(dataset.transforms(image)).shape[1:], dtype=torch.long)
        for label in labels:
            region = Image.fromarray(np.uint8(255) * (classes == label)).convert(image.mode)
            mask[to_uint8(dataset.transforms(region)).float().mean(0) > 127] = int(label)
        return mask

    return truth


def check_size(datas: list[ReportDataset], model: torch.nn.Module, config: str) -> None:
    """Raise ``ValueError`` unless the images have the model's input size and are as many as the first config's."""
    if len(datas[-1].dataset) != len(datas[0].dataset):
        raise ValueError(
            f"{sanitized(config)} has {len(datas[-1].dataset)} images, and the first config {len(datas[0].dataset)}: "
            "models must be compared on the same images"
        )
    image, spec = datas[-1].dataset[0]["inputs"], model.backbone.input_spec
    if spec is not None and tuple(image.shape) != spec.shape:
        raise ValueError(
            f"the images of {sanitized(config)} have shape {tuple(image.shape)}, the model takes {spec.shape}: change "
            "the config's transforms"
        )


def data_name(cfg: Config, args: argparse.Namespace) -> str:
    if args.images:
        return f"images of {Path(args.images).resolve().name}"
    return f"{dataset_name(cfg[f'{args.split}_dataloader'].dataset, cfg.get('data_root'))}, {args.split}"


def checkpoint_data(config: str, cfg: Config, file: str, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return a model's origin, without the user's directories and URL signatures, because pages are shared."""
    origin: dict[str, Any] = {"config": sanitized(public(config)), "checkpoint": sanitized(public(file))}
    if checkpoint is not None:
        origin["sha256"] = hash_file(ensure_local(file), hashlib.sha256())
        origin["notes"] = [sanitized(public(note), 1000) for note in checkpoint.notes]
    model = cfg.to_dict()["model"]
    origin["model"] = public(json.dumps(model, indent=2, default=str))[:MAX_CONFIG_CHARS]
    return origin


def run_data(args: argparse.Namespace, datas: list[ReportDataset], measured: int) -> dict[str, Any]:
    """Return the command, settings, data, versions and device of the report."""
    settings = ("split", "num_images", "shown", "eps_squared", "raw_length", "megabytes", "weights_megabytes", "seed")
    command = " ".join(["crate-mm report", *map(public, sys.argv[1:])])
    return shared_run_data(command, {name: getattr(args, name) for name in settings}, datas, measured)
