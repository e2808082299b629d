"""Segmentation without labels: IoU of the heads' masks with ground-truth masks, on a dataset in PASCAL VOC's layout."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as MplFigure
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from ...datasets import mask_sources
from ...io.untrusted import sanitized, spreadsheet_cell
from ...registry import FIGURES
from ..attention import cls_attention
from ..segmentation import MASK_FRACTION, attention_masks, best_heads, mean_iou
from ..taps import find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, patch_layout, resized_input, without_ticks
from .overlay import attention_bar, over_gray, scale_end, spread_of
from .style import InlineFigure

CLASSES = mask_sources.VOCSegmentation.classes


@FIGURES.register_module("segments")
class Segments(Figure):
    """mIoU of the heads' masks, and pictures of the masks.

    Images are resized to the model's size. A head's mask is the largest 60 % of its CLS attention map, enlarged to the
    ground truth's size by nearest neighbor. For each class in an image, the head with the highest IoU counts.
    Background is not a class, and void pixels are ignored. Source: Yu et al., CPAL 2024, arXiv 2308.16271, which uses
    the second-to-last layer and does not state the interpolation.
    """

    help = "mIoU of attention masks, without segmentation training, on PASCAL VOC"
    input_kind = "model"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--voc", default="data", metavar="DIR", help="folder that holds VOCdevkit (default: data)")
        parser.add_argument("--year", default="2012", help="year of the dataset (default: 2012)")
        parser.add_argument("--image-set", default="val", metavar="NAME", help="list of images (default: val)")
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
        data, rows, overlaps, examples = open_voc(options), [], [], []
        count = min(options.num_images, len(data)) if options.num_images > 0 else len(data)
        for i in range(count):
            image, truth = data[i]
            truth = torch.from_numpy(np.array(truth)).long()
            attention = attention_of(model, image, layer)
            masks = attention_masks(attention.flatten(1)).unflatten(1, attention.shape[1:])
            masks = F.interpolate(masks[None].float(), tuple(truth.shape), mode="nearest-exact")[0].bool()
            overlaps.append(best_heads(masks, truth))
            name = Path(data.images[i]).stem
            rows += [[spreadsheet_cell(name), c.label, class_name(c.label), c.head + 1, c.iou] for c in overlaps[-1]]
            if len(examples) < options.pictures and overlaps[-1]:
                examples.append((name, np.array(image), truth, masks, attention, overlaps[-1]))
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
        return FigureOutput({"segments": plot_segments(examples, title)} if examples else {}, numbers, note)


def open_voc(options: argparse.Namespace) -> VOCSegmentation:
    """Open the dataset with torchvision; raise ``ValueError`` if it does not exist."""
    try:
        return VOCSegmentation(options.voc, options.year, options.image_set, download=False)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        folder = Path(options.voc) / "VOCdevkit" / f"VOC{options.year}"
        raise ValueError(
            f"--voc {sanitized(options.voc)} has no PASCAL VOC {sanitized(options.year)}: expected {sanitized(folder)} "
            "with JPEGImages, SegmentationClass and "
            f"ImageSets/Segmentation/{sanitized(options.image_set)}.txt; {sanitized(error)}"
        ) from None


@torch.inference_mode()
def attention_of(model: torch.nn.Module, image: Image.Image, layer: int) -> Tensor:
    """Return the heads' CLS attention over an image in a layer (from 0), ``(K, rows, columns)``."""
    inputs = resized_input(model, image)
    attention = cls_attention(model, inputs, [layer])[layer][0]
    return attention.float().cpu().unflatten(-1, patch_layout(model, inputs)[1:])


def class_name(label: int) -> str:
    return CLASSES[label] if label < len(CLASSES) else str(label)


def plot_segments(examples: list[tuple], title: str) -> MplFigure:
    """Plot images, and below each the ground-truth mask of its largest class, the best head's attention and its mask.

    Args:
        examples: for each image its name, ``(H, W, 3)`` of uint8, classes ``(H, W)``, masks ``(K, H, W)``, attention
            ``(K, rows, columns)`` and overlaps.
        title: of the figure.
    """
    figure = InlineFigure(figsize=(max(1.9 * len(examples) + 1, 6), 7.4), layout="constrained")
    figure.suptitle(f"{sanitized(title)}\ncolor: multiples of uniform attention", fontsize=10, parse_math=False)
    rows = figure.subplots(4, len(examples), squeeze=False)
    for (first, *_), text in zip(rows, ("image", "ground truth", "attention", "mask")):
        first.set_ylabel(text, fontsize=9)
    tokens = 1 + examples[0][4][0].numel()
    end = scale_end((tokens * example[4] for example in examples), tokens)
    for axes, (name, image, truth, masks, attention, overlaps) in zip(rows.T, examples):
        largest = max(overlaps, key=lambda overlap: int((truth == overlap.label).sum()))
        of_head = attention[largest.head]
        axes[0].imshow(image)
        axes[2].imshow(over_gray(image, tokens * of_head, end))
        for panel, region in ((axes[1], truth == largest.label), (axes[3], masks[largest.head])):
            panel.imshow(np.where(region.numpy()[..., None], image, image // 5))
        axes[0].set_title(sanitized(name, 24), fontsize=8, parse_math=False)
        axes[1].set_xlabel(class_name(largest.label), fontsize=8)
        axes[2].set_xlabel(f"{spread_of(of_head)} tokens", fontsize=8)
        axes[3].set_xlabel(f"head {largest.head + 1}, IoU {largest.iou:.2f}", fontsize=8)
    without_ticks(rows.flat)
    clipped = any((tokens * example[4]).max() > end for example in examples)
    attention_bar(figure, list(rows[2]), end, clipped)
    return figure
