"""Call the measures and figures of ``crate-mm analyze`` from Python, on a model and images or a loader."""

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as MplFigure
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..analysis.figures import Figure, FigureInput
from ..analysis.figures.base import run_batches
from ..analysis.gather import LayerMeasures, measure_layers
from ..datasets.base import IMAGE, NUMBER, Field, SampleDataset, Source, dataset_of, source_of
from ..datasets.images import UnreadableImageError
from ..io.log import print_log
from ..io.progress import track
from ..io.untrusted import sanitized
from ..models.tasks.base import task_of
from ..registry import FIGURES, suggest
from .standalone import subset
from .transforms import EvalTransform, as_images

BATCH_SIZE = 64


class ImageSamples(SampleDataset):
    """Images in memory or in files as samples for a model, ``{inputs: uint8 (C, H, W), labels: int, sample_idx: int}``.

    Args:
        model: its test transforms apply, followed by a resize to its image size.
        images: as for ``Predictor``, or a dataset of (image, label) pairs. An image without a label has label -1.
    """

    def __init__(self, model: nn.Module, images: Any) -> None:
        self.preparation = EvalTransform(model)
        self.preparation.resize_to_model(model)
        self.source = source_of(images) if isinstance(images, (Source, Dataset)) else None
        self.images = [] if self.source else list(as_images(images))
        folder = isinstance(images, (str, Path)) and Path(images).is_dir()
        self.name = self.source.name if self.source else f"images of {Path(images).name}" if folder else "images"
        if not len(self):
            raise ValueError("there are no images: expected at least one")

    @property
    def classes(self) -> list[str] | None:
        """Class names of the labels, or None."""
        return None if self.source is None or self.source.classes is None else [*map(str, self.source.classes)]

    @property
    def spec(self) -> dict[str, Field]:
        return {"inputs": IMAGE, "labels": NUMBER, "sample_idx": NUMBER}

    def describe(self, position: int) -> str:
        if self.source:
            return self.source.path(position)
        image = self.images[position]
        return str(image) if isinstance(image, (str, Path)) else f"image {position}"

    def __len__(self) -> int:
        return len(self.source or self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.source[index] if self.source else (self.images[index], -1)
        try:
            inputs = self.preparation(image, index)
        except UnreadableImageError as error:
            raise ValueError(f"{sanitized(self.describe(index))} cannot be read: {error}") from None
        return {"inputs": inputs, "labels": label, "sample_idx": index}


def loader_for(model: nn.Module, images: Any) -> DataLoader:
    """Return a loader of images with the transforms of ``Predictor``. A ``DataLoader`` is returned unchanged.

    Args:
        model: the model that the images are for.
        images: a ``DataLoader`` of samples, a dataset of (image, label) pairs, or as for ``Predictor``.
    """
    if isinstance(images, DataLoader):
        return images
    return DataLoader(images if isinstance(images, SampleDataset) else ImageSamples(model, images), BATCH_SIZE)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Context in which models are in eval mode."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was_training in zip(models, training):
            model.train(was_training)


def layer_measures(model: nn.Module, images: Any, **settings: Any) -> LayerMeasures:
    """Measure every layer of a model on images::

        measures = layer_measures(model, ["cat.jpg", "dog.jpg"])  # prints as a table
        measures.plot("rc_half", "sparsity")
        measures.to_frame()  # with pandas

    A terminal or a notebook shows the progress.

    Args:
        model: from ``init_model`` or ``get_model``.
        images: as for ``draw``.
        settings: ``layers``, ``eps_squared``, ``unit_length`` and ``measures`` of ``measure_layers``.

    Raises:
        ValueError: as ``measure_layers``, or an image cannot be read.
    """
    task = task_of(model)
    loader = loader_for(task, images)
    with evaluating(task), measure_layers(task, **settings) as measures:
        run_batches(task, track(loader, "measuring"))
    return measures


def draw(
    figure: str,
    model: nn.Module | Mapping[str, nn.Module],
    images: Any = (),
    *,
    layers: list[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> MplFigure:
    """Draw a figure of ``crate-mm analyze``. Notebooks show it; ``savefig`` writes it to a file::

        draw("attention", model, "cat.jpg", layers=[-1])
        draw("layers", {"mine": model}, ["cat.jpg", "dog.jpg"], measures=["rc_half", "sparsity"])
        draw("subspaces", model).savefig("subspaces.pdf")

    Args:
        figure: 'attention', 'features', 'layers', 'masks', 'objects', 'pca', 'reconstruct', 'segments', 'subspaces',
            'tokens', or a figure of your own in ``FIGURES``.
        model: from ``init_model`` or ``get_model``. 'layers' also compares several models, as a dict by label.
        images: images as for ``Predictor``, a dataset of (image, label) pairs, or a ``DataLoader`` of samples, such as
            ``build_loader`` returns. 'objects', 'segments' and 'subspaces' need none.
        layers: layer indices from 0; negative indices count from the last layer (default: the figure's own, or all).
        seed: seed of the random choices of the figure.
        options: options of the command, with underscores: ``num_images=100``, ``foreground=True``.

    Raises:
        ValueError: the figure or an option is unknown, the model does not support the figure, an image cannot be read,
            or several images are given to 'attention', which draws one figure per image.
    """
    if figure not in FIGURES.names():
        raise ValueError(f"unknown figure {figure!r}: {suggest(figure, list(FIGURES.names()))}")
    kind: Figure = FIGURES.build({"type": figure})
    parsed = _parsed(kind, figure, options)
    parsed.layers, parsed.seed = layers, seed
    models = model if isinstance(model, Mapping) else {"": model}
    tasks = {label: task_of(each) for label, each in models.items()}
    images = list(images) if isinstance(images, Iterator) else images  # each model reads them
    if len(tasks) != 1 and not kind.accepts_many:
        raise ValueError(f"{figure} draws one model, got {len(tasks)}")
    with evaluating(*tasks.values()):
        output = kind.run([_figure_input(kind, *each, images, parsed) for each in tasks.items()], parsed)
    if output.note:
        print_log(output.note, "current", logging.INFO)
    if len(output.pictures) != 1:
        raise ValueError(f"expected one image, got {len(output.pictures)}: {figure} draws a figure for each image")
    return next(iter(output.pictures.values()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{self.prog}: {message}")


def _parsed(kind: Figure, name: str, options: dict[str, Any]) -> argparse.Namespace:
    """Check a figure's options by its command-line declarations, and add their defaults."""
    parser = _Parser(name, add_help=False, allow_abbrev=False)
    kind.add_options(parser)
    known, words = vars(parser.parse_args([])), []
    for key, value in options.items():
        if key not in known:
            choices = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no option {key!r}: {choices}")
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        elif value is not False:
            words.append(flag if value is True else f"{flag}={value}")
    return parser.parse_args(words)


def _figure_input(kind: Figure, label: str, model: nn.Module, images: Any, options: argparse.Namespace) -> FigureInput:
    if kind.input_kind == "model":
        return FigureInput(label, model)
    loader = loader_for(model, images)
    dataset = dataset_of(loader.dataset)
    if kind.input_kind == "split":
        batches = subset(loader, kind.choose(len(dataset), options))
        return FigureInput(label, model, batches, classes=tuple(dataset.classes or ()))
    (batch,) = DataLoader(loader.dataset, len(dataset), collate_fn=loader.collate_fn)
    channels = 3 if batch["inputs"].shape[1] >= 3 else 1
    pictures = batch["inputs"][:, :channels].permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    names = tuple(map(dataset.describe, range(len(dataset))))
    return FigureInput(label, model, [{"inputs": batch["inputs"]}], tuple(pictures), names)
