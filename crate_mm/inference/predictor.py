"""Predict classes of images, a batch at a time: files, folders, PIL images, arrays and tensors."""

import logging
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..datasets import imagenet_class_names
from ..datasets.images import UnreadableImageError
from ..io.log import print_log
from ..io.progress import track
from .model_factory import load_model
from .transforms import EvalTransform, TransformedImage, as_images, stack_readable

MAX_NAMED = 5  # unreadable images that are named in the log line


class Unreadable(list):
    """Result of an image that cannot be read: an empty list with a ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __repr__(self) -> str:
        return f"cannot be read: {self.reason}"


class _LabelScore(NamedTuple):
    label: str
    score: float


class ClassScore(_LabelScore):
    """One class of a prediction: a pair ``(label, score)`` with the attribute ``index``.

    Attributes:
        label: name of the class.
        score: probability of the class.
        index: index of the class in the model's output.
    """

    index: int

    def __new__(cls, label: str, score: float, index: int) -> "ClassScore":
        pair = super().__new__(cls, label, score)
        pair.index = index
        return pair

    def __getnewargs__(self) -> tuple:  # for copies and pickles
        return (*self, self.index)

    def __repr__(self) -> str:
        return f"{self.label!r} {100 * self.score:.1f} %"


class Prediction(NamedTuple):
    """Result of ``Predictor.stream`` for one image: a ``TransformedImage`` and its classes.

    Attributes:
        classes: most likely classes with their probabilities, best first; empty if the image cannot be read.
    """

    image: Any
    pixels: Tensor | None
    reason: str
    classes: list[ClassScore]

    def __repr__(self) -> str:
        name = str(self.image) if isinstance(self.image, (str, Path)) else type(self.image).__name__
        return f"Prediction({name!r}: {Unreadable(self.reason) if self.reason else self.classes})"


class Predictor:
    """Predict classes of images::

        predict = Predictor("crate_base.pth")
        predict(["cat.jpg", "dog.jpg"])[0]  # ['tabby' 61.0 %, 'tiger cat' 20.0 %, ...]

    Args:
        model: from ``init_model`` or ``get_model``, or a checkpoint as for ``init_model(None, checkpoint)``.
        transforms: configs of ``TRANSFORMS`` (default: the config's test transforms, or the checkpoint's if there is no
            config). If neither defines any: a resize to 256/224 of the model's size (of the shorter side for square
            models) and a center crop, with a warning.
        class_names: names of the classes (default: the checkpoint's; if it has none, ImageNet-1K's for 1000 classes,
            otherwise numbers).
        topk: number of classes to return.
        batch_size: images per forward pass.
        dtype: dtype of matrix products: 'float32', 'bfloat16' or 'float16'. The 16-bit types are faster on processors
            that support them and change a logit by some hundredths of the logits' standard deviation.

    Raises:
        CheckpointError: (a ``ValueError``) the checkpoint cannot be opened, or does not define its model.
        ValueError: the model is no classifier, the number of names is not the number of classes, or unknown ``dtype``.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        transforms: list[dict] | None = None,
        class_names: list[str] | None = None,
        topk: int = 5,
        batch_size: int = 64,
        dtype: str = "float32",
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
        self.dtype = getattr(torch, dtype)
        model = load_model(model) if isinstance(model, (str, Path)) else model
        if not model.is_classifier:
            raise ValueError(f"Predictor is for classifiers: {type(model).__name__} predicts no classes")
        self.model = model.eval()
        self.preparation = EvalTransform(model, transforms)
        self.class_names: list[str] = class_names or model.class_names or default_class_names(model.num_classes)
        if len(self.class_names) != model.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for a head of {model.num_classes} classes")
        self.topk = min(topk, model.num_classes)
        self.batch_size = batch_size

    @property
    def transforms(self) -> nn.Module:
        """Transforms of an image before the preprocessor."""
        return self.preparation.transforms

    def __call__(self, images: Any) -> list[list[ClassScore]]:
        """Return for each image its most likely classes with their probabilities, best first.

        A class is a pair ``(label, score)`` with an ``index``. The result of an unreadable image is an ``Unreadable``:
        an empty list with a ``reason``, which is also logged. A terminal or a notebook shows the progress.

        Args:
            images: one image, an ordered iterable of images, a batch, or a folder. An image is a path, a PIL image, a
                uint8 array ``(H, W)`` or ``(H, W, C)``, or a uint8 tensor ``(C, H, W)``. A batch is an array
                ``(B, H, W, C)`` or a tensor ``(B, C, H, W)``. A folder stands for all images below it, sorted by path.

        Raises:
            ValueError: an image is of an unsupported type, dtype or shape, or no image can be read.
        """
        predictions: list[list] = []
        images = as_images(images)
        total = len(images) if isinstance(images, Sized) else None
        for result in track(self.stream(images), "predicting", total):
            predictions.append(Unreadable(result.reason) if result.reason else result.classes)
        failures = [(number, entry.reason) for number, entry in enumerate(predictions) if isinstance(entry, Unreadable)]
        if not failures:
            return predictions
        reasons = "; ".join(f"image {number} cannot be read: {reason}" for number, reason in failures[:MAX_NAMED])
        if len(failures) == len(predictions):
            raise ValueError(reasons)
        more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
        summary = f"{len(failures)} of {len(predictions)} images cannot be read"
        print_log(f"{summary}: {reasons}{more}", "current", logging.WARNING)
        return predictions

    def stream(self, images: Any, workers: int = 0) -> Iterator[Prediction]:
        """Yield a prediction for each image; at most two batches are in memory.

        Args:
            images: as for ``__call__``.
            workers: threads that transform images in parallel.

        Raises:
            ValueError: an image is of an unsupported type, dtype or shape.
        """
        for prepared in self.preparation.batches(as_images(images), self.batch_size, workers):
            classes = iter(self._classify(prepared))
            for item in prepared:
                yield Prediction(*item, classes=[] if item.reason else next(classes))

    @torch.inference_mode()
    def _classify(self, prepared: list[TransformedImage]) -> list[list[ClassScore]]:
        if all(item.reason for item in prepared):
            return []
        data = self.model.data_preprocessor({"inputs": stack_readable(prepared)})
        scores, classes = self._logits(data["inputs"]).softmax(dim=-1).topk(self.topk)
        rows = zip(scores.tolist(), classes.tolist())
        return [[ClassScore(self.class_names[c], score, c) for score, c in zip(row, ids)] for row, ids in rows]

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return self.model(inputs)
        with torch.autocast(inputs.device.type, self.dtype):
            return self.model(inputs).float()

    def prepare(self, image: Any, number: int = 0) -> Tensor:
        """Return an image as uint8 ``(C, H, W)`` for the preprocessor; errors name the image by ``number``."""
        try:
            return self.preparation(image, number)
        except UnreadableImageError as error:
            raise ValueError(f"image {number} cannot be read: {error}") from None

    _load = prepare  # for older scripts


def default_class_names(num_classes: int) -> list[str]:
    """Return ImageNet-1K's English names for 1000 classes, else numbers."""
    return imagenet_class_names() if num_classes == 1000 else [str(i) for i in range(num_classes)]
