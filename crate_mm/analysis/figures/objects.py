"""Object discovery without labels by MaskCut: boxes and masks in COCO's format, and AP if the ground truth is known."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle
from PIL import Image

from ...datasets.images import UnreadableImageError, open_image
from ...datasets.scenes import Scenes
from ...io.untrusted import sanitized
from ...models.backbone import image_spec
from ...registry import FIGURES
from ..maskcut import (
    COUNT,
    THRESHOLD,
    average_precision,
    coco_annotation,
    maskcut,
    patch_affinity,
    require_pycocotools,
)
from ..taps import find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, resized_input, without_ticks
from .style import sheet

CATEGORY = {"id": 1, "name": "object"}
COLORS = ("C1", "C0", "C2", "C3", "C4", "C6", "C8", "C9")


class Picture(NamedTuple):
    """An image to search, its entry in COCO's ``images``, and the annotations of its true objects (None if unknown)."""

    image: Image.Image
    entry: dict[str, Any]
    truth: list[dict[str, Any]] | None


@FIGURES.register_module("objects")
class Objects(Figure):
    """Objects that MaskCut finds, as a picture and as a file in COCO's format.

    Images are resized to the model's size. Masks are enlarged to the size of the image by nearest-neighbor
    interpolation. The objects of an image get the scores 1, 1 - 1/n, 1 - 2/n, ... in the order of the cuts, where n is
    ``--count``. AP counts all categories as one.
    """

    help = "objects found without labels (MaskCut): boxes, masks, and AP if the ground truth is known"
    input_kind = "model"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--files", nargs="+", metavar="FILE", help="image files (default: scenes, see --root)")
        parser.add_argument(
            "--coco", metavar="FILE", help="annotations in COCO's format, such as instances_val2017.json"
        )
        parser.add_argument("--folder", metavar="DIR", help="folder of the images of --coco")
        text = "folder with FashionMNIST for the scenes; without FashionMNIST, digits are used (default: data)"
        parser.add_argument("--root", default="data", help=text)
        parser.add_argument(
            "--num-images",
            type=int,
            default=100,
            help="number of scenes or of --coco images; 0 for all of --coco (default: 100)",
        )
        text = f"largest number of objects per image (default: {COUNT})"
        parser.add_argument("--count", type=int, default=COUNT, help=text)
        parser.add_argument(
            "--threshold", type=float, default=THRESHOLD, help=f"ignore smaller affinities (default: {THRESHOLD})"
        )
        parser.add_argument("--pictures", type=int, default=6, help="number of images to draw (default: 6)")

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        require_pycocotools()
        model = subject.model
        requested = options.layers or [-1]
        if len(requested) > 1:
            raise ValueError(f"objects uses one layer, got {len(requested)}")
        (layer,) = find_layers(model, requested)
        entries, truth, predicted, examples = [], [], [], []
        for image, entry, annotations in open_pictures(options, image_spec(model.backbone).size):
            masks = find_objects(model, image, layer, options.count, options.threshold)
            entries.append(entry)
            scores = [1 - i / options.count for i in range(len(masks))]
            start = len(predicted) + 1
            predicted += [coco_annotation(m, entry["id"], start + i, s) for i, (m, s) in enumerate(zip(masks, scores))]
            truth += annotations or []
            if len(examples) < options.pictures:
                examples.append((entry["file_name"], image, masks, annotations, predicted[start - 1 :]))
        known = not options.files
        dataset = {"images": entries, "annotations": predicted, "categories": [CATEGORY]}
        summary = {
            "images": len(entries),
            "objects": len(predicted),
            "layer": layer + 1,
            "threshold": options.threshold,
        }
        text = f"{len(predicted)} objects in {len(entries)} images, layer {layer + 1}"
        if known:
            summary |= average_precision({"images": entries, "annotations": truth}, predicted)
            parts = ((name, summary[kind]) for name, kind in (("boxes", "bbox"), ("masks", "segm")))
            texts = (f"{n} {100 * ap['AP50']:.1f} / {100 * ap['AP75']:.1f} / {100 * ap['AP']:.1f}" for n, ap in parts)
            text += f"; AP50 / AP75 / AP: {', '.join(texts)} %"
        numbers = {"objects.json": dataset, "objects_summary.json": summary}
        title = f"{name_of(model)}: {text}"
        return FigureOutput({"objects": plot_objects(examples, title)} if examples else {}, numbers, text)


def open_pictures(options: argparse.Namespace, size: tuple[int, int]) -> Iterator[Picture]:
    """Yield the images that the options select.

    Args:
        options: options of the figure.
        size: height and width of the model's images. Scenes are square; their side is the smaller of the two.

    Raises:
        ValueError: the options contradict each other, or a file cannot be used.
    """
    if bool(options.coco) != bool(options.folder):
        raise ValueError("--coco FILE and --folder DIR belong together: annotations and their images")
    if options.coco and options.files:
        raise ValueError("give --files or --coco, not both")
    if options.num_images < 0 or options.pictures < 0:
        raise ValueError("--num-images and --pictures must be at least 0")
    if options.files:
        for number, file in enumerate(options.files, 1):
            image = opened(Path(file))
            yield Picture(image, entry_of(image, number, Path(file).name), None)
    elif options.coco:
        yield from coco_pictures(Path(options.coco), Path(options.folder), options.num_images)
    else:
        scenes = Scenes(options.root, "val", length=options.num_images or 100, size=min(size))
        number = 0
        for index in range(len(scenes)):
            image, truth = scenes[index][0], []
            for mask in scenes.instances(index):
                truth.append(coco_annotation(mask, index + 1, number := number + 1))
            yield Picture(image, entry_of(image, index + 1, f"scene {index}"), truth)


def coco_pictures(file: Path, folder: Path, count: int) -> Iterator[Picture]:
    """Yield the first ``count`` images of a file in COCO's format (0: all images), in the order of their IDs."""
    try:
        data = json.loads(file.read_bytes())
        entries = sorted(data["images"], key=lambda entry: entry["id"])
        truth: dict[int, list] = {entry["id"]: [] for entry in entries}
        for annotation in data["annotations"]:
            truth[annotation["image_id"]].append(annotation)
        files = [(str(entry["file_name"]), (entry["width"], entry["height"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--coco {sanitized(file)} has no annotations in COCO's format (images, annotations): "
            f"{type(error).__name__}: {sanitized(error)}"
        ) from None
    for entry, (name, size) in list(zip(entries, files))[: count or None]:
        image = opened(folder / Path(name).name)
        if image.size != size:
            raise ValueError(
                f"{sanitized(name)} has {image.size[0]} x {image.size[1]} pixels, but {sanitized(file.name)} says "
                f"{sanitized(size[0])} x {sanitized(size[1])}"
            )
        yield Picture(image, entry_of(image, entry["id"], name), truth[entry["id"]])


def opened(file: Path) -> Image.Image:
    try:
        return open_image(file)
    except UnreadableImageError as error:
        raise ValueError(f"image {sanitized(file)} cannot be read: {error}") from None


def entry_of(image: Image.Image, number: int, name: str) -> dict[str, Any]:
    """Return an image's entry in COCO's ``images``."""
    return {"id": number, "file_name": name, "width": image.size[0], "height": image.size[1]}


@torch.inference_mode()
def find_objects(
    model: torch.nn.Module, image: Image.Image, layer: int, count: int = COUNT, threshold: float = THRESHOLD
) -> list[np.ndarray]:
    """Return the masks of an image's objects, each ``(H, W)`` of bool, where H x W is the size of the image.

    Args:
        model: an image task.
        image: an image of any size; it is resized to the model's size.
        layer: index of the layer, from 0.
        count, threshold: arguments of ``maskcut``.
    """
    affinity, grid = patch_affinity(model, resized_input(model, image), layer)
    masks = maskcut(affinity[0].cpu().numpy(), grid, count, threshold)
    tensors = (torch.from_numpy(mask)[None, None].float() for mask in masks)
    return [F.interpolate(t, image.size[::-1], mode="nearest-exact")[0, 0].bool().numpy() for t in tensors]


def plot_objects(examples: list[tuple], title: str) -> MplFigure:
    """Plot three rows: images, the objects found, and the true objects if they are known.

    Args:
        examples: for each image: name, image, masks ``(H, W)``, true annotations or None, and found annotations.
        title: title of the figure.
    """
    has_truth = any(truth is not None for *_, truth, _ in examples)
    rows = 3 if has_truth else 2
    figure = sheet(max(1.9 * len(examples) + 0.4, 6.5), 1.9 * rows + 0.9, text=0.9)
    figure.suptitle(sanitized(title), fontsize="medium", parse_math=False)
    grid = figure.subplots(rows, len(examples), squeeze=False)
    for (first, *_), text in zip(grid, ("image", "found", "true objects")):
        first.set_ylabel(text, fontsize="small")
    for axes, (name, image, masks, truth, predicted) in zip(grid.T, examples):
        pixels = np.asarray(image.convert("RGB"))
        for panel in axes:
            panel.imshow(pixels if panel is axes[0] else pixels // 2)
        axes[0].set_title(sanitized(name, 24), fontsize="small", parse_math=False)
        draw_masks(axes[1], masks, [annotation["bbox"] for annotation in predicted])
        axes[1].set_xlabel(number_of(masks), fontsize="x-small")
        if has_truth:
            truth = truth or []
            draw_masks(axes[2], [], [annotation["bbox"] for annotation in truth])
            axes[2].set_xlabel(number_of(truth), fontsize="x-small")
    without_ticks(grid.flat)
    return figure


def number_of(objects: list) -> str:
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def draw_masks(panel: Any, masks: list[np.ndarray], boxes: list[list[float]]) -> None:
    """Draw masks as colored areas and boxes as frames; the i-th mask and the i-th box have the i-th color."""
    from matplotlib.colors import to_rgba

    for number, box in enumerate(boxes):
        color = COLORS[number % len(COLORS)]
        if number < len(masks):
            panel.imshow(masks[number][..., None] * np.array(to_rgba(color, 0.6)))
        panel.add_patch(Rectangle((box[0] - 0.5, box[1] - 0.5), *box[2:], fill=False, edgecolor=color, linewidth=1.5))
