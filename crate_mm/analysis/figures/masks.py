"""Predicted masks, true masks, and the maps of the decoder's class tokens, side by side."""

import argparse
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure as MplFigure
from PIL import Image
from torch import Tensor, nn

from ...datasets.masks import IGNORED_PIXEL, overlay
from ...io.untrusted import sanitized, spreadsheet_cell
from ...models import Segmentation
from ...models.decoders.base import class_maps
from ...models.layers import Layer, TokenLayout
from ...registry import FIGURES
from ..gather import LayerMeasures, measure_layers
from ..table import MEASURES
from ..taps import capture, find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, sample_positions, without_ticks
from .layers import plot_layers
from .overlay import attention_bar, over_gray, scale_end
from .style import sheet
from .subspaces import Subspaces

DIRECTIONS = 4  # basis vectors shown per head of the decoder
MAPS = 2  # class tokens shown per image: the tokens of its largest true classes


class Example(NamedTuple):
    """Data drawn for one image.

    Attributes:
        image: ``(H, W, 1 or 3)`` of uint8, in the size of the masks.
        truth: true labels ``(H, W)``, or None if unknown.
        predicted: predicted labels ``(H, W)``.
        maps: None, or the map of each class token, ``(C, h, w)``: averaged over the heads, divided by the map's mean.
    """

    image: np.ndarray
    truth: np.ndarray | None
    predicted: np.ndarray
    maps: Tensor | None

    def largest(self) -> list[int]:
        """Return the classes with the most true pixels, or predicted pixels if the truth is unknown."""
        labels = self.predicted if self.truth is None else self.truth
        counts = np.bincount(labels.flatten(), minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
        return [int(label) for label in np.argsort(-counts, kind="stable")[:MAPS] if counts[label]]


@FIGURES.register_module("masks")
class Masks(Figure):
    """Masks of a segmentation, and the white box of its decoder: maps of class tokens, measures by layer, subspaces.

    The map of a class token is its attention to the patches in a decoder layer (for CBSA, its row of the similarity
    A^T A), averaged over the heads. A decoder without layers, such as ``LinearDecoder``, has neither maps nor measures.
    """

    help = "predicted and true masks, the maps of the decoder's class tokens, and R^c of the decoder's layers"
    full_model = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num-images", type=int, default=6, help="number of images (default: 6)")

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        return sample_positions(total, options.num_images, options.seed)

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        model = subject.model
        if not isinstance(model, Segmentation):
            raise ValueError(f"{type(model).__name__} predicts no masks: use a Segmentation")
        decoder, number = model.head, chosen_layer(model.head, options.layers)
        measures = LayerMeasures()
        examples = []
        for batch in subject.batches:
            if not has_masks(batch):
                raise ValueError("masks needs true masks, but the data has none: use a SegmentationDataset")
            examples += examples_of(model, batch, number, measures)
        rows = measures.rows()
        names = list(subject.classes or model.class_names or map(str, range(model.num_classes)))
        kind = type(decoder).__name__
        title = f"{name_of(model)} with {kind}"
        if number is not None:
            title += f", maps of the class tokens in its layer {number + 1}"
        pictures = {"masks": plot_masks(examples, names, title)}
        numbers: dict = {"masks.csv": [["image", "label", "class", "true pixels", "predicted pixels", "IoU"]]}
        for i, example in enumerate(examples):
            cells = ([label, spreadsheet_cell(names[label]), *counts] for label, *counts in overlaps(example))
            numbers["masks.csv"] += [[i, *row] for row in cells]
        if any(example.maps is not None for example in examples):
            numbers["masks.npz"] = {f"{i}_maps": example.maps.numpy() for i, example in enumerate(examples)}
        if rows:
            shown = [name for name in ("rc_z", "rc_half") if any(row.measure == name for row in rows)]
            pictures |= {"decoder_layers": plot_layers({kind: rows}, shown)} if shown else {}
            table = [[r.measure, MEASURES[r.measure].meaning, r.layer, r.mean, r.std, r.count] for r in rows]
            head = ["measure", "meaning", "layer", "mean", "std", "images"]
            numbers["decoder_layers.csv"] = [head, *table]
            if any(layer.subspaces() is not None for layer in find_layers(decoder).values()):
                settings = argparse.Namespace(layers=None, seed=options.seed, directions=DIRECTIONS)
                drawn = Subspaces().run([FigureInput("", decoder)], settings)
                pictures["decoder_subspaces"] = drawn.pictures["subspaces"]
                numbers["decoder_subspaces.json"] = drawn.numbers["subspaces.json"]
        note = "" if number is not None else f"{kind} has no layers: it has no maps of class tokens and no R^c"
        return FigureOutput(pictures, numbers, note)


def chosen_layer(decoder: nn.Module, layers: list[int] | None) -> int | None:
    """Return the number (from 0) of the decoder's layer to show (default: the last); None without layers."""
    if layers and len(layers) > 1:
        raise ValueError(f"masks uses one layer of the decoder, got {len(layers)}")
    if not any(isinstance(module, Layer) for module in decoder.modules()):
        return None
    (number,) = find_layers(decoder, layers or [-1])
    return number


@torch.inference_mode()
def examples_of(
    model: Segmentation, batch: dict, number: int | None, measures: LayerMeasures | None = None
) -> list[Example]:
    """Return the data drawn for the images of a batch.

    Args:
        model: the segmentation.
        batch: from the loader, with or without masks.
        number: number (from 0) of the decoder's layer with the maps to draw; None for a decoder without layers.
        measures: collects the measures of the decoder's layers, if not None.
    """
    if not has_masks(batch):
        batch = {key: value for key, value in batch.items() if key != "labels"}
    prepared = model.data_preprocessor(batch)
    (prediction,) = model.predict(**prepared)
    images = batch["inputs"]
    truths = batch["labels"].cpu().numpy() if "labels" in batch else [None] * len(images)
    maps: list[Tensor] | list[None] = [None] * len(images)
    if number is not None:
        grids = []
        handle = model.head.register_forward_pre_hook(lambda _, args: grids.append(args[1]))
        try:
            measuring = nullcontext() if measures is None else measure_layers(model.head, into=measures)
            with measuring, capture(model.head, ("tap_w",), [number]) as tensors:
                model.tensor(prepared["inputs"])  # the full image: the prediction may have used windows
        finally:
            handle.remove()
        (layer,) = find_layers(model.head, [number]).values()
        attention = class_maps(layer, tensors["tap_w"][0], TokenLayout(0, *grids[0])) if tensors["tap_w"] else None
        if attention is None:
            raise ValueError(
                f"layer {number + 1} of {type(model.head).__name__} has no map of class tokens: choose another "
                "layer with --layers"
            )
        values = attention[1].double().mean(1).cpu()
        maps = list(values / values.mean((-2, -1), keepdim=True))
    examples = []
    for pixels, truth, predicted, of_image in zip(images, truths, prediction["predicted"].cpu().numpy(), maps):
        H, W = predicted.shape
        image = pixels[:3].permute(1, 2, 0).cpu().numpy()
        if image.shape[:2] != (H, W):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            image = np.asarray(picture.resize((W, H), Image.Resampling.BILINEAR)).reshape(H, W, -1)
        examples.append(Example(image, truth, predicted, of_image))
    return examples


def has_masks(batch: dict) -> bool:
    """Return whether the labels of a batch are masks, ``(B, H, W)``."""
    return batch.get("labels") is not None and batch["labels"].ndim == 3


def overlaps(example: Example) -> list[tuple[int, int, int, float]]:
    """Return label, true pixels, predicted pixels and IoU of each class in an image or its prediction.

    The truth of the example must be known.
    """
    valid = example.truth != IGNORED_PIXEL
    rows = []
    for label in np.unique(np.concatenate([example.truth[valid], example.predicted[valid]])):
        true, predicted = (example.truth == label) & valid, (example.predicted == label) & valid
        iou = (true & predicted).sum() / (true | predicted).sum()
        rows.append((int(label), int(true.sum()), int(predicted.sum()), float(iou)))
    return rows


def plot_masks(examples: list[Example], names: list[str], title: str) -> MplFigure:
    """Plot a row per image: the image, its true and predicted masks, and the maps of its largest classes' tokens.

    Args:
        examples: images of one model.
        names: names of the classes.
        title: title of the figure.
    """
    maps = [example.maps for example in examples if example.maps is not None]
    columns = 3 + (MAPS if maps else 0)
    figure = sheet(1.7 * columns + (0.7 if maps else 0.2), 1.75 * len(examples) + 0.8, text=0.8)
    note = "\ncolor of a map: multiples of its mean over the patches" if maps else ""
    figure.suptitle(sanitized(title) + note, fontsize="small", parse_math=False)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for axes, text in zip(grid[0], ("image", "true", "predicted", *["class token"] * (columns - 3))):
        axes.set_title(text, fontsize="small")
    without_ticks(grid.flat)
    end = scale_end(maps, maps[0][0].numel()) if maps else 0.0
    for panels, example in zip(grid, examples):
        gray = example.image.shape[-1] == 1
        panels[0].imshow(example.image[..., 0] if gray else example.image, cmap="gray", vmin=0, vmax=255)
        panels[1].imshow(overlay(example.image, example.truth))
        panels[2].imshow(overlay(example.image, example.predicted))
        ious = {label: iou for label, *_, iou in overlaps(example)}
        for panel in panels[3:]:
            panel.set_visible(False)
        for panel, label in zip(panels[3:], example.largest()):
            panel.set_visible(True)
            picture = np.broadcast_to(example.image, (*example.image.shape[:2], 3))
            panel.imshow(over_gray(picture, example.maps[label], end))
            text = f"{sanitized(names[label], 20)}, IoU {ious[label]:.2f}"
            panel.set_xlabel(text, fontsize="x-small", parse_math=False)
    if maps:
        attention_bar(figure, [*grid[:, -1]], end, clipped=any(m.max() > end for m in maps))
    return figure
