"""Look inside a model. Each subcommand draws one figure as PNG and PDF and writes its numbers.

python tools/analyze.py layers     configs/crate_tiny_digits.py random epoch_1.pth epoch_40.pth
python tools/analyze.py tokens     configs/crate_tiny_digits.py epoch_40.pth
python tools/analyze.py subspaces  configs/crate_tiny_digits.py epoch_40.pth
python tools/analyze.py attention  configs/crate_base_in1k.py crate_base.pth --images cat.jpg dog.jpg --size 448
python tools/analyze.py pca        configs/crate_base_in1k.py crate_base.pth --images cat1.jpg cat2.jpg cat3.jpg
python tools/analyze.py features   configs/crate_tiny_digits.py epoch_40.pth --method tsne
python tools/analyze.py segments   configs/crate_small8_in21k.py crate_small8.pth --voc data
python tools/analyze.py objects    configs/crate_small8_in21k.py crate_small8.pth --coco instances_val2017.json \\
  --folder val2017 --num-images 0
python tools/analyze.py masks      configs/segmentation_mini_scenes.py epoch_10.pth
python tools/analyze.py reconstruct configs/crate_mae_base_in1k.py crate_mae_base.pth --images cat.jpg dog.jpg

CHECKPOINT is a file from crate_mm or a third party, or 'random' for random weights. To add a figure, register a class
in FIGURES, and name the module of the class in the config's custom_imports.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import set_random_seed
from torch import nn

from ..analysis.figures import STYLES, Figure, FigureInput, FigureOutput, figure_style, save
from ..analysis.taps import LayerError
from ..checkpoints import Checkpoint
from ..checkpoints.fit import BACKBONE, load_strict
from ..config import default_work_dir, defines_model, load_config
from ..datasets import build_transforms
from ..datasets.base import dataset_of
from ..datasets.images import UnreadableImageError, open_image
from ..datasets.transforms import to_uint8
from ..inference.standalone import (
    build_loader,
    build_transferred_model,
    load_config_and_checkpoint,
    set_image_size,
    subset,
)
from ..inference.standalone import build_model as build_from
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say
from ..models.tasks.base import image_shape, task_of
from ..registry import FIGURES
from .options import Parser, add_shared, distinct_names, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    if len(sys.argv) > 2 and sys.argv[1] not in FIGURES.names() and not sys.argv[1].startswith("-"):
        with user_errors():
            load_config(sys.argv[2])  # the config's custom_imports may register the figure
    for name in FIGURES.names():
        figure = FIGURES.build({"type": name})
        command = commands.add_parser(name, help=figure.help, description=figure.help)
        add_shared(command, "config")
        command.add_argument("checkpoint", nargs="+" if figure.accepts_many else 1, help="checkpoint file, or 'random'")
        command.add_argument("--out", metavar="DIR", help="output directory (default: work_dirs/<config>/analysis)")
        command.add_argument(
            "--layers", type=int, nargs="+", metavar="L", help="layers, counted from 1, or from -1 backward"
        )
        command.add_argument("--seed", type=int, default=0, help="seed of 'random' and of sampling (default: 0)")
        if figure.input_kind == "images":
            command.add_argument("--images", nargs="+", required=True, metavar="FILE", help="image files")
            command.add_argument(
                "--size", type=positive_int, metavar="PIXELS", help="image size (default: the config's)"
            )
        elif figure.input_kind == "split":
            nargs, splits = "+" if figure.accepts_many else 1, ["train", "val", "test"]
            command.add_argument("--split", nargs=nargs, choices=splits, default=["test"], help="default: test")
        figure.add_options(command)
        command.add_argument(
            "--style", choices=STYLES, default="screen", help="'paper': fixed width, embedded fonts (default: screen)"
        )
        command.add_argument("--width", type=float, metavar="INCHES", help="width with --style paper (default: 5.5)")
        command.add_argument("--font-size", type=float, metavar="POINTS", help="font with --style paper (default: 8)")
        add_shared(command, "--cfg-options")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        if args.layers and 0 in args.layers:
            raise ValueError("there is no layer 0: layers are counted from 1, or from -1 backward")
        args.layers = [layer - 1 if layer > 0 else layer for layer in args.layers] if args.layers else None
        cfg = load_config(args.config, args.cfg_options) if defines_model(load_config(args.config)) else None
        figure = FIGURES.build({"type": args.figure})
        args.loaded = {}  # file -> (config with a model, checkpoint)
        for file in args.checkpoint:
            source = None if file == "random" else file
            args.loaded[file] = load_config_and_checkpoint(
                args.config, source, args.cfg_options, full_model=figure.full_model
            )
            cfg = cfg or args.loaded[file][0]
        out = Path(args.out or f"{default_work_dir(cfg)}/analysis")
        with figure_style(args.style, args.width, args.font_size):
            out.mkdir(parents=True, exist_ok=True)
            try:
                output = figure.run(list(figure_inputs(figure, cfg, args)), args)
            except LayerError as error:  # on the command line the first layer is 1, as in the paper
                raise LayerError(*error.arguments, first=1) from None
            if output.note:
                say(output.note)
            say("wrote " + ", ".join(map(sanitized, write(output, out))))


def figure_inputs(figure: Figure, cfg: Config, args: argparse.Namespace) -> Iterator[FigureInput]:
    """Yield the input of a figure for each checkpoint and split."""
    for checkpoint, name in zip(args.checkpoint, distinct_names(args.checkpoint)):
        if figure.input_kind == "images":
            yield image_input(args.loaded[checkpoint][0], checkpoint, args, figure.full_model)
            continue
        model = build_model(*args.loaded[checkpoint], args.seed, figure.full_model)
        if figure.input_kind == "model":
            yield FigureInput(name, model)
            continue
        for split in args.split:
            loader = build_loader(cfg, split)
            batches = subset(loader, figure.choose(len(loader.dataset), args))
            classes = tuple(dataset_of(loader.dataset).classes or ())
            # The label names only the parts that differ between the inputs.
            parts = [name] * (len(args.checkpoint) > 1) + [split] * (len(args.split) > 1)
            yield FigureInput(", ".join(parts or [split]), model, batches, classes=classes)


def image_input(cfg: Config, checkpoint: str, args: argparse.Namespace, whole: bool) -> FigureInput:
    """Return a model for images of ``--size``, with the image files as a batch and as pictures of this size."""
    if args.size and not set_image_size(cfg, args.size):
        raise ValueError("--size sets model.backbone.img_size, which the config's model does not have")
    model = build_model(*args.loaded[checkpoint], args.seed, whole)
    _, H, W = image_shape(model)
    square = build_transforms([{"type": "Resize", "size": min(H, W)}, {"type": "CenterCrop", "size": (H, W)}])
    inputs, pictures = [], []
    for file in args.images:
        try:
            picture = square(open_image(file))
        except UnreadableImageError as error:
            raise ValueError(f"image {sanitized(file)} cannot be read: {error}") from None
        pictures.append(np.asarray(picture))
        inputs.append(to_uint8(picture.convert("L") if model.in_channels == 1 else picture))
    return FigureInput("", model, [{"inputs": torch.stack(inputs)}], tuple(pictures), tuple(args.images))


def build_model(cfg: Config, checkpoint: Checkpoint | None, seed: int, full_model: bool = False) -> nn.Module:
    """Build a config's model in eval mode.

    Args:
        checkpoint: source of the weights; None initializes them at random.
        full_model: load all weights, not only the backbone's.
    """
    if checkpoint is not None and full_model:
        model = task_of(build_from(cfg, checkpoint))
        load_strict(model, checkpoint)
        checkpoint.log_notes(say)
        return model.to(get_device()).eval()
    if checkpoint is not None:
        model, report = build_transferred_model(cfg, checkpoint)
        checkpoint.log_notes(say)
        if any(name.startswith(BACKBONE) for name in (*report.dropped, *report.new)):
            say(f"{checkpoint.path} provides only a part of the backbone:", *report.table().split("\n"))
        return task_of(model)
    set_random_seed(seed)
    return task_of(build_from(cfg, None)).to(get_device()).eval()


def write(output: FigureOutput, out: Path) -> list[Path]:
    """Write pictures and numbers to a directory; return the files."""
    files = [file for stem, picture in output.pictures.items() for file in save(picture, out / stem)]
    for name, contents in output.numbers.items():
        files.append(out / name)
        write_numbers(out / name, contents)
    return files


def write_numbers(file: Path, contents: Any) -> None:
    """Write a dict of arrays as NPZ, rows as CSV or data as JSON, by the file's extension."""
    if file.suffix == ".npz":
        with atomic_file(file) as stream:
            np.savez(stream, **contents)
        return
    with atomic_file(file, text=True) as stream:
        if file.suffix == ".csv":
            csv.writer(stream).writerows(contents)
        else:
            stream.write(json.dumps(contents) + "\n")
