"""What a figure is, and what the figures share.

Figures are made without pyplot, whose global state would hold them, and which looks for a display.
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
from torch import Tensor, nn

from ...io.files import atomic_file
from ...io.untrusted import sanitized
from ...models.layers import TokenLayout
from ..taps import layout_of, name_of


class FigureInput(NamedTuple):
    """What a figure is made of: a model in eval mode, and what it looks at.

    Args:
        label: of the model and its data, for legends.
        model: on its device.
        batches: as a loader gives them.
        pictures: ``(H, W, 3)`` of uint8, one for each sample of ``batches``, where these are image files.
        names: of the pictures.
        classes: names of the data's classes, where it has such.
    """

    label: str
    model: nn.Module
    batches: Iterable[dict] = ()
    pictures: tuple[np.ndarray, ...] = ()
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


class FigureOutput(NamedTuple):
    """What a figure returns: pictures by the stem of their files, numbers by the name of theirs (``.npz``: a dict of
    arrays, ``.csv``: rows, ``.json``: data), and what is to be said."""

    pictures: dict[str, MplFigure]
    numbers: dict[str, Any]
    note: str = ""


class Figure(ABC):
    """One figure of ``crate-mm analyze``; a class registered in ``FIGURES`` is a command.

    ``help`` is a line for the command line. ``input_kind`` says what it needs: 'split' (batches of the config's data),
    'images' (image files) or 'model' (nothing). With ``accepts_many`` it takes several checkpoints and splits together. With
    ``full_model`` it needs all of a checkpoint's model, not the backbone alone.
    """

    help: ClassVar[str]
    input_kind: ClassVar[str] = "split"
    accepts_many: ClassVar[bool] = False
    full_model: ClassVar[bool] = False

    def add_options(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027  a figure may have none
        """Add its own options to the command line."""

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        """The positions of the samples that it looks at, of so many."""
        return list(range(total))

    @abstractmethod
    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        """Make the figure.

        Args:
            subjects: one, or with ``accepts_many`` several.
            options: its own; and ``layers``, which are asked for, counted from 0, or None, and ``seed``.
        """


@torch.inference_mode()
def run_batches(model: nn.Module, batches: Iterable[dict]) -> None:
    """Pass a loader's batches through a model."""
    for batch in batches:
        model(**model.data_preprocessor(batch))


def preprocessed(subject: FigureInput) -> Tensor:
    """The subject's samples as its model gets them, in one batch."""
    (batch,) = subject.batches
    return subject.model.data_preprocessor(batch)["inputs"]


def patch_layout(model: nn.Module, inputs: Tensor) -> TokenLayout:
    """Return which tokens of a model's layers are patches, and on which grid.

    Raises:
        ValueError: its backbone does not say.
    """
    layout = layout_of(model, inputs)
    if layout is None:
        raise ValueError(f"{name_of(model)} does not tell its grid of patches: its layout(inputs) returns None")
    return layout


def sample_positions(total: int, count: int, seed: int) -> list[int]:
    """``count`` positions of so many, in their order, the same for a seed."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort()[0].tolist()


def save(figure: MplFigure, prefix: str | Path) -> list[Path]:
    """Write ``<prefix>.png`` and ``<prefix>.pdf``; return the paths."""
    files = [Path(f"{prefix}.{kind}") for kind in ("png", "pdf")]
    for file in files:
        with atomic_file(file) as opened:
            figure.savefig(opened, format=file.suffix[1:])
    return files


def legend(axes: Axes, **kwargs) -> None:
    """A legend whose labels, which may be names of files and classes, are shown as they are, a $ too."""
    for text in axes.legend(**kwargs).get_texts():
        text.set_parse_math(False)


def captions(subject: FigureInput, count: int, most: int = 24) -> list[str]:
    """The files' names of a subject's first images, cut in the middle to fit below them; where it has none, nothing."""
    names = [sanitized(Path(name).name, 10_000) for name in subject.names[:count]]
    cut = [name if len(name) <= most else f"{name[: most * 2 // 3]}\u2026{name[1 - most // 3 :]}" for name in names]
    return cut + [""] * (count - len(cut))


def without_ticks(panels: Iterable[Axes]) -> None:
    """Leave out the ticks of axes that show pictures."""
    for axes in panels:
        axes.set(xticks=[], yticks=[])
