"""The contract of a task: a model with its loss, predictions and headline metric.

Shapes: B samples in a batch.
"""

import random
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn

from ...datasets.base import dataset_of, samples_in
from ...io.untrusted import sanitized
from ...registry import BACKBONES, MODELS
from ..backbone import Backbone, check_backbone_contract, image_spec
from .preprocessor import ImagePreprocessor, refuse_raw


class Task(BaseModel):
    """A model with the interface for training, evaluation, transfer and tools. A subclass defines the model.

    A batch is a dict of tensors ``(B, ...)``. The preprocessor moves it to the device; ``loss``, ``predict``,
    ``features`` and ``tensor`` receive its result as keyword arguments. MMEngine calls them through
    ``forward(mode=...)``.

    Args:
        preprocessor: moves a batch from the loader to the device.

    Attributes:
        headline: the main metric, and whether 'greater' or 'less' is better. It selects the best checkpoint and is
            shown in the results table.
        unit: what the log calls samples, in the plural.
        uses_labels: whether training, validation and test data must have the same classes.
        transfer_from: part of this task's weights from which a later run initializes its backbone, such as 'backbone'
            or 'teacher'. A part ``x`` is a module ``x`` or ``x.backbone`` of the task. The setting ``transfer_from``
            overrides it.
        backbone: the module that a transfer initializes and that the analysis reads.
        head: the module after the backbone, or None.
        num_classes: number of classes of the logits of ``tensor``; 0 if ``tensor`` returns no logits.
        labels_pixels: whether the logits are of pixels, ``(B, num_classes, H, W)``, and labels are masks ``(B, H, W)``.
        in_channels: channels C of the images, or None.
        freeze_backbone: whether the backbone is not trained.
        flip_test: whether ``predict`` averages over an image and its mirror image; None if not supported.
        class_names, test_transforms, described_by: class names and test transforms of the loaded checkpoint, and
            the checkpoint's path if the model was built from it.
        logged: names of entries of ``loss`` that are only logged. They must not contain 'loss'.
        total_steps: number of steps of the run, set by the training loop.
        eval_dtype: autocast dtype of an evaluation, set by the Runner during the evaluation.
    """

    headline: ClassVar[tuple[str, str]]
    unit: ClassVar[str] = "images"
    uses_labels: ClassVar[bool] = True
    transfer_from: ClassVar[str] = "backbone"
    backbone: nn.Module
    head: nn.Module | None
    num_classes: int = 0
    labels_pixels: ClassVar[bool] = False
    in_channels: int | None = None
    freeze_backbone: bool = False
    flip_test: bool | None = None
    class_names: list[str] | None = None
    test_transforms: list[dict] | None = None
    described_by: str | None = None
    logged: ClassVar[tuple[str, ...]] = ()
    total_steps: int | None = None
    eval_dtype: torch.dtype | None = None

    def __init__(self, preprocessor: nn.Module | None = None) -> None:
        super().__init__(data_preprocessor=preprocessor)
        self.head = None  # a class attribute would hide a module of this name

    @property
    def is_classifier(self) -> bool:
        """Whether ``tensor`` returns class logits of the samples, ``(B, num_classes)``."""
        return self.num_classes > 0 and not self.labels_pixels

    # Training -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch, by names that start with 'loss', and the entries that ``logged`` names.

        Training minimizes the sum of the losses.
        """

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample's loss depends on the other samples of its micro-batch.

        If not, the loss is a mean over the items that ``count`` counts.
        """
        return False

    def count(self, batch: dict[str, Tensor]) -> int:
        """Return the number of items that the loss is a mean over, for a batch from the loader (default: samples).

        Losses of micro-batches and processes are weighted by this number, so that a step uses the mean over the global
        batch. A language task counts the tokens that have a label. The loss of a batch with count 0 must be finite.
        """
        return samples_in(batch)

    def trainable(self) -> nn.Module:
        """Return the module whose parameters are optimized: the task by default.

        All other parameters, such as a teacher's, get no gradient and are in no parameter group. Parameter names in
        ``paramwise_cfg`` and in logs are those of the task.
        """
        return self

    def before_step(self, batches: list[dict[str, Any]], total: int) -> None:
        """Run code before an optimizer step, without gradients, on all ranks, such as gathering features of the step.

        It runs in training mode with the step's autocast. BatchNorm's statistics are restored afterwards.

        Args:
            batches: this rank's micro-batches from the loader, in the order of their losses.
            total: number of samples of the step, over all ranks.
        """

    def after_step(self, step: int, skipped: bool) -> None:
        """Run code after an optimizer step, without gradients, on all ranks, such as the update of a teacher.

        A skipped step must change nothing. A resumed run is identical to an uninterrupted one if all state is in
        parameters and buffers of the task. An override makes each step wait for the GPU, because only the GPU knows
        whether the step was skipped.

        Args:
            step: number of steps of the run, including this one.
            skipped: whether the step was skipped because its gradients were not finite.
        """

    def after_transfer(self) -> None:
        """Run code after ``backbone`` was loaded from a checkpoint, such as the copy of a student to its teacher."""

    # Evaluation and tools -----------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, **batch: Tensor) -> list[Any]:
        """Return a list of predictions for a batch, the input of the evaluator's metrics."""

    def tensor(self, **batch: Tensor) -> Tensor:
        """Return the plain output of the model, for counting, export and analysis."""
        raise ValueError(f"{type(self).__name__} has no plain output: it defines no tensor()")

    def features(self, **batch: Tensor) -> Tensor:
        """Return one vector per sample, ``(B, d)``, for nearest neighbors and projections."""
        raise ValueError(f"{type(self).__name__} has no features: it defines no features()")

    def example(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Return a batch of one sample in the format of the preprocessor's output, for counting, export and drawing.

        Args:
            size: size of the sample, if the model accepts several (default: the model's own).

        Raises:
            ValueError: the size is unknown.
        """
        raise ValueError(f"{type(self).__name__} gives no example: it defines no example()")

    def check_data(self, dataset: Any, split: str) -> None:
        """Raise ``ValueError`` unless the model can be trained or tested on a dataset.

        Args:
            dataset: dataset of the loader.
            split: 'train', 'val' or 'test', for the message.
        """

    def _dump_init_info(self) -> None:
        """Do nothing: MMEngine 0.10.7 logs two lines for each parameter here."""

    def forward(self, *args: Tensor, mode: str = "tensor", **batch: Tensor) -> Any:
        """Call the method that ``mode`` names: 'loss', 'predict', 'tensor' or 'features'.

        Raises:
            ValueError: unknown mode.
        """
        if mode not in ("loss", "predict", "tensor", "features"):
            raise ValueError(f"unknown mode {mode!r}: choose loss, predict, tensor, features")
        if self.training or self.eval_dtype is None:
            return getattr(self, mode)(*args, **batch)
        with torch.autocast(next(self.parameters()).device.type, self.eval_dtype):
            return getattr(self, mode)(*args, **batch)


class ImageTask(Task):
    """A task of images ``(B, C, H, W)``: a preprocessor that normalizes them, and a backbone.

    Args:
        backbone: config of ``BACKBONES`` or a ``Backbone`` of images.
        preprocessor: config of ``MODELS``, or a module.
        freeze_backbone: train only the head. The backbone stays in eval mode, without gradients.

    Raises:
        ValueError: the preprocessor's channels are not the backbone's.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        preprocessor: dict | nn.Module | None = None,
        freeze_backbone: bool = False,
    ) -> None:
        if not isinstance(preprocessor, nn.Module):
            preprocessor = MODELS.build({"type": "ImagePreprocessor", **(preprocessor or {})})
        super().__init__(preprocessor)
        self.backbone = backbone if isinstance(backbone, nn.Module) else BACKBONES.build(backbone)
        check_backbone_contract(self.backbone)
        spec = self.backbone.input_spec
        if spec is not None and isinstance(preprocessor, ImagePreprocessor) and len(preprocessor.mean) != spec.channels:
            raise ValueError(
                f"the backbone takes images of {spec.channels} channels, the preprocessor's mean and std are of "
                f"{len(preprocessor.mean)}: set in_channels or mean and std"
            )
        preprocessor.channels_last = self.backbone.channels_last
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ImageTask":
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def _tokens(self, images: Tensor) -> Tensor:
        """Return the backbone's tokens, without a graph if it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.backbone(images)

    @property
    def in_channels(self) -> int:
        """Channels C of the images, from the preprocessor's mean."""
        return len(self.data_preprocessor.mean)

    def forward(self, inputs: Tensor, *args: Tensor, mode: str = "tensor", **batch: Tensor) -> Any:
        """As ``Task.forward``; exporters need a named argument for the images."""
        refuse_raw(inputs)
        return super().forward(inputs, *args, mode=mode, **batch)

    def example(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        if size is None and self.backbone.input_spec is None:
            raise ValueError(f"{type(self.backbone).__name__} does not define its image size: give --shape H W")
        size = size or image_spec(self.backbone).size
        parameter = next(self.parameters())
        return {"inputs": torch.zeros(1, self.in_channels, *size, device=parameter.device, dtype=parameter.dtype)}


def task_of(model: nn.Module) -> Task:
    """Return the task itself, unwrapped from DistributedDataParallel or another model wrapper.

    Raises:
        ValueError: the model is not a ``Task``.
    """
    task = model.module if is_model_wrapper(model) else model
    if not isinstance(task, Task):
        raise ValueError(
            f"model {type(task).__name__} is no task: let it inherit from crate_mm.models.Task, which defines the "
            "interface of the Runner"
        )
    return task


def backbone_of(model: nn.Module) -> Backbone | None:
    """Return the backbone of a task, else the first backbone in a module, else None."""
    backbone = dict(model.named_children()).get("backbone")
    if isinstance(backbone, Backbone):
        return backbone
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


def freeze_untrained(task: Task) -> None:
    """Disable gradients outside ``task.trainable()``; a model wrapper would wait for these gradients.

    Raises:
        ValueError: a parameter of ``trainable()`` is not in the task, so checkpoints would lack it.
    """
    trained = {id(parameter) for parameter in task.trainable().parameters()}
    untrained = [parameter for parameter in task.parameters() if id(parameter) not in trained]
    if len(trained) + len(untrained) != sum(1 for _ in task.parameters()):
        raise ValueError(f"{type(task).__name__}.trainable() has parameters that are not the task's")
    for parameter in untrained:
        parameter.requires_grad_(False)


def check_classes(dataset: Any, num_classes: int, split: str) -> None:
    """Raise ``ValueError`` if the dataset of a loader has known classes and their number is not ``num_classes``."""
    classes = dataset_of(dataset).classes
    if classes is None or len(classes) == num_classes:
        return
    first = ", ".join(map(sanitized, classes[:3]))
    prefix, advice = "", f"set --cfg-options model.head.num_classes={len(classes)}"
    if split != "train":
        prefix, advice = f"{split} ", "use data with the classes that the model was trained on"
    raise ValueError(f"the {prefix}data has {len(classes)} classes ({first}, ...), the head {num_classes}: {advice}")


def check_images_fit(dataset: Any, backbone: Backbone, split: str) -> None:
    """Raise ``ValueError`` unless the first image of a loader's dataset has the shape that the backbone declares.

    The random states do not change. A sample that cannot be read is no error here: the run may replace it.

    Args:
        dataset: dataset of the loader, whose samples have ``inputs`` (C, H, W).
        backbone: backbone that receives the loader's images.
        split: 'train', 'val' or 'test', for the message.
    """
    spec, states = backbone.input_spec, (random.getstate(), np.random.get_state())
    if spec is None or not spec.is_image or not len(dataset):
        return
    try:
        with torch.random.fork_rng(devices=[]):
            C, *size = dataset_of(dataset)[0]["inputs"].shape
    except Exception:
        return
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    steps, settings = [], []
    if C != spec.channels:
        steps.append(f"dict(type={'Grayscale' if spec.channels == 1 else 'RGB'!r})")
        settings.append("in_channels")
    if not spec.any_size and tuple(size) != spec.size:
        steps.append(f"dict(type='Resize', size={spec.size})")
        settings.append("img_size")
    if not steps:
        return
    advice = f"add {' and '.join(steps)} to its transforms, or set {' and '.join(settings)} of the backbone"
    advice += ", mean and std" if C != spec.channels else ""
    raise ValueError(
        f"{split}_dataloader gives images of {' x '.join(map(str, (C, *size)))} (channels, height, width), the "
        f"backbone {type(backbone).__name__} takes {' x '.join(map(str, spec.shape))}: {advice}"
    )


def image_shape(task: Task) -> tuple[int, int, int]:
    """Return the shape ``(C, H, W)`` of a task's images, for tools that generate images.

    Raises:
        ValueError: the task's inputs are not images, or their size is unknown.
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
