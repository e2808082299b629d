"""Collect the data of a report page: numbers, lists, packed arrays, and images as data URLs.

The page's JSON is this data only. Lists of layers start with the first layer. ``None`` marks an undefined value; a
model's ``undefined`` gives the reasons.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...analysis.attention import pooling
from ...analysis.measures import subspace_gram, subspace_incoherence
from ...analysis.segmentation import VOID
from ...analysis.table import MEASURES
from ...analysis.taps import find_layers, layout_of, name_of
from ...datasets.base import dataset_of
from ...io.untrusted import sanitized
from .looks import AttentionBudget, Looks, count_maps
from .pack import pack
from .stream import MAX_CLASSES, MAX_LISTED, TOP, AtomUsage, StreamStats, collect_stats

ATTENTION = 0.6  # fraction of the page's bytes for attention between patches
FORMAT = 1  # version of the data, for readers of saved files
GRAM_DIRECTIONS = 64  # basis vectors in the picture of a Gram matrix, over all heads
THUMBNAIL = 40  # pixels of the longer side
MAX_PNG_PIXELS = 64 * 64  # larger images are stored as JPEG


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
    """A model of the report, in eval mode. ``data`` is the index of its ``ReportDataset``."""

    label: str
    model: nn.Module
    data: int = 0
    class_names: list[str] | None = None
    run: dict[str, Any] = field(default_factory=dict)


class ReportSettings(NamedTuple):
    """Positions to measure, the subset to show in detail, settings of the coding rates, and the data's size limit."""

    measured_positions: list[int]
    shown_positions: list[int]
    eps_squared: float = 0.01
    unit_length: bool = True
    max_bytes: float = 15e6


def collect(
    models: list[ReportModel],
    datasets: list[ReportDataset],
    settings: ReportSettings,
    say: Callable[[str], None] = print,
) -> dict:
    """Measure the models and return the page's data.

    Raises:
        ValueError: a model has no readable layers, or its output is not finite.
    """
    grids = []
    for report_model in models:
        (batch, *_) = datasets[report_model.data].batches(settings.shown_positions[:1])
        layout = layout_of(report_model.model, batch["inputs"])
        grids.append(
            (
                len(settings.shown_positions) * count_maps(report_model.model, batch),
                (0, 0) if layout is None else layout[1:],
            )
        )
    entries, thumbs = [], set()
    for report_model in models:
        num_measured, num_shown = len(settings.measured_positions), len(settings.shown_positions)
        say(f"{sanitized(report_model.label)}: measuring {num_measured} images, showing {num_shown}")
        entries.append(measure_model(report_model, datasets[report_model.data], settings, thumbs))
    first = datasets[0].dataset
    names = next((report_model.class_names for report_model in models if report_model.class_names), None)
    data = {
        "format": FORMAT,
        "classes": None if names is None else [sanitized(name) for name in names],
        "measures": {name: row.meaning for name, row in MEASURES.items()},
        "limits": {"classes": MAX_CLASSES, "listed": MAX_LISTED, "top": TOP},
        "images": [image_data(first, position) for position in settings.shown_positions],
        "datas": [data_pictures(d, settings.shown_positions) for d in datasets],
        "thumbnails": {str(p): to_data_url(first[p], THUMBNAIL) for p in sorted(thumbs)},
        "models": entries,
    }
    budget = AttentionBudget(grids, settings.max_bytes * ATTENTION)
    attention_size = add_looks(models, datasets, settings, budget, data)
    size = len(json.dumps(data))
    if size > settings.max_bytes:  # the other data needs more than its fraction: attention gets the remaining bytes
        remaining = settings.max_bytes - (size - attention_size)
        add_looks(models, datasets, settings, AttentionBudget(grids, remaining), data)
    return data


def add_looks(
    models: list[ReportModel],
    datasets: list[ReportDataset],
    settings: ReportSettings,
    budget: AttentionBudget,
    data: dict,
) -> int:
    """Add the views of the shown images to the data; return the bytes of attention between patches."""
    data["attention"] = {"side": budget.side, "bits": budget.bits}
    attention_size = 0
    for report_model, entry in zip(models, data["models"]):
        looks = Looks(
            report_model.model, budget, [datasets[report_model.data].ground_truth(p) for p in settings.shown_positions]
        )
        for batch in datasets[report_model.data].batches(settings.shown_positions):
            looks.look(batch)
        for layer, layer_entry in enumerate(entry["layers"]):
            layer_entry["looks"] = looks.data(layer)
            attention_size += len(json.dumps(layer_entry["looks"]["attention"]))
        entry["predicted"] = looks.predicted or None
        entry["undefined"] = looks.undefined()
        if not entry["classes"]:
            entry["undefined"]["labels"] = f"The data has no labels ({sanitized(datasets[report_model.data].label)})."
    return attention_size


def measure_model(
    report_model: ReportModel, data: ReportDataset, settings: ReportSettings, thumbs: set[int]
) -> dict[str, Any]:
    """Return the measurements of a model, and add the positions of the images that they name to ``thumbs``."""
    model, layers = report_model.model, find_layers(report_model.model)
    stats = collect_stats(
        model,
        data.batches(settings.measured_positions),
        settings.eps_squared,
        settings.unit_length,
        settings.measured_positions,
    )
    (batch, *_) = data.batches(settings.measured_positions[:1])
    layout = layout_of(model, batch["inputs"])
    entries = []
    for layer, step in layers.items():
        measures = stats.spreads.data(layer)
        usage = stats.codes.get(layer)
        thumbs |= {p for m in measures.values() for end in ("low", "high") for p, _ in m[end]}
        code = None if usage is None else code_data(usage)
        if code:
            thumbs |= {p for atom in code["directions"] for p, *_ in atom["top"]}
        entries.append({"measures": measures, "code": code, "subspaces": subspace_data(step, stats, layer)})
    return {
        "label": sanitized(report_model.label),
        "name": name_of(model),
        "data": report_model.data,
        "parameters": sum(p.numel() for p in model.parameters()),
        "grid": None if layout is None else list(layout),
        "pool": pooling(model),
        "layers": entries,
        "images": stats.images,
        "labelled": stats.labelled,
        "right": stats.right,
        "classes": sorted(stats.classes),
        "run": report_model.run,
    }


def code_data(usage: AtomUsage) -> dict[str, Any]:
    """Return how often the data uses each atom of a layer."""
    fraction, amount = usage.use / usage.images, usage.amount / usage.images
    most, least = usage.extremes()
    overlap = usage.overlap()
    return {
        "directions_in_all": len(fraction),
        "never": (fraction == 0).nonzero()[:, 0].tolist(),
        "sorted_share": pack(fraction.sort(descending=True)[0], bits=16),
        "directions": [
            {"number": i, "kind": kind, "share": fraction[i].item(), "mean": amount[i].item(), "top": usage.top(i)}
            for kind, atoms in (("most", most), ("least", least))
            for i in atoms
        ],
        "overlap": None if overlap is None else pack(overlap, bits=16),
    }


def subspace_data(step: nn.Module, stats: StreamStats, layer: int) -> dict[str, Any] | None:
    """Return a layer's subspaces and the energy of each class in them; None if the layer has no subspaces."""
    subspaces = step.subspaces()
    if subspaces is None:
        return None
    U, K = subspaces.U.detach(), subspaces.num_heads
    d, p = U.shape[0], U.shape[1] // K
    count = max(min(p, GRAM_DIRECTIONS // K), 1)
    columns = [k * p + round(i * (p - 1) / max(count - 1, 1)) for k in range(K) for i in range(count)]
    energy = stats.energies[layer].means() if layer in stats.energies else None
    cosines = subspace_gram(U).abs()
    return {
        "heads": K,
        "directions_a_head": p,
        "incoherence": subspace_incoherence(U, K).item() if K > 1 else None,
        "random": math.sqrt(2 / (math.pi * d)),
        "gram": pack(cosines[columns][:, columns].clamp_max(1), bits=16),
        "between_heads": pack(cosines.unflatten(0, (K, p)).unflatten(2, (K, p)).mean((1, 3)), bits=16),
        "energy": None if energy is None else pack(energy, bits=16),
    }


def image_data(dataset: Dataset, position: int) -> dict[str, Any]:
    """Return an image's position, name and label (None without one)."""
    label = int(dataset[position].get("labels", -1))
    path = dataset_of(dataset).describe(position)
    return {"position": position, "name": sanitized(Path(path).name or path), "label": label if label >= 0 else None}


def data_pictures(data: ReportDataset, positions: list[int]) -> dict[str, Any]:
    """Return the shown images, and those with ground truth a second time, darkened where it has no class."""
    pictures: dict[str, Any] = {"label": sanitized(data.label), "pictures": [], "truths": []}
    for position in positions:
        sample, ground_truth = data.dataset[position], data.ground_truth(position)
        pictures["pictures"].append(to_data_url(sample))
        if ground_truth is not None:
            image = sample["inputs"]
            sample = {"inputs": torch.where((ground_truth == 0) | (ground_truth == VOID), image // 5, image)}
        pictures["truths"].append(None if ground_truth is None else to_data_url(sample))
    return pictures


def to_data_url(sample: dict, longest: int | None = None) -> str:
    """Return a sample's image, as its model receives it before normalization, as a data URL."""
    image: Tensor = sample["inputs"]
    C = image.shape[0]
    pixels = image[:3] if C >= 3 else image[:1]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().squeeze(-1).to(torch.uint8).numpy())
    buffer, kind = io.BytesIO(), "png" if picture.width * picture.height <= MAX_PNG_PIXELS else "jpeg"
    if longest:
        picture.thumbnail((longest, longest))
    picture.save(buffer, kind, **({"quality": 85 if longest else 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
