"""What the Runner sees: a task, which is a model, its loss, its predictions and the figure that sums it up.

Shapes: B samples in a batch.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn

from ...datasets.base import samples_in
from ..backbone import Backbone
from .preprocessor import ImagePreprocessor


class Task(BaseModel):
    """A model with all that training, evaluation, transfer and the tools ask of it. A subclass defines the model.

    A batch is a dict of tensors ``(B, ...)``. The preprocessor takes it to the device; ``loss``, ``predict``,
    ``features`` and ``tensor`` get what it returns, by name. MMEngine calls them through ``forward(mode=...)``.

    Args:
        preprocessor: takes a batch from the loader to the device.

    Attributes:
        headline: the metric that sums the task up, and whether 'greater' or 'less' is better. It selects the best
            checkpoint and is the figure of the results table.
        uses_labels: whether the data of training, validation and a test must have the same classes.
        transfer_from: the part of this task's weights that a later run takes as its backbone, such as 'backbone' or
            'teacher'. A part ``x`` is a module ``x`` or ``x.backbone`` of the task. The setting ``transfer_from``
            overrides it.
        backbone: the module that a transfer fills and that the analysis reads.
        head: the module behind the backbone, or None.
        num_classes: number of classes that ``tensor`` gives logits of; 0 if it gives something else.
        in_channels: channels C of the images, or None.
        freeze_backbone: whether the backbone is not trained.
        flip_test: whether ``predict`` averages over an image and its mirror image; None if it cannot.
        class_names, test_transforms, described_by: of the checkpoint that the weights are from: the names of the
            classes, the transforms of its test, and its path where the file described the model.
        eval_dtype: dtype of matrix products in an evaluation, by autocast; the Runner sets it for that time.
    """

    headline: ClassVar[tuple[str, str]]
    uses_labels: ClassVar[bool] = True
    transfer_from: ClassVar[str] = "backbone"
    backbone: nn.Module
    head: nn.Module | None
    num_classes: int = 0
    in_channels: int | None = None
    freeze_backbone: bool = False
    flip_test: bool | None = None
    class_names: list[str] | None = None
    test_transforms: list[dict] | None = None
    described_by: str | None = None
    eval_dtype: torch.dtype | None = None

    def __init__(self, preprocessor: nn.Module | None = None) -> None:
        super().__init__(data_preprocessor=preprocessor)
        self.head = None  # not in the class, where it would hide a module of this name

    @property
    def is_classifier(self) -> bool:
        """Whether ``tensor`` gives logits of classes."""
        return self.num_classes > 0

    # Training -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, **batch: Tensor) -> dict[str, Tensor]:
        """The losses of a batch, by names that begin with 'loss'; training minimises their sum."""

    @property
    def mixes_samples(self) -> bool:
        """Whether the loss of a sample depends on the others of its micro-batch; if not, the loss is a mean over what
        ``count`` counts."""
        return False

    def count(self, batch: dict[str, Tensor]) -> int:
        """Return how many things the loss is a mean over, for a batch as the loader gives it: its samples by default.

        Micro-batches and the shares of processes may differ in it. Their losses are weighted by it, so that a step is
        that of the mean over the global batch. A language task counts the tokens that have a label. The loss of a batch
        that counts 0 must be finite.
        """
        return samples_in(batch)

    def trainable(self) -> nn.Module:
        """Return the module whose parameters are optimized: the task by default.

        All other parameters, such as those of a teacher, take no gradient and are in no parameter group. Their names
        in ``paramwise_cfg`` and in the logs stay those of the task.
        """
        return self

    def after_step(self, step: int, skipped: bool) -> None:
        """Act after an optimizer step, without gradients, on all processes: update a teacher, follow a schedule.

        A skipped step must change nothing. A resumed run is identical to an uninterrupted one if all state is in
        parameters and buffers of the task. Where this method is overridden, each step waits for the GPU, because only
        the GPU knows whether the step was skipped.

        Args:
            step: number of steps of the run so far, this one included.
            skipped: whether the step was not taken, because its gradients were not finite.
        """

    # Evaluation and the tools -------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, **batch: Tensor) -> list[Any]:
        """What the evaluator's metrics get for a batch, a list."""

    def tensor(self, **batch: Tensor) -> Tensor:
        """The output of the model alone, as it is counted, exported and looked into."""
        raise ValueError(f"{type(self).__name__} has no plain output: it defines no tensor()")

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
    task = model.module if is_model_wrapper(model) else model
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


def freeze_untrained(task: Task) -> None:
    """Let the parameters outside of ``task.trainable()`` take no gradients, before a wrapper waits for them.

    Raises:
        ValueError: a parameter of ``trainable()`` is not one of the task, whose checkpoints would lack it.
    """
    trained = {id(parameter) for parameter in task.trainable().parameters()}
    untrained = [parameter for parameter in task.parameters() if id(parameter) not in trained]
    if len(trained) + len(untrained) != sum(1 for _ in task.parameters()):
        raise ValueError(f"{type(task).__name__}.trainable() has parameters that are not the task's")
    for parameter in untrained:
        parameter.requires_grad_(False)


def image_shape(task: Task) -> tuple[int, int, int]:
    """Return the shape ``(C, H, W)`` of the images that a task takes, for tools that make images of their own.

    Raises:
        ValueError: the task's inputs are not images, or their size is not known.
    """
    inputs = task.example().get("inputs")
    is_image = isinstance(inputs, Tensor) and inputs.ndim == 4
    if not is_image or not isinstance(task.data_preprocessor, ImagePreprocessor):
        got = f"its example has {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else "its example has no 'inputs'"
        raise ValueError(
            f"{type(task).__name__} is no task of images: expected inputs of shape (B, C, H, W) and a preprocessor "
            f"that normalizes them, {got} and its preprocessor is {type(task.data_preprocessor).__name__}"
        )
    return tuple(inputs.shape[1:])
