"""Base class and helpers of figures.

Figures do not use pyplot: its global state keeps figures alive, and it looks for a display.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from PIL import Image
from torch import Tensor, nn

from ...io.files import atomic_file
from ...io.untrusted import sanitized
from ...models.backbone import image_spec
from ...models.layers import TokenLayout
from ..taps import check_no_text, layout_of, name_of


class FigureInput(NamedTuple):
    """Input of a figure: a model in eval mode and its data.

    Attributes:
        label: name of the model and its data, for legends.
        model: the model, on its device.
        batches: batches of a loader.
        pictures: for image files, the image of each sample, ``(H, W, 3)`` of uint8.
        names: file names of the pictures.
        classes: class names of the data, if known.
    """

    label: str
    model: nn.Module
    batches: Iterable[dict] = ()
    pictures: tuple[np.ndarray, ...] = ()
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


class FigureOutput(NamedTuple):
    """Output of a figure: pictures by file stem, numbers by file name (``.npz``: a dict of arrays, ``.csv``: rows,
    ``.json``: plain data), and a note to print."""

    pictures: dict[str, MplFigure]
    numbers: dict[str, Any]
    note: str = ""


class Figure(ABC):
    """One figure of ``crate-mm analyze``; a class registered in ``FIGURES`` is a command.

    Attributes:
        help: one line for the command line.
        input_kind: 'split' (batches of the config's data), 'images' (image files) or 'model' (no data).
        accepts_many: whether the figure compares several checkpoints and splits.
        full_model: whether the figure needs the checkpoint's full model instead of only the backbone.
    """

    help: ClassVar[str]
    input_kind: ClassVar[str] = "split"
    accepts_many: ClassVar[bool] = False
    full_model: ClassVar[bool] = False

    def add_options(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027  options are optional
        """Add the figure's options to the command line."""

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        """Return the positions of the samples to load, out of ``total``."""
        return list(range(total))

    @abstractmethod
    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        """Make the figure.

        Args:
            subjects: one subject, or several with ``accepts_many``.
            options: the figure's own options, ``layers`` (selected layers, from 0, or None) and ``seed``.
        """


@torch.inference_mode()
def run_batches(model: nn.Module, batches: Iterable[dict]) -> None:
    for batch in batches:
        model(**model.data_preprocessor(batch))


def preprocessed(subject: FigureInput) -> Tensor:
    """Return the subject's samples as model inputs, in one batch."""
    (batch,) = subject.batches
    return subject.model.data_preprocessor(batch)["inputs"]


def resized_input(model: nn.Module, image: Image.Image) -> Tensor:
    """Return an image of any size as an input of a model, ``(1, C, H, W)``, resized to the model's size."""
    height, width = image_spec(model.backbone).size
    mode = "L" if model.in_channels == 1 else "RGB"
    pixels = np.array(image.convert(mode).resize((width, height), Image.Resampling.BILINEAR))
    inputs = torch.from_numpy(pixels).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    return model.data_preprocessor({"inputs": inputs})["inputs"]


def patch_layout(model: nn.Module, inputs: Tensor) -> TokenLayout:
    """Return the layout of a model's tokens.

    Raises:
        ValueError: the backbone does not define the layout.
    """
    layout = layout_of(model, inputs)
    if layout is None:
        check_no_text(model)
        raise ValueError(f"{name_of(model)} does not define its patch grid: its layout(inputs) returns None")
    return layout


def sample_positions(total: int, count: int, seed: int) -> list[int]:
    """Return ``count`` random positions below ``total``, sorted, determined by the seed.

    Raises:
        ValueError: ``count`` (the figure's option ``--num-images``) is not positive.
    """
    if count < 1:
        raise ValueError(f"--num-images must be at least 1, got {count}")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort()[0].tolist()


def save(figure: MplFigure, prefix: str | Path) -> list[Path]:
    """Write ``<prefix>.png`` and ``<prefix>.pdf``; return the paths."""
    files = [Path(f"{prefix}.{kind}") for kind in ("png", "pdf")]
    for file in files:
        with atomic_file(file) as stream:
            figure.savefig(stream, format=file.suffix[1:])
    return files


def legend(axes: Axes, **kwargs) -> None:
    """Add a legend whose labels are shown literally: names of files and classes may contain $."""
    for text in axes.legend(**kwargs).get_texts():
        text.set_parse_math(False)


def captions(subject: FigureInput, count: int, max_length: int = 24) -> list[str]:
    """Return the names of a subject's first ``count`` images, shortened in the middle; empty strings without names."""
    names = [sanitized(Path(name).name, 10_000) for name in subject.names[:count]]
    texts = [
        name if len(name) <= max_length else f"{name[: max_length * 2 // 3]}\u2026{name[1 - max_length // 3 :]}"
        for name in names
    ]
    return texts + [""] * (count - len(texts))


def without_ticks(panels: Iterable[Axes]) -> None:
    for axes in panels:
        axes.set(xticks=[], yticks=[])
