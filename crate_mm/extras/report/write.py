"""The report from Python: measure models and write their page."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ... import __version__
from ...analysis.taps import name_of
from ...datasets.base import dataset_of
from ...inference.predictor import default_class_names
from ...inference.standalone import subset
from ...inference.white_box import ImageSamples, evaluating, loader_for
from ...io.files import atomic_file, check_writable
from ...io.untrusted import sanitized
from ...models.tasks.base import task_of
from ...models.tasks.language import LanguageModel
from .collect import ReportDataset, ReportModel, ReportSettings, collect
from .page import make_page
from .text import collect_text


def report(
    models: nn.Module | Mapping[str, nn.Module],
    data: Any,
    out: str | Path = "report.html",
    *,
    num_images: int = 1000,
    shown: int = 16,
    eps_squared: float = 0.01,
    unit_length: bool = True,
    megabytes: int = 15,
    weights_megabytes: float = 1,
    title: str = "",
    seed: int = 0,
) -> Path:
    """Write the page of ``crate-mm report``, which compares models side by side, and return its path::

        report({"random": get_model("crate_tiny", 10), "trained": model}, ["cat.jpg", "dog.jpg"], "report.html")

    A terminal or a notebook shows the progress.

    Args:
        models: one model, or models by their labels on the page, from ``init_model`` or ``get_model``.
        data: a ``DataLoader`` of samples, a dataset of (image, label) pairs, or images as for ``Predictor``.
        out: HTML file to write.
        num_images: images to measure, drawn at random.
        shown: images shown in detail.
        eps_squared, unit_length: settings of the coding rates, as in ``measure_layers``.
        megabytes: size limit of the page.
        weights_megabytes: size limit of the weights of a small model that the page runs itself; 0 for no such model.
        title: title of the page.
        seed: seed of the random sample of images.

    Raises:
        ValueError: the file cannot be written, an image cannot be read, a model has no readable layers, or the page
            exceeds its limit.
    """
    check_writable(str(out))
    named = models if isinstance(models, Mapping) else {name_of(models): models}
    if not named or min(num_images, shown) < 1:
        raise ValueError(f"expected models and images, got {len(named)} models, {num_images=} and {shown=}")
    data = list(data) if isinstance(data, Iterator) else data  # every model reads the data again
    entries, datas, known = [], [], {}
    for label, task in ((label, task_of(model)) for label, model in named.items()):
        loader = loader_for(task, data)
        dataset = loader.dataset
        own = isinstance(dataset, ImageSamples)
        # Models with the same transforms share their images on the page.
        key = (dataset.preparation.mode, repr(dataset.preparation.transforms)) if own else ""
        if key not in known:
            known[key] = len(datas)
            datas.append(
                ReportDataset(dataset.name if own else type(dataset).__name__, dataset, partial(subset, loader))
            )
        names = task.class_names or dataset_of(dataset).classes
        names = names or (default_class_names(task.num_classes) if task.is_classifier else None)
        origin = {"config": "built in Python", "checkpoint": "weights in memory"}
        entries.append(ReportModel(str(label), task, known[key], names, run=origin))
    settings = {"num_images": num_images, "shown": shown, "eps_squared": eps_squared, "raw_length": not unit_length}
    settings |= {"megabytes": megabytes, "weights_megabytes": weights_megabytes, "seed": seed}

    def run(measured: int) -> dict[str, Any]:
        return run_data("crate_mm.report, from Python", settings, datas, measured)

    with evaluating(*(entry.model for entry in entries)):
        write_report(entries, datas, out, run, settings, title, say=lambda text: None)
    return Path(out)


def write_report(
    models: list[ReportModel],
    datas: list[ReportDataset],
    out: str | Path,
    run: Callable[[int], dict[str, Any]],
    settings: Mapping[str, Any],
    title: str = "",
    say: Callable[[str], None] = print,
) -> int:
    """Measure models, write their page and return its size in bytes.

    Args:
        models: models in eval mode, with their data in ``datas``.
        datas: the same images, as each model's config prepares them.
        out: HTML file to write.
        run: function of the number of measured images that returns ``run_data``.
        settings: num_images, shown, eps_squared, raw_length, megabytes, weights_megabytes and seed.
        title: title of the page (default: the names of the models).
        say: receives a line per model.

    Language models get a page of texts. In this case all models must be language models, and ``datas`` are windows of
    tokens.

    Raises:
        ValueError: as in ``collect`` or ``collect_text``, language models and other models are mixed, a size limit is
            negative, or the page would exceed ``megabytes``.
    """
    megabytes = settings["megabytes"]
    if not settings["weights_megabytes"] >= 0:  # also true for NaN
        raise ValueError(f"weights_megabytes must be at least 0, got {settings['weights_megabytes']}")
    of_text = [isinstance(report_model.model, LanguageModel) for report_model in models]
    if any(of_text) and not all(of_text):
        raise ValueError("a page compares either language models or image models, not both")
    page = "text" if of_text[0] else "page"
    generator = torch.Generator().manual_seed(settings["seed"])
    positions = torch.randperm(len(datas[0].dataset), generator=generator)[: settings["num_images"]].tolist()
    chosen = ReportSettings(
        sorted(positions),
        sorted(positions[: settings["shown"]]),
        settings["eps_squared"],
        not settings["raw_length"],
        megabytes * 1e6 - len(make_page({}, title, page)),
        settings["weights_megabytes"] * 1e6,
    )
    data = collect_text(models, datas[0], chosen, say) if page == "text" else collect(models, datas, chosen, say)
    title = title or f"Inside {', '.join(dict.fromkeys(m['name'] for m in data['models']))}"
    data = {"title": sanitized(title), "run": run(len(positions)), **data}
    html = make_page(data, data["title"], page)
    if len(html) > megabytes * 1e6:
        raise ValueError(
            f"the page would have {len(html) / 1e6:.1f} MB, more than --megabytes {megabytes}: use fewer samples "
            "(--shown) or fewer checkpoints"
        )
    with atomic_file(out, text=True) as file:
        file.write(html)
    return len(html)


def run_data(command: str, settings: dict[str, Any], datas: list[ReportDataset], measured: int) -> dict[str, Any]:
    """Return the command, settings, data, versions and device of a report."""
    return {
        "command": sanitized(command, 2000),
        "date": time.strftime("%Y-%m-%d"),
        "data": [sanitized(data.label) for data in datas],
        "measured": measured,
        "of": len(datas[0].dataset),
        "settings": settings,
        "versions": {
            "crate_mm": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "Python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
