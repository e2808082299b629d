"""Segmentation without labels: IoU of the heads' masks with ground-truth masks, on PASCAL VOC or generated scenes."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as MplFigure
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from ...datasets import mask_sources
from ...datasets.scenes import GROUND, Scenes
from ...io.untrusted import sanitized, spreadsheet_cell
from ...models.backbone import image_spec
from ...registry import FIGURES
from ..attention import cls_attention
from ..segmentation import MASK_FRACTION, ClassOverlap, attention_masks, best_heads, mean_iou
from ..taps import find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, patch_layout, resized_input, without_ticks
from .overlay import attention_bar, over_gray, scale_end, spread_of
from .style import InlineFigure

SCENES = 500  # the validation scenes of the configs


class Example(NamedTuple):
    """An image and the data drawn below it.

    Attributes:
        name: name of the image.
        image: ``(H, W, 3)`` of uint8.
        truth: class of each pixel, ``(H, W)``; 0 is the background.
        masks: masks of the heads, ``(K, H, W)``.
        attention: attention of the heads, ``(K, rows, columns)``.
        overlaps: best head and IoU of each class in the image.
    """

    name: str
    image: np.ndarray
    truth: Tensor
    masks: Tensor
    attention: Tensor
    overlaps: list[ClassOverlap]


@FIGURES.register_module("segments")
class Segments(Figure):
    """mIoU of the heads' masks, and pictures of the masks.

    Images are resized to the model's size. A head's mask is the largest 60 % of its CLS attention map, enlarged to the
    ground truth's size by nearest neighbor. For each class in an image, the head with the highest IoU counts.
    Background is not a class, and void pixels are ignored. Source: Yu et al., CPAL 2024, arXiv 2308.16271, which uses
    the second-to-last layer and does not state the interpolation.
    """

    help = "mIoU of attention masks, without segmentation training, on PASCAL VOC or generated scenes"
    input_kind = "model"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--voc", default="data", metavar="DIR", help="folder that holds VOCdevkit (default: data)")
        parser.add_argument("--year", default="2012", help="year of the dataset (default: 2012)")
        parser.add_argument("--image-set", default="val", metavar="NAME", help="list of images (default: val)")
        text = "use 500 scenes of FashionMNIST in this folder (of digits if it is not there) instead of PASCAL VOC"
        parser.add_argument("--scenes", metavar="DIR", help=text)
        parser.add_argument("--num-images", type=int, default=0, help="use only the first N images (default: all)")
        parser.add_argument("--pictures", type=int, default=6, help="number of images to draw (default: 6)")

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        model = subject.model
        depth = len(find_layers(model))
        requested = options.layers or [-2 if depth > 1 else -1]
        if len(requested) > 1:
            raise ValueError(f"segments uses one layer, got {len(requested)}")
        (layer,) = find_layers(model, requested)
        classes, images = open_scenes(options, model) if options.scenes else open_voc(options)
        rows, overlaps, examples = [], [], []
        for name, image, truth in images:
            attention = attention_of(model, image, layer)
            masks = attention_masks(attention.flatten(1)).unflatten(1, attention.shape[1:])
            masks = F.interpolate(masks[None].float(), tuple(truth.shape), mode="nearest-exact")[0].bool()
            overlaps.append(best_heads(masks, truth))
            rows += [
                [spreadsheet_cell(name), c.label, class_name(classes, c.label), c.head + 1, c.iou] for c in overlaps[-1]
            ]
            if len(examples) < options.pictures and overlaps[-1]:
                picture = np.array(image.convert("RGB"))
                examples.append(Example(name, picture, truth, masks, attention, overlaps[-1]))
        score = mean_iou(overlaps)
        if not rows:
            raise ValueError(
                f"no mask of {sanitized(options.image_set)} in {sanitized(options.voc)} has a class other than "
                "background"
            )
        summary = {
            "miou": score,
            "images": sum(bool(classes) for classes in overlaps),
            "layer": layer + 1,
            "share": MASK_FRACTION,
            "best_by_head": {str(head): count for head, count in sorted(Counter(row[3] for row in rows).items())},
        }
        numbers = {"segments.json": summary, "segments.csv": [["image", "label", "class", "best head", "IoU"], *rows]}
        note = f"mIoU {100 * score:.1f} % on {summary['images']} images, layer {layer + 1}, the best head of each class"
        title = f"{name_of(model)}: masks of the best heads, layer {layer + 1}, mIoU {100 * score:.1f} %"
        pictures = {"segments": plot_segments(examples, classes, title)} if examples else {}
        return FigureOutput(pictures, numbers, note)


Images = Iterator[tuple[str, Image.Image, Tensor]]  # name, image, and class of each pixel (H, W)


def open_voc(options: argparse.Namespace) -> tuple[list[str], Images]:
    """Open the dataset with torchvision; return its classes and images.

    Raises:
        ValueError: the dataset does not exist.
    """
    try:
        data = VOCSegmentation(options.voc, options.year, options.image_set, download=False)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        folder = Path(options.voc) / "VOCdevkit" / f"VOC{options.year}"
        raise ValueError(
            f"--voc {sanitized(options.voc)} has no PASCAL VOC {sanitized(options.year)}: expected {sanitized(folder)} "
            "with JPEGImages, SegmentationClass and "
            f"ImageSets/Segmentation/{sanitized(options.image_set)}.txt; {sanitized(error)}"
        ) from None
    count = min(options.num_images, len(data)) if options.num_images > 0 else len(data)
    samples = ((Path(data.images[i]).stem, *data[i]) for i in range(count))
    images = ((name, image, torch.from_numpy(np.array(truth)).long()) for name, image, truth in samples)
    return list(mask_sources.VOCSegmentation.classes), images


def open_scenes(options: argparse.Namespace, model: torch.nn.Module) -> tuple[list[str], Images]:
    """Return the classes and the validation scenes at the model's size; the ground is the background, class 0."""
    data = Scenes(
        options.scenes, "val", length=max(options.num_images, 0) or SCENES, size=min(image_spec(model.backbone).size)
    )
    names = [GROUND, *(name for name in data.classes if name != GROUND)]
    order = torch.tensor([names.index(name) for name in data.classes])
    samples = (data.load(i) for i in range(len(data)))
    return names, (
        (f"scene {i}", image, order[torch.from_numpy(labels).long()]) for i, (image, labels) in enumerate(samples)
    )


@torch.inference_mode()
def attention_of(model: torch.nn.Module, image: Image.Image, layer: int) -> Tensor:
    """Return the heads' CLS attention over an image in a layer (from 0), ``(K, rows, columns)``."""
    inputs = resized_input(model, image)
    attention = cls_attention(model, inputs, [layer])[layer][0]
    return attention.float().cpu().unflatten(-1, patch_layout(model, inputs)[1:])


def class_name(classes: list[str], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)


def plot_segments(examples: list[Example], classes: list[str], title: str) -> MplFigure:
    """Plot images, and below each image its largest class's true mask, and the best head's attention and mask.

    Args:
        examples: images of one model.
        classes: names of the classes.
        title: title of the figure.
    """
    figure = InlineFigure(figsize=(max(1.9 * len(examples) + 1, 6), 7.4), layout="constrained")
    figure.suptitle(f"{sanitized(title)}\ncolor: multiples of uniform attention", fontsize=10, parse_math=False)
    rows = figure.subplots(4, len(examples), squeeze=False)
    for (first, *_), text in zip(rows, ("image", "ground truth", "attention", "mask")):
        first.set_ylabel(text, fontsize=9)
    tokens = 1 + examples[0].attention[0].numel()
    end = scale_end((tokens * example.attention for example in examples), tokens)
    for axes, (name, image, truth, masks, attention, overlaps) in zip(rows.T, examples):
        largest = max(overlaps, key=lambda overlap: int((truth == overlap.label).sum()))
        of_head = attention[largest.head]
        axes[0].imshow(image)
        axes[2].imshow(over_gray(image, tokens * of_head, end))
        for panel, region in ((axes[1], truth == largest.label), (axes[3], masks[largest.head])):
            panel.imshow(np.where(region.numpy()[..., None], image, image // 5))
        axes[0].set_title(sanitized(name, 24), fontsize=8, parse_math=False)
        axes[1].set_xlabel(sanitized(class_name(classes, largest.label), 24), fontsize=8)
        axes[2].set_xlabel(f"{spread_of(of_head)} tokens", fontsize=8)
        axes[3].set_xlabel(f"head {largest.head + 1}, IoU {largest.iou:.2f}", fontsize=8)
    without_ticks(rows.flat)
    clipped = any((tokens * example.attention).max() > end for example in examples)
    attention_bar(figure, list(rows[2]), end, clipped)
    return figure
