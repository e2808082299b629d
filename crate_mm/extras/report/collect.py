"""All that the page shows, as plain data: numbers, lists, packed arrays, pictures as data URLs.

The page's JSON is this data and nothing else. Layers are lists, first layer first; ``None`` stands for what is not
defined, and ``undefined`` of a model says why in a sentence.
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
from .stream import LISTED, MOST_CLASSES, TOP, AtomUsage, StreamStats, collect_stats

ATTENTION = 0.6  # of the page's bytes that attention between patches may take
FORMAT = 1  # of the data; a reader of saved files may ask
GRAM_DIRECTIONS = 64  # in a picture of a Gram matrix, of all heads together
THUMBNAIL = 40  # pixels of the longer side
LOSSLESS = 64 * 64  # pixels of a picture up to which it is kept as it is, and not as JPEG


class Data(NamedTuple):
    """Images as a model's config has them.

    ``batches`` makes a loader of the positions that it is given. ``truth`` tells each pixel's class, ``(H, W)``, 0 for
    the background and 255 for void, of an image by its position, or None where that is not known.
    """

    label: str
    dataset: Dataset
    batches: Callable[[list[int]], Iterable[dict]]
    truth: Callable[[int], Tensor | None] = lambda position: None


@dataclass
class Looked:
    """A model to look at, in eval mode, and the place of its ``Data`` in the list of them."""

    label: str
    model: nn.Module
    data: int = 0
    class_names: list[str] | None = None
    run: dict[str, Any] = field(default_factory=dict)


class ReportSettings(NamedTuple):
    """What is looked at: positions measured, and of these the positions shown; settings of the rates; bytes."""

    measured: list[int]
    shown: list[int]
    eps_squared: float = 0.01
    unit_length: bool = True
    room: float = 15e6


def collect(
    models: list[Looked], datas: list[Data], wanted: ReportSettings, say: Callable[[str], None] = print
) -> dict:
    """Measure models and look at images.

    Raises:
        ValueError: a model has no layers that can be read, or what it gives is not finite.
    """
    grids = []
    for looked in models:
        (batch, *_) = datas[looked.data].batches(wanted.shown[:1])
        layout = layout_of(looked.model, batch["inputs"])
        grids.append((len(wanted.shown) * count_maps(looked.model, batch), (0, 0) if layout is None else layout[1:]))
    told, thumbs = [], set()
    for looked in models:
        say(f"{sanitized(looked.label)}: measuring {len(wanted.measured)} images, showing {len(wanted.shown)}")
        told.append(measured(looked, datas[looked.data], wanted, thumbs))
    first = datas[0].dataset
    names = next((looked.class_names for looked in models if looked.class_names), None)
    plan = AttentionBudget(grids, wanted.room * ATTENTION)
    data = {
        "format": FORMAT,
        "classes": None if names is None else [sanitized(name) for name in names],
        "measures": {name: row.meaning for name, row in MEASURES.items()},
        "limits": {"classes": MOST_CLASSES, "listed": LISTED, "top": TOP},
        "images": [image_data(first, position) for position in wanted.shown],
        "datas": [data_pictures(d, wanted.shown) for d in datas],
        "thumbnails": {str(p): to_data_url(first[p], THUMBNAIL) for p in sorted(thumbs)},
        "models": told,
    }
    kept = look_at(models, datas, wanted, plan, data)
    size = len(json.dumps(data))
    if size > wanted.room:  # what is not attention took more than was left for it
        look_at(models, datas, wanted, AttentionBudget(grids, wanted.room - (size - kept)), data)
    return data


def look_at(models: list[Looked], datas: list[Data], wanted: ReportSettings, plan: AttentionBudget, data: dict) -> int:
    """Add to the data what is seen of the images shown; return how many bytes of it are attention between patches."""
    data["attention"] = {"side": plan.side, "bits": plan.bits}
    kept = 0
    for looked, told in zip(models, data["models"]):
        looks = Looks(looked.model, plan, [datas[looked.data].truth(p) for p in wanted.shown])
        for batch in datas[looked.data].batches(wanted.shown):
            looks.look(batch)
        for layer, entry in enumerate(told["layers"]):
            entry["looks"] = looks.data(layer)
            kept += len(json.dumps(entry["looks"]["attention"]))
        told["predicted"] = looks.predicted or None
        told["undefined"] = looks.undefined()
        if not told["classes"]:
            told["undefined"]["labels"] = f"The data has no labels ({sanitized(datas[looked.data].label)})."
    return kept


def measured(looked: Looked, data: Data, wanted: ReportSettings, thumbs: set[int]) -> dict[str, Any]:
    """What is measured of one model; the positions of the images that it names are added to ``thumbs``."""
    model, layers = looked.model, find_layers(looked.model)
    streamed = collect_stats(
        model, data.batches(wanted.measured), wanted.eps_squared, wanted.unit_length, wanted.measured
    )
    (batch, *_) = data.batches(wanted.measured[:1])
    layout = layout_of(model, batch["inputs"])
    told = []
    for layer, step in layers.items():
        measures = streamed.spreads.data(layer)
        use = streamed.codes.get(layer)
        thumbs |= {p for m in measures.values() for end in ("low", "high") for p, _ in m[end]}
        code = None if use is None else code_data(use)
        if code:
            thumbs |= {p for direction in code["directions"] for p, *_ in direction["top"]}
        told.append({"measures": measures, "code": code, "subspaces": subspace_data(step, streamed, layer)})
    return {
        "label": sanitized(looked.label),
        "name": name_of(model),
        "data": looked.data,
        "parameters": sum(p.numel() for p in model.parameters()),
        "grid": None if layout is None else list(layout),
        "pool": pooling(model),
        "layers": told,
        "images": streamed.images,
        "labelled": streamed.labelled,
        "right": streamed.right,
        "classes": sorted(streamed.classes),
        "run": looked.run,
    }


def code_data(use: AtomUsage) -> dict[str, Any]:
    """How a layer's directions are used over the data."""
    share, amount = use.use / use.images, use.amount / use.images
    most, least = use.listed()
    overlap = use.overlap()
    return {
        "directions_in_all": len(share),
        "never": (share == 0).nonzero()[:, 0].tolist(),
        "sorted_share": pack(share.sort(descending=True)[0], bits=16),
        "directions": [
            {"number": i, "kind": kind, "share": share[i].item(), "mean": amount[i].item(), "top": use.top(i)}
            for kind, listed in (("most", most), ("least", least))
            for i in listed
        ],
        "overlap": None if overlap is None else pack(overlap, bits=16),
    }


def subspace_data(step: nn.Module, streamed: StreamStats, layer: int) -> dict[str, Any] | None:
    """A layer's subspaces, and whose energy is in which; None where it has none."""
    found = step.subspaces()
    if found is None:
        return None
    U, K = found.U.detach(), found.num_heads
    d, p = U.shape[0], U.shape[1] // K
    count = max(min(p, GRAM_DIRECTIONS // K), 1)
    picked = [k * p + round(i * (p - 1) / max(count - 1, 1)) for k in range(K) for i in range(count)]
    energy = streamed.energies[layer].means() if layer in streamed.energies else None
    cosines = subspace_gram(U).abs()
    return {
        "heads": K,
        "directions_a_head": p,
        "incoherence": subspace_incoherence(U, K).item() if K > 1 else None,
        "random": math.sqrt(2 / (math.pi * d)),
        "gram": pack(cosines[picked][:, picked].clamp_max(1), bits=16),
        "between_heads": pack(cosines.unflatten(0, (K, p)).unflatten(2, (K, p)).mean((1, 3)), bits=16),
        "energy": None if energy is None else pack(energy, bits=16),
    }


def image_data(dataset: Dataset, position: int) -> dict[str, Any]:
    """An image's name, and its label where it has one."""
    label = int(dataset[position].get("labels", -1))
    path = dataset_of(dataset).describe(position)
    return {"position": position, "name": sanitized(Path(path).name or path), "label": label if label >= 0 else None}


def data_pictures(data: Data, positions: list[int]) -> dict[str, Any]:
    """The images shown, and of those whose classes are known by pixel the same, dark where there is none."""
    told: dict[str, Any] = {"label": sanitized(data.label), "pictures": [], "truths": []}
    for position in positions:
        sample, truth = data.dataset[position], data.truth(position)
        told["pictures"].append(to_data_url(sample))
        if truth is not None:
            image = sample["inputs"]
            sample = {"inputs": torch.where((truth == 0) | (truth == VOID), image // 5, image)}
        told["truths"].append(None if truth is None else to_data_url(sample))
    return told


def to_data_url(sample: dict, longest: int | None = None) -> str:
    """A sample's image as its model gets it, before the normalisation, as a data URL."""
    image: Tensor = sample["inputs"]
    C = image.shape[0]
    pixels = image[:3] if C >= 3 else image[:1]
    drawn = Image.fromarray(pixels.permute(1, 2, 0).contiguous().squeeze(-1).to(torch.uint8).numpy())
    written, kind = io.BytesIO(), "png" if drawn.width * drawn.height <= LOSSLESS else "jpeg"
    if longest:
        drawn.thumbnail((longest, longest))
    drawn.save(written, kind, **({"quality": 85 if longest else 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
