"""Collect the data of a report page: numbers, lists, packed arrays, and images as data URLs.

This data is the page's JSON. Lists of layers start with the first layer. ``None`` marks an undefined value; a model's
``undefined`` gives the reasons.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...analysis.attention import pooling
from ...analysis.figures.masks import Example, overlaps
from ...analysis.figures.overlay import over_gray, scale_end
from ...analysis.measures import subspace_gram, subspace_incoherence
from ...analysis.segmentation import VOID
from ...analysis.table import MEASURES
from ...analysis.taps import find_layers, layout_of, name_of
from ...datasets.base import dataset_of
from ...datasets.masks import overlay
from ...io.progress import track
from ...io.untrusted import sanitized
from ...models.tasks.classifier import ImageClassifier
from .drawing import drawing_of, pack_bytes
from .looks import AttentionBudget, Looks, count_maps
from .pack import pack
from .running import running_model, why_not
from .stream import LISTED, MAX_CLASSES, TOP, AtomUsage, StreamStats, collect_stats

ATTENTION = 0.6  # fraction of the page's bytes for attention between patches
FORMAT = 3  # version of the data, for readers of saved files
MAX_ATOMS = 2000  # images are shown for every atom of a model with at most this number of atoms
GRAM_DIRECTIONS = 64  # basis vectors in the picture of a Gram matrix, over all heads
THUMBNAIL = 40  # pixels of the longer side
LOSSLESS = 64 * 64  # images with at most this many pixels are stored as PNG, larger ones as JPEG


class ReportDataset(NamedTuple):
    """Images as a model's config prepares them.

    ``batches`` returns a loader of the samples at given positions. ``ground_truth`` returns the class of each pixel of
    the image at a position, ``(H, W)`` (0: background, 255: void), or None if it is unknown.
    """

    label: str
    dataset: Dataset
    batches: Callable[[list[int]], Iterable[dict]]
    ground_truth: Callable[[int], Tensor | None] = lambda position: None


@dataclass
class ReportModel:
    """A model of the report, in eval mode. ``data`` is the index of its ``ReportDataset``. ``untrained`` models are
    newly initialized; the page compares the other models with them."""

    label: str
    model: nn.Module
    data: int = 0
    class_names: list[str] | None = None
    untrained: bool = False
    run: dict[str, Any] = field(default_factory=dict)


class ReportSettings(NamedTuple):
    """Positions to measure and to show in detail, settings of the coding rates, and size limits: ``max_bytes`` limits
    all data; ``weights_bytes``, a part of it, limits the weights of the model that the page runs."""

    measured: list[int]
    shown: list[int]
    eps_squared: float = 0.01
    unit_length: bool = True
    max_bytes: float = 15e6
    weights_bytes: float = 1e6


def collect(
    models: list[ReportModel], datas: list[ReportDataset], settings: ReportSettings, say: Callable[[str], None] = print
) -> dict:
    """Measure the models and return the page's data.

    Raises:
        ValueError: a model has no readable layers, or its output is not finite.
    """
    running = choose_running(models, datas, settings)
    grids = []
    for i, report_model in enumerate(models):
        if i in running:  # the page computes its maps
            continue
        (batch, *_) = datas[report_model.data].batches(settings.shown[:1])
        layout = layout_of(report_model.model, batch["inputs"])
        grids.append(
            (len(settings.shown) * count_maps(report_model.model, batch), (0, 0) if layout is None else layout[1:])
        )
    entries, thumbs = [], set()
    for report_model in models:
        say(
            f"{sanitized(report_model.label)}: measuring {len(settings.measured)} images, showing {len(settings.shown)}"
        )
        entries.append(measure_model(report_model, datas[report_model.data], settings, thumbs))
    for i, entry in enumerate(entries):
        entry["running"], entry["why_not_running"] = running.get(i), why_not(models[i].model)
    first = datas[0].dataset
    names = next((report_model.class_names for report_model in models if report_model.class_names), None)
    data = {
        "format": FORMAT,
        "classes": None if names is None else [sanitized(name) for name in names],
        "measures": {name: row.meaning for name, row in MEASURES.items()},
        "limits": {"classes": MAX_CLASSES, "listed": LISTED, "top": TOP},
        "images": [image_data(first, position) for position in settings.shown],
        "datas": [
            data_pictures(d, settings.shown, any(models[i].data == number for i in running))
            for number, d in enumerate(datas)
        ],
        "thumbnails": {str(p): to_data_url(first[p], THUMBNAIL) for p in sorted(thumbs)},
        "models": entries,
    }
    budget = AttentionBudget(grids, settings.max_bytes * ATTENTION)
    attention_size = add_looks(models, datas, settings, budget, data)
    size = len(json.dumps(data))
    if size > settings.max_bytes:  # the other data exceeds its fraction: reduce attention to the remaining bytes
        remaining = settings.max_bytes - (size - attention_size)
        add_looks(models, datas, settings, AttentionBudget(grids, remaining), data)
    return data


def choose_running(
    models: list[ReportModel], datas: list[ReportDataset], settings: ReportSettings
) -> dict[int, dict[str, Any]]:
    """Return the weights of the model that the page runs, by its index; empty if no model can run in the page.

    The page runs the last trained model that it can compute. If it can compute only untrained models, it runs the last.
    """
    able = [i for i, report_model in enumerate(models) if why_not(report_model.model) is None]
    if not able:
        return {}
    index = max(able, key=lambda i: (not models[i].untrained, i))
    dataset = datas[models[index].data].dataset
    images = torch.stack([dataset[position]["inputs"] for position in settings.shown])
    weights = running_model(models[index].model, settings.weights_bytes, images)
    return {} if weights is None else {index: weights}


def add_looks(
    models: list[ReportModel], datas: list[ReportDataset], settings: ReportSettings, budget: AttentionBudget, data: dict
) -> int:
    """Add the views of the shown images to the data; return the bytes of attention between patches."""
    data["attention"] = {"side": budget.side, "bits": budget.bits}
    attention_size = 0
    for report_model, entry in zip(models, data["models"]):
        truths = [datas[report_model.data].ground_truth(p) for p in settings.shown]
        looks = Looks(report_model.model, budget, truths, stored=entry["running"] is None)
        batches = datas[report_model.data].batches(settings.shown)
        for batch in track(batches, f"showing {sanitized(report_model.label, 60)}"):
            looks.look(batch)
        for layer, layer_entry in enumerate(entry["layers"]):
            layer_entry["looks"] = looks.data(layer)
            attention_size += len(json.dumps(layer_entry["looks"]["attention"]))
        entry["scale"] = looks.scale()
        entry["predicted"] = looks.predicted or None
        entry["segmented"] = segmented_data(looks.segmented) if looks.segmented else None
        entry["undefined"] = looks.undefined()
        if not entry["classes"]:
            entry["undefined"]["labels"] = f"The data has no labels ({sanitized(datas[report_model.data].label)})."
    return attention_size


def segmented_data(examples: list[Example]) -> dict[str, Any]:
    """Return the pictures of a segmentation: predicted and true masks over the images, and maps of class tokens.

    Pictures are data URLs. A map is None for a decoder without layers; ``iou`` is None if the truth is unknown. ``end``
    is the end of the maps' color scale, in multiples of a map's mean.
    """
    maps = [example.maps for example in examples if example.maps is not None]
    end = scale_end(maps, maps[0][0].numel()) if maps else None

    def url(pixels: np.ndarray) -> str:
        return to_data_url({"inputs": torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)})

    def class_map(example: Example, label: int) -> str | None:
        if example.maps is None:
            return None
        picture = np.broadcast_to(example.image, (*example.image.shape[:2], 3))
        return url(np.uint8(255 * over_gray(picture, example.maps[label], end)))

    def entry(example: Example) -> dict[str, Any]:
        ious = {} if example.truth is None else {label: iou for label, *_, iou in overlaps(example)}
        classes = [
            {"label": label, "iou": ious.get(label), "map": class_map(example, label)} for label in example.largest()
        ]
        truth = None if example.truth is None else url(overlay(example.image, example.truth))
        return {"predicted": url(overlay(example.image, example.predicted)), "truth": truth, "classes": classes}

    return {"end": end, "images": [entry(example) for example in examples]}


def measure_model(
    report_model: ReportModel, data: ReportDataset, settings: ReportSettings, thumbs: set[int]
) -> dict[str, Any]:
    """Return the measurements of a model; add the positions of the images listed for its atoms to ``thumbs``."""
    model, layers = report_model.model, find_layers(report_model.model)
    batches = track(data.batches(settings.measured), f"measuring {sanitized(report_model.label, 60)}")
    stats = collect_stats(model, batches, settings.eps_squared, settings.unit_length, settings.measured)
    (batch, *_) = data.batches(settings.measured[:1])
    layout = layout_of(model, batch["inputs"])
    entries = []
    for layer, step in layers.items():
        measures = stats.spreads.data(layer)
        usage = stats.codes.get(layer)
        code = None if usage is None else code_data(usage, len(layers)) | {"zeros": zero_shares(stats, layer)}
        if code:
            thumbs |= {p for atom in code["directions"] for p, *_ in (*atom["top"], *atom["middle"])}
        entries.append({"measures": measures, "code": code, "subspaces": subspace_data(step)})
    return {
        "label": sanitized(report_model.label),
        "name": name_of(model),
        "data": report_model.data,
        "untrained": report_model.untrained,
        "parameters": sum(p.numel() for p in model.parameters()),
        "grid": None if layout is None else list(layout),
        "pool": pooling(model),
        "width": model.backbone.embed_dim,
        "bounds": rate_bounds(layers, stats.tokens, model.backbone.embed_dim, settings),
        "smoothing": model.label_smoothing if isinstance(model, ImageClassifier) else 0.0,
        "layers": entries,
        "images": stats.images,
        "labelled": stats.labelled,
        "right": stats.right,
        "classes": sorted(stats.classes),
        "run": report_model.run,
    }


def zero_shares(stats: StreamStats, layer: int) -> dict[str, float] | None:
    """Return fractions of a layer's code, or None if the layer has no ISTA step.

    'negative', 'dictionary' and 'threshold' are fractions of the zeros, by the reason why they are zero. 'on' and
    'left' are fractions of all entries: those that the dictionary switched on, and the nonzero ones.
    """
    if layer not in stats.zeros:
        return None
    negative, dictionary, threshold, on, left = stats.zeros[layer].tolist()
    zeros = max(negative + dictionary + threshold, 1)
    entries = stats.entries[layer]
    shares = {"negative": negative / zeros, "dictionary": dictionary / zeros, "threshold": threshold / zeros}
    return {**shares, "on": on / entries, "left": left / entries}


def rate_bounds(
    layers: dict[int, nn.Module], tokens: int | None, width: int, settings: ReportSettings
) -> dict[str, tuple[float, float]]:
    """Return the (smallest, largest) possible value of each coding rate for nonzero tokens of length 1.

    Equal tokens give the smallest value, ``1/2 log(1 + p / eps^2)`` per subspace. Tokens spread evenly
    over min(N, p) orthogonal directions give the largest. R^c gets no bounds if the layers differ in the number or
    dimension of their subspaces. {} if ``settings.unit_length`` is False or ``tokens`` is None.
    """
    if not settings.unit_length or tokens is None:
        return {}

    def bounds(heads: int, p: int) -> tuple[float, float]:
        m = min(tokens, p)
        least = heads / 2 * math.log1p(p / settings.eps_squared)
        # The Gram matrix has m eigenvalues N / m; the rate is 1/2 log det(I + p / (N eps^2) Gram).
        return least, heads * m / 2 * math.log1p(p / (m * settings.eps_squared))

    of_measures = {"r_out": bounds(1, width)}
    shapes = {
        (s.num_heads, s.U.shape[1] // s.num_heads) for layer in layers.values() if (s := layer.subspaces()) is not None
    }
    if len(shapes) == 1:
        of_measures |= dict.fromkeys(("rc_z", "rc_in", "rc_half", "rc_out"), bounds(*shapes.pop()))
    return of_measures


def code_data(usage: AtomUsage, depth: int) -> dict[str, Any]:
    """Return how often the data uses each atom of a layer, and the images of the atoms.

    If the model's ``depth`` layers have at most ``MAX_ATOMS`` atoms in total, images are listed for all atoms,
    otherwise for the most-used and the least-used atoms.
    """
    fraction = usage.use / usage.images
    numbers = range(len(fraction))
    if len(fraction) * depth > MAX_ATOMS:
        numbers = sorted({number for listed in usage.listed() for number in listed})
    means = usage.by_class.means()

    def rounded(rows: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
        return [(position, token, float(f"{value:.3g}")) for position, token, value in rows]

    return {
        "share": pack(fraction, bits=16),
        "directions": [
            {"number": i, "top": rounded(usage.top(i)), "middle": rounded(usage.middle(i))} for i in numbers
        ],
        "by_class": None if means is None else pack(means, bits=16),
        "class_counts": [usage.by_class.counts[c] for c in sorted(usage.by_class.counts)],
    }


def subspace_data(step: nn.Module) -> dict[str, Any] | None:
    """Return the cosines between a layer's subspaces; None if the layer has no subspaces."""
    subspaces = step.subspaces()
    if subspaces is None:
        return None
    U, K = subspaces.U.detach(), subspaces.num_heads
    d, p = U.shape[0], U.shape[1] // K
    count = max(min(p, GRAM_DIRECTIONS // K), 1)
    picked = [k * p + round(i * (p - 1) / max(count - 1, 1)) for k in range(K) for i in range(count)]
    cosines = subspace_gram(U).abs()
    return {
        "heads": K,
        "directions_a_head": p,
        "incoherence": subspace_incoherence(U, K).item() if K > 1 else None,
        "random": math.sqrt(2 / (math.pi * d)),
        "gram": pack(cosines[picked][:, picked].clamp_max(1), bits=16),
        "between_heads": pack(cosines.unflatten(0, (K, p)).unflatten(2, (K, p)).mean((1, 3)), bits=16),
    }


def image_data(dataset: Dataset, position: int) -> dict[str, Any]:
    """Return an image's position, name and label (None without one)."""
    label = dataset[position].get("labels", -1)
    label = -1 if isinstance(label, torch.Tensor) and label.ndim else int(label)
    path = dataset_of(dataset).describe(position)
    return {"position": position, "name": sanitized(Path(path).name or path), "label": label if label >= 0 else None}


def data_pictures(data: ReportDataset, positions: list[int], running: bool = False) -> dict[str, Any]:
    """Return the shown images; those with a ground truth also as a copy, darkened where the truth has no class.

    With ``running``, also return what the page needs to run the model: the images' bytes, and how the page prepares a
    drawing.
    """
    pictures: dict[str, Any] = {"label": sanitized(data.label), "pictures": [], "truths": []}
    if running:
        samples = torch.stack([data.dataset[position]["inputs"] for position in positions])
        pictures |= {"inputs": pack_bytes(samples), "drawing": drawing_of(data.dataset, positions)}
    for position in positions:
        sample, truth = data.dataset[position], data.ground_truth(position)
        pictures["pictures"].append(to_data_url(sample))
        if truth is not None:
            image = sample["inputs"]
            sample = {"inputs": torch.where((truth == 0) | (truth == VOID), image // 5, image)}
        pictures["truths"].append(None if truth is None else to_data_url(sample))
    return pictures


def to_data_url(sample: dict, longest: int | None = None) -> str:
    """Return a sample's image, as its model receives it before normalization, as a data URL."""
    image: Tensor = sample["inputs"]
    C = image.shape[0]
    pixels = image[:3] if C >= 3 else image[:1]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().squeeze(-1).to(torch.uint8).numpy())
    buffer, kind = io.BytesIO(), "png" if picture.width * picture.height <= LOSSLESS else "jpeg"
    if longest:
        picture.thumbnail((longest, longest))
    picture.save(buffer, kind, **({"quality": 85 if longest else 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
