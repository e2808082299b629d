"""What the Runner sees: a task, which is a model, its loss, its predictions and the figure that sums it up.

Shapes: B samples in a batch.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..backbone import Backbone


class Task(BaseModel):
    """A model with what training, evaluation, transfer and the tools ask of it; a subclass says what it is.

    A batch is a dict of tensors ``(B, ...)``. The preprocessor takes it to the device; ``loss``, ``predict``,
    ``features`` and ``tensor`` get what it returns, by name. MMEngine calls them through ``forward(mode=...)``.

    Args:
        preprocessor: takes a batch from the loader to the device.

    ``headline`` names the metric that sums the task up, and whether 'greater' or 'less' is better: it decides which
    checkpoint is the best, and is the figure of the results table. ``backbone`` is what transfer takes over. Where a
    task ``uses_labels``, the data of training, of validation and of a test must have the same classes.
    """

    headline: ClassVar[tuple[str, str]]
    uses_labels: ClassVar[bool] = True
    eval_dtype: torch.dtype | None = None  # of products in an evaluation, by autocast; the Runner sets it for a while
    backbone: nn.Module

    def __init__(self, preprocessor: nn.Module | None = None) -> None:
        super().__init__(data_preprocessor=preprocessor)

    @abstractmethod
    def loss(self, **batch: Tensor) -> dict[str, Tensor]:
        """The losses of a batch, by names that begin with 'loss'; training minimises their sum."""

    @abstractmethod
    def predict(self, **batch: Tensor) -> list[Any]:
        """What the evaluator's metrics get for a batch, a list."""

    def tensor(self, **batch: Tensor) -> Tensor:
        """The output of the model alone, as it is counted, exported and looked into."""
        raise ValueError(f"{type(self).__name__} has no plain output: it defines no tensor()")

    @property
    def mixes_samples(self) -> bool:
        """Whether the loss of a sample depends on the others of its micro-batch; the loss is else a mean over them."""
        return False

    def features(self, **batch: Tensor) -> Tensor:
        """One vector a sample, ``(B, d)``, for nearest neighbours and projections."""
        raise ValueError(f"{type(self).__name__} has no features: it defines no features()")

    def example(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """A batch of one as the preprocessor returns it, for counting, exporting and drawing.

        Args:
            size: of the sample, where a model takes several; its own if not given.

        Raises:
            ValueError: the size is not known.
        """
        raise ValueError(f"{type(self).__name__} gives no example: it defines no example()")

    def check_data(self, dataset: Any, split: str) -> None:
        """Raise ``ValueError``, in a sentence, unless the model can be trained or tested on a dataset.

        Args:
            dataset: of the loader.
            split: 'train', 'val' or 'test', for the sentence.
        """

    def _dump_init_info(self) -> None:
        """Nothing: MMEngine 0.10.7, whose name this is, writes two lines to the log for each parameter."""

    def forward(self, *args: Tensor, mode: str = "tensor", **batch: Tensor) -> Any:
        """Call the method that ``mode`` names: 'loss', 'predict', 'tensor' or 'features'.

        Raises:
            ValueError: another mode.
        """
        if mode not in ("loss", "predict", "tensor", "features"):
            raise ValueError(f"unknown mode {mode!r}: choose loss, predict, tensor, features")
        if self.training or self.eval_dtype is None:
            return getattr(self, mode)(*args, **batch)
        with torch.autocast(next(self.parameters()).device.type, self.eval_dtype):
            return getattr(self, mode)(*args, **batch)


def task_of(model: nn.Module) -> Task:
    """The task in a wrapper of several processes, or the task itself.

    Raises:
        ValueError: the model is no ``Task``.
    """
    task = getattr(model, "module", model)
    if not isinstance(task, Task):
        raise ValueError(
            f"model {type(task).__name__} is no task: let it inherit from crate_mm.models.Task, which says what the "
            "Runner asks of it"
        )
    return task


def backbone_of(model: nn.Module) -> Backbone | None:
    """Return the backbone of a task, or else the first backbone within a module; None if it has none."""
    own = dict(model.named_children()).get("backbone")
    if isinstance(own, Backbone):
        return own
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


def image_shape(task: Task) -> tuple[int, int, int]:
    """The shape ``(C, H, W)`` of the images that a task takes, for tools that make images of their own.

    Raises:
        ValueError: it takes something else than images, or does not say what it takes.
    """
    inputs = task.example().get("inputs")
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not hasattr(task.data_preprocessor, "normalize"):
        got = f"its example has {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else "its example has no 'inputs'"
        raise ValueError(
            f"{type(task).__name__} is no task of images: expected inputs of shape (B, C, H, W) and a preprocessor "
            f"that normalizes them, {got} and its preprocessor is {type(task.data_preprocessor).__name__}"
        )
    return tuple(inputs.shape[1:])
