"""Segmentation that nobody taught: how well the heads' masks fit true ones, on a dataset in PASCAL VOC's layout."""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as MplFigure
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from ...io.untrusted import sanitized, spreadsheet_cell
from ...models.backbone import image_spec
from ...registry import FIGURES
from ..attention import cls_attention
from ..segmentation import MASK_FRACTION, ClassOverlap, attention_masks, best_heads, mean_iou
from ..taps import find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, patch_layout

CLASSES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
CLASSES += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]


@FIGURES.register_module("segments")
class Segments(Figure):
    """mIoU of the heads' coarse masks, and pictures of the masks.

    An image is resized to the model's size, and the CLS token's map of each head is cut at its largest 60 % of entries
    and enlarged to the true mask's size, each pixel as its patch. Of each class in the image the best head counts; the
    background is no class, and void pixels count neither way. Source: Yu et al., CPAL 2024, arXiv 2308.16271, which
    looks at the layer before the last one, and does not say how its maps are brought to the masks' size.
    """

    help = "mIoU of masks that attention makes, without training for them, on PASCAL VOC"
    input_kind = "model"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--voc", default="data", metavar="DIR", help="folder that holds VOCdevkit (default: data)")
        parser.add_argument("--year", default="2012", help="of the dataset (default: 2012)")
        parser.add_argument("--image-set", default="val", metavar="NAME", help="its list of images (default: val)")
        parser.add_argument("--num-images", type=int, default=0, help="the first so many of them (default: all)")
        parser.add_argument("--pictures", type=int, default=6, help="how many are drawn (default: 6)")

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        model = subject.model
        depth = len(find_layers(model))
        asked = options.layers or [-2 if depth > 1 else -1]
        if len(asked) > 1:
            raise ValueError(f"segments looks at one layer, got {len(asked)} of them")
        (layer,) = find_layers(model, asked)
        data, rows, found, drawn = open_voc(options), [], [], []
        count = min(options.num_images, len(data)) if options.num_images > 0 else len(data)
        for i in range(count):
            image, truth = data[i]
            truth = torch.from_numpy(np.array(truth)).long()
            masks = masks_of(model, image, layer, tuple(truth.shape))
            found.append(best_heads(masks, truth))
            name = Path(data.images[i]).stem
            rows += [[spreadsheet_cell(name), c.label, class_name(c.label), c.head + 1, c.iou] for c in found[-1]]
            if len(drawn) < options.pictures and found[-1]:
                drawn.append((name, np.array(image), truth, masks, found[-1]))
        score = mean_iou(found)
        if not rows:
            raise ValueError(
                f"no image of {sanitized(options.image_set)} in {sanitized(options.voc)} has a class in its mask"
            )
        told = {
            "miou": score,
            "images": sum(bool(classes) for classes in found),
            "layer": layer + 1,
            "share": MASK_FRACTION,
            "best_by_head": by_head(found),
        }
        numbers = {"segments.json": told, "segments.csv": [["image", "label", "class", "best head", "IoU"], *rows]}
        note = f"mIoU {100 * score:.1f} % on {told['images']} images, layer {layer + 1}, the best head of each class"
        title = f"{name_of(model)}: masks of the best heads, layer {layer + 1}, mIoU {100 * score:.1f} %"
        return FigureOutput({"segments": plot_segments(drawn, title)} if drawn else {}, numbers, note)


def open_voc(options: argparse.Namespace) -> VOCSegmentation:
    """torchvision's reader of the dataset; raise ``ValueError`` if it is not there."""
    try:
        return VOCSegmentation(options.voc, options.year, options.image_set, download=False)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        folder = Path(options.voc) / "VOCdevkit" / f"VOC{options.year}"
        raise ValueError(
            f"--voc {sanitized(options.voc)} holds no PASCAL VOC {sanitized(options.year)}: expected {sanitized(folder)} with "
            f"JPEGImages, SegmentationClass and ImageSets/Segmentation/{sanitized(options.image_set)}.txt; {sanitized(error)}"
        ) from None


@torch.inference_mode()
def masks_of(model: torch.nn.Module, image: Image.Image, layer: int, size: tuple[int, int]) -> Tensor:
    """The heads' masks of an image in a layer, counted from 0, ``(K, H, W)`` of bool for the ``size`` (H, W)."""
    height, width = image_spec(model.backbone).size
    mode = "L" if model.in_channels == 1 else "RGB"
    pixels = np.array(image.convert(mode).resize((width, height), Image.Resampling.BILINEAR))
    inputs = torch.from_numpy(pixels).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    inputs = model.data_preprocessor({"inputs": inputs})["inputs"]
    attention = cls_attention(model, inputs, [layer])[layer][0]
    masks = attention_masks(attention.float()).unflatten(-1, patch_layout(model, inputs)[1:])
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0].bool().cpu()


def class_name(label: int) -> str:
    return CLASSES[label] if label < len(CLASSES) else str(label)


def by_head(found: list[list[ClassOverlap]]) -> dict[str, int]:
    """How often each head, counted from 1, was the best one."""
    counts: dict[int, int] = {}
    for classes in found:
        for overlap in classes:
            counts[overlap.head + 1] = counts.get(overlap.head + 1, 0) + 1
    return {str(head): counts[head] for head in sorted(counts)}


def plot_segments(drawn: list[tuple[str, np.ndarray, Tensor, Tensor, list[ClassOverlap]]], title: str) -> MplFigure:
    """Images in a row, their true masks, and of the largest class the best head's mask.

    Args:
        drawn: name, ``(H, W, 3)`` of uint8, classes ``(H, W)``, masks ``(K, H, W)`` and the overlaps, of each image.
        title: above them all.
    """
    figure = MplFigure(figsize=(max(1.9 * len(drawn) + 0.5, 5.5), 5.4), layout="constrained")
    figure.suptitle(sanitized(title), fontsize=10, parse_math=False)
    above, middle, below = figure.subplots(3, len(drawn), squeeze=False)
    for axes, side in zip((above[0], middle[0], below[0]), ("image", "true mask", "best head")):
        axes.set_ylabel(side, fontsize=9)
    for number, (name, image, truth, masks, overlaps) in enumerate(drawn):
        largest = max(overlaps, key=lambda overlap: int((truth == overlap.label).sum()))
        for axes, region in ((middle[number], truth == largest.label), (below[number], masks[largest.head])):
            axes.imshow(np.where(region.numpy()[..., None], image, image // 5))
        above[number].imshow(image)
        above[number].set_title(sanitized(name, 24), fontsize=8, parse_math=False)
        told = f"{class_name(largest.label)}\nhead {largest.head + 1}, IoU {largest.iou:.2f}"
        below[number].set_xlabel(told, fontsize=8)
        for axes in (above[number], middle[number], below[number]):
            axes.set(xticks=[], yticks=[])
    return figure
